"""Slides whose tiles are Aperio's JPEG 2000."""

import imagecodecs
import numpy as np
import tifffile

from support.builders import halve
from support.tiff_slides import TILE, cut

YCBCR, RGB = 33003, 33005


def write_jpeg2000(path, image, *, compression=RGB, levels=2, quality=40, mct=0):
    """Write an Aperio SVS of JPEG 2000 tiles; of YCbCr, the channels are only named so."""
    with tifffile.TiffWriter(path, bigtiff=False) as tiff:
        for _ in range(levels):
            tiff.write(
                (
                    imagecodecs.jpeg2k_encode(tile, level=quality, codecformat="j2k", mct=bool(mct))
                    for tile in cut(image)
                ),
                shape=image.shape,
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="rgb",
                compression=compression,
                description="Aperio Image Library v1\nx|AppMag = 20|MPP = 0.5",
                metadata=None,
            )
            image = halve(image)
    return path
