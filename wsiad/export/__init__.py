"""Export: what other programs read (QuPath, OME-TIFF, PNG) and what people look at."""
