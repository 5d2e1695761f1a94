"""From a slide to tiles: the preparation, the plan and the stream."""
