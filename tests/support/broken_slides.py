"""Slides that cannot be read."""

import tifffile

from support.builders import write_tiff


def truncated(path, source, share):
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def corrupt_tiff(tmp_path, image):
    """A slide whose pixel data is overwritten in one tile of level 0."""
    path = write_tiff(tmp_path / "corrupt.tif", image, mpp=0.5, levels=1, compression="jpeg")
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[4], tiff.pages[0].databytecounts[4]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\x00" * count)
    return path
