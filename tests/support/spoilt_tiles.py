"""Slides with one tile that is damaged."""

import tifffile


def tile_bytes(path, index=6, *, level=0):
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[level]
        return page.dataoffsets[index], page.databytecounts[index]


def spoil(path, kind, *, index=6, level=0):
    offset, count = tile_bytes(path, index, level=level)
    data = bytearray(path.read_bytes())
    third = count // 3
    if kind == "tail of zeros":
        data[offset + third : offset + count] = bytes(count - third)
    elif kind == "zeros up to the end marker":
        data[offset + third : offset + count - 2] = bytes(count - third - 2)
    elif kind == "all zeros":
        data[offset : offset + count] = bytes(count)
    path.write_bytes(data)
