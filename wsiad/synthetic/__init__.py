"""Synthetic H&E-like slides: drawn, not scanned; for the demo and for tests."""
