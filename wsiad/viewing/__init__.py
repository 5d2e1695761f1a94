"""Viewer of results in a browser: a zoomable slide with its heatmap over it."""
