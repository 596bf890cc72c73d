"""The evidence folder of a plan: its journal, papers and pins."""
