"""Networks as scorers, on CPU or GPU."""
