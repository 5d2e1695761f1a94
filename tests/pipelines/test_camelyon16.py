"""CAMELYON16 as one pipeline, on a small imitation in the layout of the data set."""

import csv
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import shapely

from support.builders import stained, write_tiff
from wsiad.annotations import read_annotations
from wsiad.core.errors import InputError

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "pipelines" / "camelyon16"
SHARED = Path(__file__).parents[3] / "shared"


def _module(name):
    spec = importlib.util.spec_from_file_location(f"camelyon16_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


dataset, draw, table = _module("dataset"), _module("draw"), _module("table")

TILE, MPP = draw.TILE_PX, draw.TILE_MPP
WIDTH, HEIGHT = 5 * TILE + 40, 4 * TILE + 30
OUTLINE = (150, 100, 850, 700)
"""Left, top, right and bottom of the tumour: six tiles lie within it."""


def xml(left, top, right, bottom):
    corners = ((left, top), (right, top), (right, bottom), (left, bottom))
    rows = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(corners))
    return (
        '<?xml version="1.0"?><ASAP_Annotations><Annotations><Annotation Name="a" Type="Polygon" '
        f'PartOfGroup="_0" Color="#F4FA58"><Coordinates>{rows}</Coordinates></Annotation>'
        '</Annotations><AnnotationGroups><Group Name="_0" PartOfGroup="None" Color="#000000">'
        "<Attributes/></Group></AnnotationGroups></ASAP_Annotations>"
    )


def slide(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tiff(path, stained(HEIGHT, WIDTH, seed=seed), mpp=MPP, levels=3)


TRUTH = {"test_001": "normal", "test_002": "normal", "test_013": "tumor", "test_114": "tumor"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Training and test slides, errata among them, with the outlines zipped as they come."""
    root = tmp_path_factory.mktemp("camelyon") / "CAMELYON16"
    for seed, number in enumerate((1, 2, 3, 27, 86, 144)):
        slide(root / "training" / "normal" / f"normal_{number:03d}.tif", seed)
    for seed, number in enumerate((10, 16), start=10):
        slide(root / "training" / "tumor" / f"tumor_{number:03d}.tif", seed)
    for seed, name in enumerate([*TRUTH, "test_049"], start=20):
        slide(root / "testing" / "images" / f"{name}.tif", seed)
    for folder, names in (
        ("training", ["tumor_010", "tumor_016"]),
        ("testing", ["test_013", "test_114"]),
    ):
        with zipfile.ZipFile(root / folder / "lesion_annotations.zip", "w") as archive:
            for name in names:
                archive.writestr(f"{folder}/{name}.xml", xml(*OUTLINE))
            archive.writestr("../../escaped.xml", "<a/>")
    rows = [("image", "type", "mask"), *((name, kind, "") for name, kind in TRUTH.items())]
    with (root / "testing" / "reference.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root


def listed(path, column="slide"):
    with path.open(newline="") as file:
        return [row[column] for row in csv.DictReader(file)]


def names(path):
    return [Path(slide).stem for slide in listed(path)]


def test_who_takes_part(root, tmp_path):
    said = dataset.prepare(root, tmp_path)
    assert "6 of 159 normal, 2 of 111 tumor, 5 of 129 test" in said
    lists = tmp_path / "lists"
    assert names(lists / "train.csv") == ["normal_001", "normal_002", "normal_003"]
    assert names(lists / "tune.csv") == ["tumor_016"]
    assert names(lists / "test.csv") == list(TRUTH)
    assert listed(lists / "test.csv", "label") == list(TRUTH.values())
    assert (
        dict(
            zip(
                listed(lists / "reference.csv", "image"),
                listed(lists / "reference.csv", "type"),
                strict=True,
            )
        )
        == TRUTH
    )
    left_out = names(lists / "left_out.csv")
    assert left_out == [
        "normal_027",
        "normal_086",
        "normal_144",
        "test_049",
        "test_114",
        "tumor_010",
    ]
    assert all(listed(lists / "left_out.csv", "reason"))
    assert (lists / "not_in_froc.txt").read_text() == "test_114"
    there = sorted(path.stem for path in (tmp_path / "annotations").iterdir())
    assert there == ["test_013", "test_114", "tumor_016"]
    assert not list(root.parent.glob("escaped*"))
    before = {path: path.read_bytes() for path in lists.iterdir()}
    dataset.prepare(root, tmp_path)
    assert before == {path: path.read_bytes() for path in lists.iterdir()}


def test_flat_layout_and_names_of_another_case(root, tmp_path):
    flat = tmp_path / "flat"
    (flat / "images").mkdir(parents=True)
    (flat / "annotations").mkdir()
    (flat / "images" / "Test_013.tif").symlink_to(root / "testing" / "images" / "test_013.tif")
    (flat / "annotations" / "test_013.xml").write_text(xml(*OUTLINE))
    (flat / "reference.csv").write_text("image,type\nTest_013,Tumor\n")
    dataset.prepare(flat, tmp_path / "out")
    assert names(tmp_path / "out" / "lists" / "test.csv") == ["Test_013"]
    assert (tmp_path / "out" / "annotations" / "Test_013.xml").exists()
    assert listed(tmp_path / "out" / "lists" / "reference.csv", "image") == ["Test_013"]


def test_what_is_missing_is_said(root, tmp_path):
    with pytest.raises(InputError, match="no slide of CAMELYON16"):
        dataset.prepare(ROOT / "docs", tmp_path)
    images = tmp_path / "images"
    images.mkdir()
    for name in ("test_013", "test_001"):
        (images / f"{name}.tif").symlink_to(root / "testing" / "images" / f"{name}.tif")
    with pytest.raises(InputError, match="0 files reference"):
        dataset.prepare(tmp_path, tmp_path / "out")
    (tmp_path / "reference.csv").write_text("image,type\ntest_013,tumor\n")
    with pytest.raises(InputError, match="says nothing of test_001"):
        dataset.prepare(tmp_path, tmp_path / "out")
    (tmp_path / "reference.csv").write_text("image,type\ntest_013,tumor\ntest_001,normal\n")
    with pytest.raises(InputError, match="test_013 hold tumour, and there are no outlines"):
        dataset.prepare(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out" / "lists").exists()
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "test_001.tif").symlink_to(root / "testing" / "images" / "test_001.tif")
    with pytest.raises(InputError, match="twice"):
        dataset.prepare(tmp_path, tmp_path / "out")


def corners(path):
    with h5py.File(path) as file:
        assert file["coords"].attrs["patch_size_level0"] == TILE
        return file["coords"][...]


def test_tiles_lie_on_the_grid_in_tissue_and_within_outlines(root, tmp_path):
    dataset.prepare(root, tmp_path)
    assert draw.draw(tmp_path, most=7, seed=3) == []
    healthy = corners(tmp_path / "coordinates" / "train" / "normal_001.h5")
    assert len(healthy) == 7
    assert (healthy % TILE == 0).all()
    assert len(np.unique(healthy, axis=0)) == 7
    # By hand: of the columns from 0, 192, …, those with 150 ≤ x and x + 192 ≤ 850.
    inside = [(x, y) for y in (192, 384) for x in (192, 384, 576)]
    for part, name in (("tune", "tumor_016"), ("test", "test_013")):
        found = corners(tmp_path / "coordinates" / part / f"{name}.h5")
        assert [tuple(corner) for corner in found.tolist()] == inside
    # Not all of its tumour is outlined, and the authors left it out.
    assert not (tmp_path / "coordinates" / "test" / "test_114.h5").exists()
    assert draw.list_drawn(tmp_path, "test") == (3, 2 * 7 + len(inside))
    assert names(tmp_path / "lists" / "tiles_test.csv") == ["test_001", "test_002", "test_013"]

    again = tmp_path / "again"
    dataset.prepare(root, again)
    draw.draw(again, most=7, seed=3)
    other = tmp_path / "other"
    dataset.prepare(root, other)
    draw.draw(other, most=7, seed=4)
    drawn = [
        corners(folder / "coordinates" / "train" / "normal_001.h5").tolist()
        for folder in (tmp_path, again, other)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_one_bad_slide_is_reported_and_the_others_go_on(root, tmp_path):
    dataset.prepare(root, tmp_path)
    broken = tmp_path / "normal_002.tif"
    broken.write_bytes(b"no slide")
    manifest = tmp_path / "lists" / "train.csv"
    whole = str(root / "training" / "normal" / "normal_002.tif")
    manifest.write_text(manifest.read_text().replace(whole, str(broken)))
    (failed,) = draw.draw(tmp_path, most=3)
    assert failed.startswith("normal_002: ")
    draw.list_drawn(tmp_path, "train")
    assert names(tmp_path / "lists" / "tiles_train.csv") == ["normal_001", "normal_003"]


def test_boxes_within_real_outlines():
    folder = SHARED / "data" / "camelyon16_annotations"
    if not folder.exists():
        pytest.skip(f"{folder} is absent")
    tumour = read_annotations(folder / "tumor_055.xml").tumour()
    left, top, right, bottom = (int(v // 768 * 768) for v in tumour.bounds)
    x, y = np.meshgrid(np.arange(left, right + 1, 768.0), np.arange(top, bottom + 1, 768.0))
    boxes = np.stack([x.ravel(), y.ravel(), np.full(x.size, 768.0), np.full(x.size, 768.0)], axis=1)
    inside = draw.within(boxes, tumour)
    assert 0 < inside.sum() < len(boxes)
    for box, said in zip(boxes[::7], inside[::7], strict=True):
        square = shapely.box(box[0], box[1], box[0] + 768, box[1] + 768)
        # By areas: another way to the same answer.
        assert said == (square.intersection(tumour).area > 768**2 - 1e-3)


@pytest.mark.slow
def test_from_the_folder_to_the_table(root, tmp_path):
    """The script itself, with a detector that is fitted in a moment."""
    (tmp_path / "train.yaml").write_text("detector: gaussian\n")
    environment = {
        "CONFIG": str(tmp_path / "train.yaml"), "WEIGHTS": "wsiad", "PYTHON": sys.executable,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    done = subprocess.run(
        ["bash", str(FOLDER / "run.sh"), str(root), str(tmp_path / "out")],
        env=os.environ | environment, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path / "out" / "camelyon16.md").read_text()
    assert page.strip() in done.stdout
    assert "Not the test set of CAMELYON16: 4 of its 129 slides" in page
    tiles = json.loads((tmp_path / "out" / "tiles" / "evaluation.json").read_text())
    slides = json.loads((tmp_path / "out" / "results" / "evaluation.json").read_text())
    assert f"| **gaussian** (this run) | {tiles['tile_auroc']['value']:.3f}" in page
    assert f"| healthy slides | {slides['slide_auc']['value']:.3f}" in page
    assert slides["exclusions"]["froc"] == ["test_114"]
    assert (slides["counts"]["tumour_slides"], slides["counts"]["slides_in_froc"]) == (2, 3)
    taken = {group["group"]: group["taken_as"] for group in tiles["groups"]}
    assert taken == {"test_001": "normal", "test_002": "normal", "test_013": "tumour"}
    assert names(tmp_path / "out" / "store_tune" / "slides.csv") == ["tumor_016"]


def test_on_slurm_it_is_one_job_that_starts_others():
    text = (FOLDER / "slurm.sbatch").read_text()
    assert "#SBATCH --gres=gpu:1\n" in text
    assert 'exec "${SLURM_SUBMIT_DIR:-.}/pipelines/camelyon16/run.sh" "$1" "$2"' in text
