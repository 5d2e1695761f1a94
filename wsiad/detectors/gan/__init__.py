"""Generative adversarial networks: what a generator of healthy tiles cannot make is strange."""

from wsiad.detectors.gan.gan_detector import Gan

__all__ = ["Gan"]
