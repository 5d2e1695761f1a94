"""Stain: what colours a slide, and how to make slides alike."""
