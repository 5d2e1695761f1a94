"""Self-supervised encoders: SSD, CSI and Patch-SVDD."""

from wsiad.detectors.contrastive.self_supervised import Contrastive, ContrastiveDetectorOptions

__all__ = ["Contrastive", "ContrastiveDetectorOptions"]
