"""Draw 20 slides to practise on: 12 healthy ones to learn from, and 8 to score.

    python examples/draw_slides.py slides/

The slides are drawn by arithmetic; they are not real tissue (`slides/*/README.txt`). Lesions are
outlined in ASAP's XML, and `slides/new/reference.csv` says which slides have any. The same seed
draws the same slides.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from wsiad.synthetic.slides import make_slides


def main() -> None:
    """Draw the slides of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the slides")
    parser.add_argument("--size-px", type=int, nargs=2, default=(4608, 3456), help="width, height")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    size = tuple(options.size_px)
    make_slides(options.out / "healthy", healthy=12, tumorous=0, size_px=size, seed=options.seed)
    make_slides(options.out / "new", healthy=3, tumorous=5, size_px=size, seed=options.seed + 1)


if __name__ == "__main__":
    main()
