"""The content of a store as plain values, and options of a plain one."""

PLAIN = {
    "mpp": 0.5,
    "tile": 32,
    "stain": {"method": "none"},
    "tissue": {"min_area_um2": 1000},
    "quiet": True,
}


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
