"""Conformal p-values: how rare a score is among held-out healthy slides."""
