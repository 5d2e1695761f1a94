"""Autoencoders of the literature: a tile that is restored badly is strange."""

from wsiad.detectors.reconstruction.reconstruction_detector import Reconstruction

__all__ = ["Reconstruction"]
