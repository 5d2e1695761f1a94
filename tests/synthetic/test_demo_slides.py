"""Demo slides: valid files, exact outlines, lesions that look unlike healthy tissue."""

from __future__ import annotations

import csv
from itertools import pairwise

import cv2
import defusedxml.ElementTree as ElementTree
import numpy as np
import openslide
import pytest
from scipy import ndimage
from shapely.geometry import Polygon, box
from skimage.measure import label, regionprops

from wsiad.core.errors import InputError
from wsiad.synthetic import render as demo_render
from wsiad.synthetic.anatomy import Nuclei, lay_out
from wsiad.synthetic.render import draw
from wsiad.synthetic.slides import make_slides, write_pyramid

SIZE, MPP = (1536, 1152), 0.972
SMALL = {"size_px": (640, 512), "mpp": 0.972, "quiet": True}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    return make_slides(out, healthy=2, tumorous=3, size_px=SIZE, mpp=MPP, seed=7, quiet=True)


def level0(slide):
    with openslide.OpenSlide(str(slide.path)) as opened:
        return np.asarray(opened.read_region((0, 0), 0, opened.dimensions).convert("RGB"))


def rings(slide):
    root = ElementTree.parse(slide.annotations).getroot()
    for annotation in root.iterfind("Annotations/Annotation"):
        points = annotation.findall("Coordinates/Coordinate")
        points.sort(key=lambda point: int(point.get("Order")))
        yield [(float(point.get("X")), float(point.get("Y"))) for point in points]


def filled(slide, shape, scale=1.0):
    mask = np.zeros(shape, np.uint8)
    for ring in rings(slide):
        cv2.fillPoly(mask, [np.round(np.array(ring) * scale).astype(np.int32)], 1)
    return mask.astype(bool)


def density(rgb):
    return -np.log(np.clip(rgb.astype(np.float64), 1, None) / 243)


def test_openslide_reads_every_slide_with_its_scale_and_levels(made):
    assert [s.path.name for s in made] == [
        *("normal_001.tif", "normal_002.tif"),
        *("tumor_001.tif", "tumor_002.tif", "tumor_003.tif"),
    ]
    for made_slide in made:
        with openslide.OpenSlide(str(made_slide.path)) as slide:
            assert slide.properties["openslide.vendor"] == "generic-tiff"
            assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(MPP, rel=1e-6)
            assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(MPP, rel=1e-6)
            assert "not real tissue" in slide.properties["openslide.comment"]
            assert slide.level_dimensions == ((1536, 1152), (768, 576))


def test_the_pyramid_halves_down_to_below_1024_px_and_shows_the_same(tmp_path):
    rng = np.random.default_rng(0)
    image = cv2.resize(
        rng.integers(80, 255, (9, 20, 3), np.uint8), (4301, 1901), interpolation=cv2.INTER_CUBIC
    )
    write_pyramid(tmp_path / "a.tif", image, mpp=0.25)
    with openslide.OpenSlide(str(tmp_path / "a.tif")) as slide:
        assert slide.level_dimensions == ((4301, 1901), (2150, 950), (1075, 475), (537, 237))
        for level, size in enumerate(slide.level_dimensions):
            shown = np.asarray(slide.read_region((0, 0), level, size).convert("RGB"))
            expected = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            difference = np.abs(shown.astype(int) - expected)
            assert difference.mean() < 2
            assert difference[-4:].mean() < 3  # no black from beyond the edge
            assert difference[:, -4:].mean() < 3


def test_the_same_seed_gives_the_same_files_whatever_else_is_made(tmp_path):
    few = make_slides(tmp_path / "few", healthy=1, tumorous=1, seed=3, **SMALL)
    many = make_slides(tmp_path / "many", healthy=2, tumorous=1, seed=3, **SMALL)
    other = make_slides(tmp_path / "other", healthy=1, tumorous=1, seed=4, **SMALL)
    by_name = {s.path.name: s for s in many}
    for slide, different in zip(few, other, strict=True):
        same = by_name[slide.path.name]
        assert slide.path.read_bytes() == same.path.read_bytes()
        assert slide.path.read_bytes() != different.path.read_bytes()
    tumorous = few[1]
    assert tumorous.annotations.read_text() == by_name["tumor_001.tif"].annotations.read_text()
    assert (
        by_name["normal_001.tif"].path.read_bytes() != by_name["normal_002.tif"].path.read_bytes()
    )


def test_reference_and_readme_say_what_the_slides_are(made):
    folder = made[0].path.parent
    with (folder / "reference.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["image", "type"],
            *([f"normal_00{i}", "normal"] for i in (1, 2)),
            *([f"tumor_00{i}", "tumor"] for i in (1, 2, 3)),
        ]
    assert "nothing\nabout real tissue" in (folder / "README.txt").read_text()
    assert {p.name for p in folder.iterdir()} == {
        *(s.path.name for s in made),
        *(s.annotations.name for s in made if s.annotations),
        *("reference.csv", "README.txt"),
    }


def test_annotations_are_asap_xml_with_declared_groups(made):
    for slide in made:
        assert (slide.annotations is None) == slide.path.name.startswith("normal")
        if slide.annotations is None:
            continue
        assert "not real tissue" in slide.annotations.read_text()
        root = ElementTree.parse(slide.annotations).getroot()
        assert root.tag == "ASAP_Annotations"
        groups = [group.get("Name") for group in root.iterfind("AnnotationGroups/Group")]
        assert groups == ["_0"]
        found = root.findall("Annotations/Annotation")
        assert len(found) == slide.lesions >= 1
        for annotation in found:
            assert annotation.get("PartOfGroup") == "_0"
            assert annotation.get("Type") == "Polygon"


def test_lesions_are_simple_shapes_within_the_slide_and_well_apart(made):
    frame = box(0, 0, *SIZE)
    for slide in made[2:]:
        polygons = [Polygon(ring) for ring in rings(slide)]
        assert all(polygon.is_valid and frame.contains(polygon) for polygon in polygons)
        for index, polygon in enumerate(polygons):
            for other in polygons[index + 1 :]:
                assert polygon.distance(other) * MPP > 90


def test_every_tumorous_slide_has_a_lesion_that_is_no_isolated_tumour_cells(made):
    # The measure of CAMELYON16: grown by 37.5 µm, longer axis of the ellipse of equal moments.
    grid_um = 7.776
    shape = tuple(int(np.ceil(n * MPP / grid_um)) for n in SIZE[::-1])
    for slide in made[2:]:
        mask = filled(slide, shape, MPP / grid_um)
        grown = ndimage.distance_transform_edt(~mask) < 37.5 / grid_um
        axes = [r.axis_major_length * grid_um for r in regionprops(label(grown, connectivity=2))]
        assert len(axes) == slide.lesions
        assert max(axes) >= 275


def test_sizes_of_lesions_range_from_small_to_large():
    lengths = []
    for seed in range(4):
        anatomy = lay_out(2240, 1680, lesions=4, rng=np.random.default_rng(seed))
        lengths += [cv2.minEnclosingCircle(o.astype(np.float32))[1] * 2 for o in anatomy.lesions]
    assert min(lengths) < 150
    assert max(lengths) > 450


def test_nuclei_within_an_outline_are_unlike_those_outside(made):
    for slide in made[2:]:
        rgb = level0(slide)
        lesion = filled(slide, rgb.shape[:2])
        red = density(rgb)[..., 0]  # haematoxylin takes red light, eosin hardly
        dark = red > 0.55 * np.quantile(red, 0.95)
        signed_um = MPP * (
            ndimage.distance_transform_edt(lesion) - ndimage.distance_transform_edt(~lesion)
        )
        tissue = ndimage.binary_erosion(ndimage.uniform_filter(red, 40) > 0.1, iterations=30)
        within, without = dark[lesion], dark[tissue & (signed_um < -10)]
        assert within.mean() < 0.5 * without.mean()
        # The change lies at the outline, not somewhere near it.
        bands = [(-30, -12), (12, 30)]
        outer, inner = (
            dark[(signed_um > low) & (signed_um < high) & tissue].mean() for low, high in bands
        )
        assert inner < 0.6 * outer


def test_glass_is_bright_and_tissue_covers_about_half(made):
    for slide in made:
        rgb = level0(slide)
        corner = rgb[:12, :12].astype(float)
        assert 238 < corner.mean() < 248
        assert corner.std(axis=(0, 1)).max() < 3
        smooth = cv2.GaussianBlur(rgb, (0, 0), 8).min(axis=2)
        assert 0.4 < (smooth < 225).mean() < 0.75


def test_light_follows_beer_lambert_with_two_stains_that_differ_between_slides():
    directions = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        anatomy = lay_out(700, 560, lesions=0, rng=rng)
        rgb = draw(anatomy, size_px=(700, 560), mpp=1.0, rng=rng)
        pixels = density(rgb).reshape(-1, 3)
        pixels = pixels[(pixels.sum(1) > 0.6) & (rgb.reshape(-1, 3).min(1) > 10)]
        _, values, axes = np.linalg.svd(pixels, full_matrices=False)
        assert values[2] < 0.05 * values[1]  # a plane: two stains, no third colour
        directions.append(axes[2] * np.sign(axes[2][0]))
    angles = [np.degrees(np.arccos(np.clip(a @ b, -1, 1))) for a, b in pairwise(directions)]
    assert max(angles) > 2


def test_the_picture_does_not_show_its_blocks(monkeypatch):
    def picture():
        rng = np.random.default_rng(5)
        anatomy = lay_out(480, 420, lesions=1, rng=rng)
        return draw(anatomy, size_px=(800, 700), mpp=0.6, rng=rng).astype(int)

    whole = picture()
    monkeypatch.setattr(demo_render, "_BLOCK_PX", 250)
    difference = np.abs(picture() - whole)
    assert difference.mean() < 0.02
    assert (difference > 8).mean() < 1e-3


def test_axes_of_a_nucleus():
    one = {name: np.array([value], np.float32) for name, value in _nucleus().items()}
    m = Nuclei(**one).to_axes()[0]
    tip = np.array([100 + 10 * 2 * np.cos(0.5), 50 + 10 * 2 * np.sin(0.5), 1])
    side = np.array([100 - 10 / 2 * np.sin(0.5), 50 + 10 / 2 * np.cos(0.5), 1])
    assert (m[:3] @ tip, m[3:] @ tip) == pytest.approx((1, 0), abs=1e-5)
    assert (m[:3] @ side, m[3:] @ side) == pytest.approx((0, 1), abs=1e-5)


def _nucleus():
    shape = {"x": 100, "y": 50, "radius": 10, "elongation": 4, "angle": 0.5}
    return shape | dict.fromkeys(("haematoxylin", "vesicular", "nucleolus", "rough"), 0)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"healthy": 0, "tumorous": 0}, "at least one slide"),
        ({"healthy": -1, "tumorous": 2}, "-1 healthy"),
        ({"size_px": (4000, 300)}, "4000 × 300 px at 0.486"),
        ({"mpp": 0.0}, "0.1 to 1 µm/px"),
        ({"mpp": float("nan")}, "0.1 to 1 µm/px"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_written(tmp_path, wrong, says):
    with pytest.raises(InputError, match=says):
        make_slides(tmp_path / "out", **({"healthy": 1, "tumorous": 1} | wrong))
    assert not (tmp_path / "out").exists()


def test_a_slide_that_cannot_be_written_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tifffile.TiffWriter.write", full)
    with pytest.raises(OSError, match="No space left"):
        make_slides(tmp_path, healthy=1, tumorous=0, **SMALL)
    assert list(tmp_path.iterdir()) == []
