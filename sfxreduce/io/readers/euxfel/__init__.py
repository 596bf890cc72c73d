"""Runs of the European XFEL."""
