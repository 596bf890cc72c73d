"""Numbers for machines, one page for people."""
