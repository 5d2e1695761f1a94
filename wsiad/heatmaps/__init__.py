"""Heatmaps: from tile scores to a map over the slide, its regions and detections."""
