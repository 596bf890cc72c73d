"""Single images as runs: CBF, TIFF, EDF."""
