"""Slides, and the reading of their pixels at an exact µm/px."""
