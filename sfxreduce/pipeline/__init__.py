"""One file for each thing one can do with a run; the stages are in `stages`."""
