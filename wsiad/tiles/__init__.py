"""Tiles: the stream from a slide, the store that is a stream written down, the dataset."""
