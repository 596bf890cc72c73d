"""Copies of runs on another file system or tape: packages, backends, receipts."""
