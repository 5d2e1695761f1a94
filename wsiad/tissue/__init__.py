"""Tissue: its position on a slide, and the quality of its pixels."""
