"""Training: the loop, the run folder, calibration on healthy tiles."""
