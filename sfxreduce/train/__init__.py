"""Labelled runs become a model, and a model is judged on runs it has not seen."""
