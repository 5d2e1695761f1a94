"""Networks: pure ``nn.Module`` and their weights; nothing of training or detectors."""
