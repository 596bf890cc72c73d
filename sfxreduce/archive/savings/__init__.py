"""Where every byte of many runs is, and what was saved by releasing them."""
