"""Tiling: the preparation, the plan and the stream that lead from a slide to its tiles."""
