"""Synthetic H&E-like slides, drawn and not scanned, for the demo and for tests."""
