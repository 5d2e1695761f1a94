"""Runs: the folder of a fitted detector, its calibration, the split of healthy slides."""
