"""Detectors, one file or folder per method, with the interface :mod:`wsiad.learning.detector`."""
