"""Detectors: one file or folder a method; see :mod:`wsiad.detectors.detector`."""
