"""`devnet` and `deep-sad`: their losses by hand, a toy problem, state, determinism."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from support.labelled import PX, anomalies, healthy, tiles
from wsiad.core.errors import DetectorError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors import registry
from wsiad.learning.detector import Budget, FitContext, InputSpec, State

CPU = torch.device("cpu")
SMALL = {
    "layers": ("features.3",),
    "magnify": 1,
    "places": 4,
    "steps": 150,
    "learning_rate": 1e-3,
}
METHODS = [("devnet", {}), ("devnet", {"loss": "bce"}), ("deep-sad", {})]


def detector(name, **options):
    cls = registry.load(name)
    return cls(cls.Options(**{**SMALL, **options}), InputSpec(TilePx(PX), Mpp(1)))


def context(folder, **values):
    given = {"seed": 1, "weights": "random", "quiet": True, "anomalies": anomalies(), **values}
    return FitContext(device=CPU, folder=folder, **given)


def column(*values):
    return torch.tensor(values, dtype=torch.float32)[:, None]


def test_deviation_loss_is_the_published_one():
    found = detector("devnet")
    fixed = {"prior": torch.tensor([0.5, 2.0])}
    # |−0.5 − 0.5|/2 and |4.5 − 0.5|/2; 5 − (2.5 − 0.5)/2, and nothing beyond the margin.
    loss = found.loss(column(-0.5, 4.5), column(2.5, 20.0), fixed)
    assert loss.item() == pytest.approx(((0.5 + 2) / 2 + (4 + 0) / 2) / 2)
    np.testing.assert_allclose(found.strangeness(column(4.5, 0.5), fixed), [2, 0])
    prior = found.fixed(None, None, seed=0)["prior"]
    assert prior.tolist() == pytest.approx([0, 1], abs=0.05)


def test_confidence_is_trained_to_know_where_the_score_errs():
    found = detector("devnet", confidence=True)
    assert found.outputs() == 2
    fixed = {"prior": torch.tensor([0.0, 1.0])}
    # Right: 1 < 2.5 of a healthy tile and 4 ≥ 2.5 of an anomaly; wrong: 3 of a healthy one.
    healthy = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    anomalous = torch.tensor([[4.0, 0.5], [6.0, 1.0]])
    deviation = ((1 + 3) / 2 + (1 + 0) / 2) / 2
    logits, right = [2.0, -1.0, 0.5, 1.0], [1, 0, 1, 1]
    sure = [np.log1p(np.exp(-z if r else z)) for z, r in zip(logits, right, strict=True)]
    assert float(found.loss(healthy, anomalous, fixed)) == pytest.approx(
        deviation + np.mean(sure), rel=1e-5
    )
    scores = found.strangeness(torch.tensor([[1.0, 9.0], [1.0, -9.0], [7.0, 9.0]]), fixed)
    assert scores.tolist() == pytest.approx([1.0, 5.0, 7.0], abs=0.01)
    with pytest.raises(ValueError, match="for the loss deviation"):
        detector("devnet", confidence=True, loss="bce")


def test_bce_is_that_of_torch():
    found = detector("devnet", loss="bce")
    one, other = column(-0.5, 4.5, 0.1), column(2.5, -1, 0.3)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.cat([one, other]), column(0, 0, 0, 1, 1, 1)
    )
    assert found.loss(one, other, {}).item() == pytest.approx(expected.item())


def test_deep_sad_loss_is_the_published_one():
    found = detector("deep-sad", eta=3, representation=2)
    fixed = {"centre": torch.tensor([1.0, -1.0])}
    near, away = torch.tensor([[1.0, 1.0], [2.0, -1.0]]), torch.tensor([[1.0, 0.0], [1.0, -1.0]])
    expected = (4 + 1) / 2 + 3 * (1 / (1 + 1e-6) + 1e6) / 2
    assert found.loss(near, away, fixed).item() == pytest.approx(expected)


def test_centre_is_the_mean_of_outputs_kept_off_zero():
    found = detector("deep-sad", representation=3)
    network = torch.nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.eye(3))
    outputs = torch.tensor([[2.0, 0.02, -0.06], [4.0, 0.02, -0.02]])
    centre = found.fixed(network, outputs, seed=0)["centre"]
    np.testing.assert_allclose(centre, [3.0, 0.1, -0.1], rtol=1e-6)
    assert not any(key.endswith("bias") for key in dict(found_network(found)))


def found_network(found):
    from wsiad.detectors._heads import _network

    return _network(4, 3, found.outputs(), found.bias).state_dict()


@pytest.mark.parametrize(("name", "options"), METHODS)
def test_stripes_are_told_from_noise(tmp_path, name, options):
    found = detector(name, **options)
    report = found.fit(healthy(), context(tmp_path))
    assert (report.ended_by, report.steps) == ("max-steps", 150)
    asked = np.concatenate([tiles(40, seed=8), tiles(40, seed=9, anomalous=True)])
    assert found.score_places(asked).shape == (80, 1, 1)
    assert roc_auc_score(np.repeat([0, 1], 40), found.score(asked)) > 0.9

    again = detector(name, **options)
    again.load_state(found.state(), CPU)
    np.testing.assert_array_equal(again.score(asked), found.score(asked))
    twin = detector(name, **options)
    twin.fit(healthy(), context(tmp_path))
    state, other = found.state().tensors, twin.state().tensors
    assert all(torch.equal(other[key], value) for key, value in state.items())
    for missing in ("fitted.network.2.weight", "fitted.mean"):
        damaged = {key: value for key, value in state.items() if key != missing}
        with pytest.raises(DetectorError, match="not that of this detector"):
            detector(name, **options).load_state(State(damaged, {}), CPU)


def test_budget_and_seed(tmp_path):
    few, other = detector("devnet"), detector("devnet")
    assert few.fit(healthy(), context(tmp_path, budget=Budget(max_steps=7))).steps == 7
    report = other.fit(healthy(), context(tmp_path, seed=2, budget=Budget(max_minutes=1e-9)))
    assert (report.ended_by, report.steps) == ("max-minutes", 1)
    weights = [found.state().tensors["fitted.network.0.weight"] for found in (few, other)]
    assert not torch.equal(*weights)


def test_bad_use_is_refused(tmp_path):
    with pytest.raises(DetectorError, match="learns from labelled anomalous tiles"):
        detector("deep-sad").fit(healthy(), context(tmp_path, anomalies=None))
    with pytest.raises(DetectorError, match="the loss is not finite"):
        detector("deep-sad", learning_rate=1e20).fit(healthy(), context(tmp_path))


def test_all_that_use_anomalies_are_named():
    assert {"linear-probe", "devnet", "deep-sad"} <= set(registry.names_using_anomalies())
    assert not {"knn", "gaussian", "dpa"} & set(registry.names_using_anomalies())
