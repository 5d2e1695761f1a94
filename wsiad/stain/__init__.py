"""The stain of slides: its estimation, and the normalisation of slides to a common stain."""
