"""Detectors: one file or folder a method; the interface is :mod:`wsiad.learning.detector`."""
