"""The Deep Perceptual Autoencoder (Shvetsova et al., IEEE Access 2021)."""

from wsiad.detectors.dpa.perceptual_autoencoder import DeepPerceptualAutoencoder

__all__ = ["DeepPerceptualAutoencoder"]
