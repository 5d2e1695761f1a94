"""Networks: pure ``nn.Module`` and their weights, without training or detectors."""
