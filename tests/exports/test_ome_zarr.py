"""OME-Zarr read back by zarr, and its metadata against the rules of OME-NGFF 0.5."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile
import zarr

from support.builders import make_heatmap
from wsiad.core.errors import ExportError
from wsiad.core.geometry import Box, PixelMap, Size, Spacing
from wsiad.exports.ome import write_ome_tiff, write_ome_zarr


def heatmap_of(shape=(300, 700), slide="a"):
    scores = np.random.default_rng(0).random(shape).astype(np.float32)
    scores[: shape[0] // 2, : shape[1] // 3] = np.nan
    placement, bounds = PixelMap(33.5, -7.25, 130.13, 127.91), Box(10, 20, 90_000, 90_000)
    return make_heatmap(
        scores, placement, slide=slide, size=Size(99_000, 99_000), bounds=bounds,
        spacing=Spacing(0.25, 0.5),
    )  # fmt: skip


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "heatmap.ome.zarr"
    write_ome_zarr(heatmap_of(), path)
    return path


def multiscale(path):
    return json.loads((path / "zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]


def test_the_metadata_keeps_the_rules_of_the_specification(written):
    group = json.loads((written / "zarr.json").read_text())
    assert (group["zarr_format"], group["node_type"]) == (3, "group")
    assert group["attributes"]["ome"]["version"] == "0.5"
    (found,) = group["attributes"]["ome"]["multiscales"]
    axes = found["axes"]
    assert 2 <= len(axes) <= 5
    assert len({axis["name"] for axis in axes}) == len(axes)
    assert [axis["type"] for axis in axes] == ["space", "space"]
    assert {axis["unit"] for axis in axes} == {"micrometer"}
    sizes = []
    for dataset in found["datasets"]:
        scale, translation = dataset["coordinateTransformations"]  # in this order
        assert (scale["type"], translation["type"]) == ("scale", "translation")
        assert len(scale["scale"]) == len(translation["translation"]) == len(axes)
        array = json.loads((written / dataset["path"] / "zarr.json").read_text())
        assert (array["zarr_format"], array["node_type"]) == (3, "array")
        assert array["dimension_names"] == [axis["name"] for axis in axes]
        assert (array["data_type"], array["fill_value"]) == ("float32", "NaN")
        sizes.append(array["shape"])
    assert sizes == sorted(sizes, reverse=True)  # the largest first
    assert "omero" not in group["attributes"]["ome"]


def test_scores_are_those_of_the_ome_tiff(written, tmp_path):
    write_ome_tiff(heatmap_of(), tmp_path / "heatmap.ome.tif")
    group = zarr.open_group(written, mode="r")
    with tifffile.TiffFile(tmp_path / "heatmap.ome.tif") as tiff:
        levels = [level.asarray() for level in tiff.series[0].levels]
    paths = [dataset["path"] for dataset in multiscale(written)["datasets"]]
    assert len(paths) == len(levels) == 3
    for path, level in zip(paths, levels, strict=True):
        np.testing.assert_array_equal(group[path][:], level)
    np.testing.assert_array_equal(group["0"][:], heatmap_of().scores)


def test_every_level_lies_over_the_same_part_of_the_slide(written):
    """Pixel centres: the left edge is half a pixel before the first, in all levels."""
    heatmap = heatmap_of()
    spacing = np.array([heatmap.spacing.y, heatmap.spacing.x])
    for level, dataset in enumerate(multiscale(written)["datasets"]):
        scale, shift = (
            np.array(transform[transform["type"]])
            for transform in dataset["coordinateTransformations"]
        )
        pitch = np.array([heatmap.placement.scale_y, heatmap.placement.scale_x])
        np.testing.assert_allclose(scale, pitch * spacing * 2**level)
        # The slide's pixel (0, 0) has its centre at 0 and its corner half a pixel before.
        corner = (shift - scale / 2) / spacing + 0.5
        np.testing.assert_allclose(corner, [heatmap.placement.y, heatmap.placement.x])


def test_equal_heatmaps_give_equal_files(written, tmp_path):
    other = tmp_path / "other.ome.zarr"
    write_ome_zarr(heatmap_of(), other)
    files = sorted(p.relative_to(written) for p in written.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(other) for p in other.rglob("*") if p.is_file())
    for file in files:
        assert (written / file).read_bytes() == (other / file).read_bytes()


@pytest.mark.parametrize("slide", ["a b", 'say "hi" <b>', "Größe 腺癌"])
def test_names_and_small_maps(tmp_path, slide):
    path = tmp_path / "h.ome.zarr"
    write_ome_zarr(heatmap_of((1, 1), slide), path)
    assert multiscale(path)["name"] == f"{slide} anomaly score"
    assert zarr.open_group(path, mode="r")["0"].shape == (1, 1)
    write_ome_zarr(heatmap_of((2, 3), slide), path)  # in place of the first
    assert zarr.open_group(path, mode="r")["0"].shape == (2, 3)


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(ExportError):
        write_ome_zarr(heatmap_of(), tmp_path / "a.zarr")
    assert not list(tmp_path.iterdir())
