"""Self-supervised encoders: SSD, CSI, Patch-SVDD and CutPaste."""

from wsiad.detectors.contrastive.self_supervised import Contrastive, ContrastiveDetectorOptions

__all__ = ["Contrastive", "ContrastiveDetectorOptions"]
