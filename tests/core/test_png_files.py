"""Pictures and figures as PNG."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from wsiad.core.images import save_figure, save_png
from wsiad.results.overlay import read_picture, write_picture

FAST = b"\x78\x5e"
"""First bytes of a zlib stream of level 2 to 5."""


def stream(path):
    data = path.read_bytes()
    return data[data.index(b"IDAT") + 4 :]


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("name", ["a.png", "a.png.part-17", "a"])
def test_a_picture_keeps_its_pixels_by_any_name(tmp_path, channels, name):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (37, 53, channels), np.uint8)
    picture[:, :20] = 7
    save_png(picture, tmp_path / name)
    with Image.open(tmp_path / name, formats=["PNG"]) as image:
        np.testing.assert_array_equal(np.asarray(image), picture)
    assert stream(tmp_path / name).startswith(FAST)
    assert (tmp_path / name).stat().st_size < picture.nbytes * 0.75


def test_a_picture_of_results_is_read_as_it_was_written(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (200, 1600, 3), np.uint8)
    write_picture(tmp_path / "p.png", picture)
    np.testing.assert_array_equal(read_picture(tmp_path / "p.png"), picture)
    write_picture(tmp_path / "p.png", np.repeat(np.repeat(picture, 2, axis=0), 2, axis=1))
    np.testing.assert_array_equal(read_picture(tmp_path / "p.png"), picture)  # 1600 px at most


def figure(colour="red"):
    made = Figure(figsize=(2, 1), dpi=50)
    made.add_subplot().plot([0, 1], color=colour)
    return made


def test_equal_figures_are_equal_files_that_name_no_program(tmp_path):
    for name in ("a.png", "b.png"):
        save_figure(figure(), tmp_path / name)
    save_figure(figure(), tmp_path / "large.png", dpi=100)
    with Image.open(tmp_path / "a.png") as image, Image.open(tmp_path / "large.png") as large:
        assert (image.size, large.size) == ((100, 50), (200, 100))
        assert "Software" not in image.info
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert stream(tmp_path / "a.png").startswith(FAST)


def test_a_figure_that_cannot_be_drawn_leaves_the_old_one(tmp_path):
    save_figure(figure(), tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    broken = figure()
    broken.axes[0].set_title("$\\frac{1$")
    with pytest.raises(ValueError, match="frac"):
        save_figure(broken, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
