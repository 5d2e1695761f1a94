"""Slides: reading pixels at a µm/px, exactly."""
