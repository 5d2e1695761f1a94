"""`outlier-exposure`: its start, a toy problem, places, state, resuming, what is refused."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional

from support.labelled import PX, anomalies, healthy, tiles
from wsiad.core.errors import DetectorError, RunError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors import linear_probe, registry
from wsiad.detectors._trained import group
from wsiad.detectors.outlier_exposure import PlaceClassifier
from wsiad.learning.detector import Budget, FitContext, InputSpec, State
from wsiad.networks.features import BackboneFeatures, random_tensors

CPU = torch.device("cpu")
SMALL = {"layer": "features.3", "magnify": 1, "batch": 8, "max_steps": 40, "learning_rate": 1e-3}
HARDLY = {"learning_rate": 1e-12, "max_steps": 1, "weight_decay": 0}


def detector(name="outlier-exposure", px=PX, **options):
    cls = registry.load(name)
    own = SMALL if name == "outlier-exposure" else {}
    return cls(cls.Options(**{**own, **options}), InputSpec(TilePx(px), Mpp(1)))


def context(folder, **values):
    folder.mkdir(exist_ok=True)
    given = {"seed": 1, "weights": "random", "quiet": True, "anomalies": anomalies(), **values}
    return FitContext(device=CPU, folder=folder, **given)


def asked():
    return np.concatenate([tiles(40, seed=8), tiles(40, seed=9, anomalous=True)])


def test_it_starts_as_the_linear_probe(tmp_path):
    found = detector(magnify=2, **HARDLY)
    found.fit(healthy(), context(tmp_path))
    probe = detector("linear-probe", layers=("features.3",), magnify=2, places=1, statistics="mean")
    probe.fit(healthy(), context(tmp_path))
    # The probe rounds enlarged tiles to uint8, as all on frozen features do.
    np.testing.assert_allclose(found.score(asked()), probe.score(asked()), atol=0.05)
    assert np.ptp(probe.score(asked())) > 1


def test_stripes_are_told_from_noise_better_than_by_a_weak_probe(tmp_path, monkeypatch):
    # With its usual strength the probe alone solves this.
    monkeypatch.setitem(linear_probe._STRENGTHS, "logistic", (1e-5,))
    found, start = detector(), detector(**HARDLY)
    report = found.fit(healthy(), context(tmp_path / "trained"))
    start.fit(healthy(), context(tmp_path / "start"))
    assert (report.ended_by, report.steps) == ("max-steps", 40)
    assert report.notes["anomalous_tiles"] == 6
    assert report.notes["best_step"] == 40  # the last: healthy tiles alone tell nothing
    labels = np.repeat([0, 1], 40)
    assert roc_auc_score(labels, found.score(asked())) > 0.95
    losses = [
        functional.binary_cross_entropy_with_logits(
            torch.from_numpy(one.score(asked())), torch.from_numpy(labels).float()
        ).item()
        for one in (found, start)
    ]
    assert losses[0] < losses[1]


def test_places_are_the_linear_layer_on_the_features_there(tmp_path):
    found = detector(places=3, magnify=2, **HARDLY)
    found.fit(healthy(), context(tmp_path))
    state = found.state().tensors
    tensors = group(found.state(), "backbone.network")
    backbone = BackboneFeatures("squeezenet1_1", ["features.3"], 3, tensors)
    images = torch.from_numpy(asked()[:2]).permute(0, 3, 1, 2).float() / 255
    larger = functional.interpolate(images, scale_factor=2.0, mode="bilinear")
    expected = backbone(larger) @ state["head.weight"][0] + state["head.bias"]
    np.testing.assert_allclose(found.score_places(asked()[:2]), expected, rtol=1e-4, atol=1e-4)


def test_a_tile_is_scored_as_the_mean_of_its_features(tmp_path):
    found = detector(magnify=2)
    found.fit(healthy(), context(tmp_path))
    assert found.score_places(asked()[:3]).shape == (3, 15, 15)
    state = found.state().tensors
    vectors = found.embed(asked())
    expected = vectors @ state["head.weight"][0].numpy() + state["head.bias"].numpy()
    np.testing.assert_allclose(found.score(asked()), expected, rtol=1e-4, atol=1e-5)


def test_a_loaded_one_scores_the_same_and_a_damaged_one_is_refused(tmp_path):
    found, again = detector(), detector()
    found.fit(healthy(), context(tmp_path))
    again.load_state(found.state(), CPU)
    np.testing.assert_array_equal(again.score(asked()), found.score(asked()))
    state = found.state()
    damaged = {key: value for key, value in state.tensors.items() if key != "head.weight"}
    with pytest.raises(DetectorError, match="not that of this detector"):
        detector().load_state(State(damaged, state.values), CPU)


def test_random_weights_are_a_beginning(tmp_path, caplog):
    report = detector().fit(healthy(), context(tmp_path))
    assert report.notes["weights"]["source"] == "random, and then trained"
    assert "warning" not in report.notes["weights"]
    assert "with which its training begins" in caplog.text
    assert "mean nothing" not in caplog.text


def test_interrupted_it_goes_on_to_the_same_weights(tmp_path):
    whole, parts = detector(lr_schedule="constant"), detector(lr_schedule="constant")
    whole.fit(healthy(), context(tmp_path / "whole"))
    first = parts.fit(healthy(), context(tmp_path / "parts", budget=Budget(max_steps=13)))
    assert first.steps == 13
    parts = detector(lr_schedule="constant")
    parts.fit(healthy(), context(tmp_path / "parts"))
    state, other = whole.state().tensors, parts.state().tensors
    assert all(torch.equal(other[key], value) for key, value in state.items())
    reseeded = detector(lr_schedule="constant")
    reseeded.fit(healthy(), context(tmp_path / "reseeded", seed=2))
    assert not torch.equal(reseeded.state().tensors["head.weight"], state["head.weight"])


def test_few_anomalous_tiles_end_it_early(tmp_path):
    report = detector(exposures=10).fit(healthy(), context(tmp_path))
    assert (report.ended_by, report.steps) == ("max-steps", 8)  # 8 · 8 are 10 times 6 tiles


def test_other_anomalies_are_another_training(tmp_path):
    detector().fit(healthy(), context(tmp_path, budget=Budget(max_steps=2)))
    with pytest.raises(RunError, match="anomalies"):
        detector().fit(healthy(), context(tmp_path, anomalies=anomalies(5)))


def test_batch_normalisations_keep_their_statistics():
    tensors = random_tensors("resnet18", 0)
    backbone = BackboneFeatures("resnet18", ["layer1"], 1, tensors)
    network = PlaceClassifier(backbone, 64, magnify=1, dropout=0.5).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    loss = network(torch.rand(4, 3, 32, 32)).sum()
    loss.backward()
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    after = network.state_dict()
    running = [key for key in before if "running" in key]
    assert running
    assert all(torch.equal(before[key], after[key]) for key in running)
    changed = ("head.weight", "backbone.network.conv1.weight")
    assert not any(torch.equal(before[key], after[key]) for key in changed)


def test_bad_use_is_refused(tmp_path):
    with pytest.raises(DetectorError, match="learns from labelled anomalous tiles"):
        detector().fit(healthy(), context(tmp_path, anomalies=None))
    with pytest.raises(DetectorError, match="has no layer"):
        detector(layer="features.99").fit(healthy(), context(tmp_path))
    with pytest.raises(DetectorError, match="places were requested"):
        detector(places=40).fit(healthy(), context(tmp_path))
    with pytest.raises(DetectorError, match="smaller than the detector's input"):
        detector(px=PX * 2).fit(healthy(), context(tmp_path))
    with pytest.raises(DetectorError, match="loss is"):
        detector(learning_rate=1e20).fit(healthy(), context(tmp_path / "far"))
