"""Training, calibration and adaptation of the shipped network."""
