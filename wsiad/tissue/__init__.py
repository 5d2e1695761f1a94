"""Tissue: where it is, and how good its pixels are."""
