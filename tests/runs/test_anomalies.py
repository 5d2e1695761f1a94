"""`wsiad train --anomalies`: what is learnt from, refused and recorded; no leak."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from sklearn.metrics import roc_auc_score

import wsiad
from support.builders import import_images, stained, write_tiff
from support.labelled import tiles
from wsiad.core.errors import ConfigError, DetectorError, InputError, StoreMismatchError
from wsiad.detectors import registry
from wsiad.learning.detector import Detector, FitReport, State
from wsiad.runs.anomalies import spread
from wsiad.runs.split import split_slides
from wsiad.slides.slide_table import SlideTable
from wsiad.store.tile_task import TileRow

PROBE = {"layers": ["features.3"], "magnify": 1, "places": 4}


def add(folder, name, count, *, anomalous=False, **values):
    made = tiles(count, seed=sum(map(ord, name)), anomalous=anomalous)
    import_images(folder / "in" / name, made, **values)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    for name in ("h0", "h1", "h2", "h3", "both"):
        add(folder / "healthy", name, 12, out=folder / "store", label="normal")
    for name, label, split in (
        ("both", "Tumor", "a"), ("t1", "tumor", "a"), ("n1", "necrosis", "b"), ("x", "", "a"),
        ("h9", "normal", "a"),
    ):  # fmt: skip
        add(folder / "odd", name, 5, anomalous=True, out=folder / "odd-store", label=label,
            split=split)  # fmt: skip
    return folder / "store", folder / "odd-store"


def train(stores, out, **values):
    given = {"detector": "linear-probe", "options": PROBE, "anomalies": stores[1], **values}
    return wsiad.train(store=stores[0], out=out, weights="random", quiet=True, **given)


def record(run):
    return json.loads((run / "run.json").read_text())


class Seen(Detector):
    """Keeps which tiles it was given."""

    uses_anomalies = True
    given: dict = {}

    def fit(self, tiles, context):
        def whole(source):
            return {tile.tobytes() for part in source.ordered(64) for tile in part}

        kinds = context.anomalies.types if context.anomalies else ()
        kinds = {kind.name: (whole(kind.tiles), kind.slides) for kind in kinds}
        Seen.given = {"fit": whole(tiles.fit), "stop": whole(tiles.stop), "calibrated": set(),
                      "types": kinds}  # fmt: skip
        return FitReport("fitted")

    def score_places(self, tiles):
        Seen.given["calibrated"] |= {tile.tobytes() for tile in tiles}
        return tiles[:, :1, :1, 0].astype(np.float32)

    def state(self):
        import torch

        return State({"none": torch.zeros(1)}, {})

    def load_state(self, state, device):
        pass


@pytest.fixture
def _seen(monkeypatch):
    whole = registry.load
    monkeypatch.setattr(registry, "load", lambda n: Seen if n == "seen" else whole(n))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.usefixtures("_seen")
def test_slides_of_both_stores_are_never_held_out(stores, tmp_path, seed):
    train(stores, tmp_path / "run", detector="seen", options={}, seed=seed)
    from wsiad.store.tile_store import TileStore

    both = {tile.tobytes() for tile in TileStore(stores[0]).slide("both").tiles(0, 12)}
    assert both <= Seen.given["fit"]
    assert not both & (Seen.given["stop"] | Seen.given["calibrated"])
    assert not Seen.given["fit"] & Seen.given["calibrated"]
    assert record(tmp_path / "run")["notes"]["anomalies"]["slides_fitted_on_whole"] == ["both"]
    assert "both" in record(tmp_path / "run")["slides"]["fit"]
    assert "both" in record(tmp_path / "run")["slides"]["anomalies"]


@pytest.mark.usefixtures("_seen")
def test_types_are_the_labels_and_slides_follow_the_tiles(stores, tmp_path):
    train(stores, tmp_path / "run", detector="seen", options={})
    types = Seen.given["types"]
    assert {name: slides for name, (_, slides) in types.items()} == {
        "necrosis": ("n1",) * 5,
        "tumor": ("both",) * 5 + ("t1",) * 5,
    }
    noted = record(tmp_path / "run")["notes"]["anomalies"]
    assert noted["tiles"] == 15
    assert noted["types"] == {"necrosis": 5, "tumor": 10}
    assert noted["slides"] == ["both", "n1", "t1"]
    assert noted["slides_not_used"] == {"h9": "label is 'normal'", "x": "it has no label"}
    assert (noted["store"], noted["fingerprint"][:7]) == ("odd-store", "sha256:")


@pytest.mark.parametrize(
    ("choice", "types", "slides"),
    [
        ({"anomaly_types": "tumor"}, {"tumor": 10}, ["both", "t1"]),
        ({"anomaly_types": "Tumor, necrosis"}, {"necrosis": 5, "tumor": 10}, ["both", "n1", "t1"]),
        ({"anomaly_tiles": 3}, {"necrosis": 1, "tumor": 2}, ["both", "n1", "t1"]),
        ({"anomaly_tiles": 99}, {"necrosis": 5, "tumor": 10}, ["both", "n1", "t1"]),
    ],
)
def test_choice_of_types_and_tiles(stores, tmp_path, choice, types, slides):
    result = train(stores, tmp_path / "run", **choice)
    noted = record(tmp_path / "run")["notes"]["anomalies"]
    assert (noted["types"], noted["slides"]) == (types, slides)
    assert f"{sum(types.values())} anomalous tiles" in result.summary


def test_the_split_holds_for_anomalies_too(stores, tmp_path):
    healthy, odd = stores
    for name in ("h0", "h1", "h2", "h3"):
        add(tmp_path, name, 12, out=tmp_path / "store", label="normal", split="A")
    train((tmp_path / "store", odd), tmp_path / "run", split="A")
    noted = record(tmp_path / "run")["notes"]["anomalies"]
    assert noted["slides"] == ["both", "t1"]
    assert noted["slides_not_used"]["n1"] == "split is not 'a'"
    for name in ("g0", "g1", "g2", "g3"):
        add(tmp_path, name, 12, out=tmp_path / "store", label="normal", split="c")
    with pytest.raises(InputError) as caught:
        train((tmp_path / "store", odd), tmp_path / "c", split="C")
    assert str(caught.value) == (
        f"{odd}: has no anomalous slide with tiles in the split 'c'; those of its anomalous "
        "slides: 'a', 'b'. Set --split to one of these, or leave it out."
    )
    with pytest.raises(InputError, match="no healthy slide of it has a split"):
        train((healthy, odd), tmp_path / "c", split="a")
    table = SlideTable(tmp_path / "store" / "slides.csv", TileRow)
    table.put(TileRow("gone", "failed", "is cut off", split="d"))
    said = (
        r"in the split 'd' \(gone: failed: is cut off\); those of its healthy slides: 'a', 'c'\. "
    )
    with pytest.raises(InputError, match=said):
        train((tmp_path / "store", odd), tmp_path / "c", split="d")
    assert not (tmp_path / "c").exists()


def test_same_seed_same_run(stores, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(stores, tmp_path / name, anomaly_tiles=4, seed=seed)
    a, b, c = (load_file(tmp_path / name / "weights.safetensors") for name in "abc")
    assert all(np.array_equal(a[key], b[key]) for key in a)
    assert not np.array_equal(a["fitted.weight"], c["fitted.weight"])
    assert train(stores, tmp_path / "a", anomaly_tiles=4, seed=1).summary.endswith("(fitted)")


def test_what_does_not_fit_is_refused(stores, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(DetectorError, match=r"healthy tiles only.*choose one of .*linear-probe"):
        train(stores, out, detector="knn", options={})
    with pytest.raises(DetectorError, match="learns from labelled anomalous tiles"):
        train(stores, out, anomalies=None)
    with pytest.raises(DetectorError, match=r"labels of anomalous slides, .* whole slides"):
        train(stores, out, detector="mil", options={}, anomalies=None)
    with pytest.raises(DetectorError, match=r"one-class: learns from a reference set.*classes"):
        train(stores, out, detector="one-class", options=COMPACT, anomalies=None)
    with pytest.raises(ConfigError, match="choose from `anomalies`"):
        train(stores, out, anomalies=None, anomaly_tiles=3)
    with pytest.raises(InputError, match=r"no slide to learn from with the label 'mitosis'"):
        train(stores, out, anomaly_types=["tumor", "mitosis"])
    with pytest.raises(InputError, match=r"no anomalous slide.*label is"):
        train(stores, out, anomalies=stores[0])
    add(tmp_path, "other", 3, anomalous=True, out=tmp_path / "other", label="tumor", mpp=1)
    with pytest.raises(StoreMismatchError, match="another mpp"):
        train(stores, out, anomalies=tmp_path / "other")
    assert not out.exists()


def test_slide_tiled_whole_is_warned_of(tmp_path, stores, caplog):
    write_tiff(tmp_path / "s.tif", stained(160, 208), mpp=0.5, levels=1)
    (tmp_path / "m.csv").write_text("slide,label\ns.tif,tumor\n")
    wsiad.tile(slides=tmp_path / "m.csv", out=tmp_path / "store", mpp=0.5, tile=32, quiet=True,
               stain={"method": "none"}, tissue={"min_area_um2": 0})  # fmt: skip
    train(stores, tmp_path / "run", anomalies=tmp_path / "store")
    assert "every stored tile of s counts as anomalous" in caplog.text


def test_tiles_at_given_places_are_not_warned_of(tmp_path, stores, caplog):
    write_tiff(tmp_path / "s.tif", stained(160, 208), mpp=0.5, levels=1)
    (tmp_path / "m.csv").write_text("slide,label\ns.tif,tumor\n")
    ring = [[0, 0], [120, 0], [120, 120], [0, 120], [0, 0]]
    area = {"type": "Polygon", "coordinates": [ring]}
    kind = {"classification": {"name": "Tumor"}, "objectType": "annotation"}
    (tmp_path / "s.geojson").write_text(
        json.dumps({"type": "Feature", "geometry": area, "properties": kind})
    )
    wsiad.tile(slides=tmp_path / "m.csv", coords=tmp_path, out=tmp_path / "store", mpp=0.5, tile=32,
               quiet=True, stain={"method": "none"}, tissue={"min_area_um2": 0})  # fmt: skip
    train(stores, tmp_path / "run", anomalies=tmp_path / "store")
    assert "s" in record(tmp_path / "run")["slides"]["anomalies"]
    assert "counts as anomalous" not in caplog.text


def test_spread_takes_of_every_slide_before_a_second_of_any():
    usable = {"a": np.arange(100), "b": np.arange(5, 7), "c": np.arange(10), "d": np.arange(0)}
    for most in (1, 3, 7, 30):
        counts = {name: len(found) for name, found in spread(usable, most, seed=3).items()}
        assert sum(counts.values()) == most
        fair = [min(counts[name], len(usable[name])) for name in "abc"]
        full = [count for count, name in zip(fair, "abc", strict=True) if count < len(usable[name])]
        assert max(full) - min(full) <= 1
        assert all(max(full) >= count for count in fair)
    small, large = (spread(usable, most, seed=3) for most in (4, 9))
    assert all(set(small[name]) <= set(large[name]) <= set(usable[name]) for name in usable)
    everything = spread(usable, None, seed=3)
    assert all(np.array_equal(everything[name], usable[name]) for name in usable)


def test_split_keeps_slides_to_fit_on():
    slides = [(f"s{i}", 10) for i in range(8)]
    found = split_slides(slides, seed=0, only_fit=["s3", "s5", "absent"])
    assert {"s3", "s5"} <= {part.slide for part in found.fit}
    parts = [{part.slide for part in p} for p in (found.fit, found.stop, found.calibration)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 8
    # The others are split as if these were not there.
    free = [slide for slide in slides if slide[0] not in ("s3", "s5")]
    alone = split_slides(free, seed=0)
    assert {part.slide for part in alone.stop} == parts[1]
    with pytest.raises(InputError, match="8 of 8 healthy slides also hold anomalous tiles"):
        split_slides(slides, seed=0, only_fit=[name for name, _ in slides])


def test_report_says_what_was_seen_and_measures_on_what_was_not(stores, tmp_path):
    train(stores, tmp_path / "run", anomaly_types=["tumor"])
    for name, label, anomalous in (
        ("new", "normal", False), ("t9", "tumor", True), ("both", "tumor", True),
        ("n9", "necrosis", True),
    ):  # fmt: skip
        add(tmp_path, name, 8, anomalous=anomalous, out=tmp_path / "test", label=label)
    result = wsiad.score_tiles(
        run=tmp_path / "run", store=tmp_path / "test", out=tmp_path / "scores", quiet=True
    )
    scores = {group.name: group.scores for group in result.groups}
    expected = {
        label: roc_auc_score([0] * 8 + [1] * 8, np.concatenate([scores["new"], scores[name]]))
        for label, name in (("necrosis", "n9"), ("tumor", "t9"))
    }
    found = json.loads(result.evaluation.read_text())["by_type"]
    keys = ("label", "learnt_from", "tiles", "left_out")
    assert [tuple(kind[key] for key in keys) for kind in found] == [
        ("necrosis", False, 8, []),
        ("tumor", True, 8, ["both"]),
    ]
    assert {kind["label"]: kind["tile_auroc"] for kind in found} == pytest.approx(expected)
    assert "necrosis (not seen in training): tile AUROC" in result.summary
    assert "tumor (learnt from): tile AUROC" in result.summary
    assert "without 1 slide that was fitted on" in result.summary


COMPACT = {"objective": "compact", "layers": ["features.3"], "places": 1, "steps": 2}


def test_a_reference_set_is_not_called_anomalous(stores, tmp_path, caplog):
    from wsiad.heatmaps.heatmap_task import HeatmapRow
    from wsiad.report.remarks import general_notes
    from wsiad.runs.run import RunFolder

    run = tmp_path / "run"
    result = train(stores, run, detector="one-class", options=COMPACT)
    assert record(run)["notes"]["anomalies"]["labels_of"] == "reference"
    assert "15 reference tiles of 3 slides, too: necrosis, tumor; none of them" in result.summary
    notes = " ".join(general_notes([HeatmapRow("t1", "ok")], RunFolder.open(run).record()))
    assert "15 reference tiles of 3 slides: necrosis, tumor. None of them counts as" in notes
    for text in (result.summary, notes, caplog.text):
        assert "anomalous tile" not in text


def test_html_report_notes_the_types(stores, tmp_path):
    from wsiad.heatmaps.heatmap_task import HeatmapRow
    from wsiad.report.remarks import general_notes
    from wsiad.runs.run import RunFolder

    train(stores, tmp_path / "run", anomaly_tiles=3)
    row = HeatmapRow("t1", "ok")
    notes = " ".join(general_notes([row], RunFolder.open(tmp_path / "run").record()))
    assert "trained on 3 anomalous tiles of 3 slides: necrosis, tumor." in notes
    assert "trained on slides that are scored here: t1." in notes
