"""`deep-sad` and `devnet` trained from end to end: losses by hand, what is trained, resuming."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from support.labelled import PX, anomalies, healthy, tiles
from wsiad.core.config import build
from wsiad.core.errors import ConfigError, DetectorError, RunError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors import registry
from wsiad.detectors._deviation_network import DeviationNetwork, deviation_loss, prior_of
from wsiad.detectors._end_to_end import LabelledWindows
from wsiad.detectors._labelled_ball import semi_supervised_losses
from wsiad.learning.detector import Budget, FitContext, InputSpec, State
from wsiad.learning.loop import Training
from wsiad.networks.features import BackboneFeatures, random_tensors
from wsiad.networks.hypersphere import centre_of
from wsiad.runs.second_look import check_learns

CPU = torch.device("cpu")
BALL = {"channels": [4, 6], "batch": 12, "pretrain_steps": 4, "max_steps": 6, "val_interval": 3}
DEVIATION = {"layer": "layer1", "batch": 4, "max_steps": 6, "val_interval": 3}
SMALL = {
    "deep-sad": {"representation": 5, "end_to_end": {**BALL, "anomalous_share": 0.4}},
    "devnet": {
        "backbone": "resnet18", "magnify": 1, "pooling": "top", "pooling_top": 0.1,
        "end_to_end": DEVIATION,
    },
}  # fmt: skip
METHODS = sorted(SMALL)


def detector(name, **options):
    cls = registry.load(name)
    made = build(cls.Options, {**SMALL[name], **options}, source=name)
    return cls(made, InputSpec(TilePx(PX), Mpp(1)))


def context(folder, **values):
    folder.mkdir(exist_ok=True)
    given = {"seed": 1, "weights": "random", "quiet": True, "anomalies": anomalies(), **values}
    return FitContext(device=CPU, folder=folder, **given)


def asked():
    return np.concatenate([tiles(3, seed=8), tiles(3, seed=9, anomalous=True)])


def test_the_loss_of_deep_sad_is_that_of_its_equation_8():
    distances = torch.tensor([4.0, 0.0, 2.0, 0.5, 0.0])
    labels = torch.tensor([0, 0, 1, -1, -1])
    found = semi_supervised_losses(distances, labels, eta=3)
    expected = [4, 0, 3 * (2 + 1e-6), 3 / (0.5 + 1e-6), 3e6]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(("known", "weight"), [("unlabelled", 1), ("labelled", 2)])
def test_eta_weighs_healthy_tiles_only_where_they_are_labelled(known, weight):
    training = {**BALL, "healthy": known}
    ball = detector("deep-sad", eta=2, end_to_end=training).whole_network()
    found = ball.losses(torch.tensor([3.0, 4.0]), torch.tensor([False, True]))
    np.testing.assert_allclose(found, [3 * weight, 2 / 4], rtol=1e-5)


def test_windows_of_a_step_are_anomalous_by_their_share(tmp_path):
    taught = LabelledWindows(context(tmp_path), PX)
    assert len(taught) == 6
    blank = torch.zeros(400, PX, PX, 3, dtype=torch.uint8)
    seen, anomalous = taught.mixed(blank, 7, share=0.25)
    assert 70 < int(anomalous.sum()) < 130
    assert not seen[~anomalous].any()
    shown = {picture.numpy().tobytes() for picture in seen[anomalous]}
    ways = [(), (0,), (1,), (0, 1)]
    known = {w.flip(way).numpy().tobytes() for w in taught.windows for way in ways}
    assert shown <= known
    assert len(shown) > 12  # of 6 windows in 4 orientations
    again, _ = taught.mixed(blank, 7, share=0.25)
    assert torch.equal(again, seen)
    assert not torch.equal(taught.mixed(blank, 8, share=0.25)[0], seen)
    assert torch.equal(taught.mixed(blank, 7, share=1e-9)[0], blank)


def test_centre_is_the_mean_output_of_both_kinds_and_stays(tmp_path):
    found = detector("deep-sad", end_to_end={**BALL, "pretrain_steps": 0, "anomalous_share": 0.4})
    found.fit(healthy(), context(tmp_path))
    ball = found._trained
    fresh = ball._ball(1).eval().encoder
    with torch.no_grad():
        parts = [
            fresh(torch.from_numpy(part).permute(0, 3, 1, 2).float() / 255).mean(dim=0)
            for part in (tiles(60, seed=1), tiles(6, seed=3, anomalous=True))
        ]
    expected = centre_of((0.6 * parts[0] + 0.4 * parts[1])[None])
    # Which orientation a healthy tile is shown in is drawn.
    torch.testing.assert_close(ball.network().centre, expected, atol=0.05, rtol=0.05)
    assert ball.network().centre.abs().min() >= 0.1
    assert not ball.network().centre.requires_grad
    assert all(name.endswith("weight") for name, _ in ball.network().named_parameters())


def test_share_of_anomalous_tiles_is_theirs_of_all_tiles(tmp_path):
    training = {**BALL, "pretrain_steps": 0, "max_steps": 1}
    report = detector("deep-sad", end_to_end=training).fit(healthy(), context(tmp_path))
    assert report.notes["anomalous_tiles"] == 6
    assert report.notes["anomalous_share"] == pytest.approx(6 / 66, abs=1e-6)


def test_deviation_loss_is_the_published_one():
    loss = deviation_loss(torch.tensor([-1.0, 3.0]), torch.tensor([2.0, 9.0]), margin=5)
    assert float(loss) == pytest.approx(((1 + 3) / 2 + (3 + 0) / 2) / 2)
    assert prior_of(0).tolist() == pytest.approx([0, 1], abs=0.05)


def deviation_network(strongest):
    backbone = BackboneFeatures("resnet18", ["layer1"], 1, random_tensors("resnet18", 0))
    network = DeviationNetwork(backbone, 64, magnify=1, strongest=strongest)
    network.prior.copy_(torch.tensor([0.5, 2.0]))
    return network


def test_score_of_a_tile_is_the_mean_of_its_strongest_places():
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    network = deviation_network(0.1).eval()
    with torch.no_grad():
        maps = network.backbone.maps(network.backbone.normalised(images))[0]
        scores = functional.conv2d(maps, network.head.weight[:, :, None, None], network.head.bias)
        flat = scores[:, 0].flatten(1)
        assert flat.shape == (2, 64)
        strongest = flat.abs().sort(dim=1).values[:, -6:].mean(dim=1)
        torch.testing.assert_close(network(images), (strongest - 0.5) / 2)
        even = deviation_network(None).eval()
        even.load_state_dict(network.state_dict())
        torch.testing.assert_close(even(images), (flat.mean(dim=1) - 0.5) / 2)


def test_gradients_reach_the_first_layer_and_batch_norms_are_trained():
    network = deviation_network(0.1).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    deviations = network(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    deviation_loss(deviations[:2], deviations[2:], 5).backward()
    assert network.backbone.network.conv1.weight.grad.abs().max() > 0
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    after = network.state_dict()
    for key in (
        "backbone.network.conv1.weight",
        "backbone.network.bn1.running_mean",
        "head.weight",
    ):
        assert not torch.equal(before[key], after[key]), key
    assert torch.equal(before["prior"], after["prior"])


@pytest.mark.parametrize("name", METHODS)
def test_all_layers_are_trained_and_it_is_pooled_as_it_was_trained(tmp_path, name, caplog):
    found = detector(name)
    report = found.fit(healthy(), context(tmp_path / "whole"))
    assert report.steps == 6
    if name == "devnet":  # what began at random has been trained
        assert report.notes["weights"]["source"] == "random, and then trained"
        assert "warning" not in report.notes["weights"]
        assert "with which its training begins" in caplog.text
    assert "mean nothing" not in caplog.text
    start = detector(name)
    start.fit(healthy(), context(tmp_path / "start", budget=Budget(max_steps=1)))
    first = {"deep-sad": "encoder.0.0.weight", "devnet": "backbone.network.conv1.weight"}[name]
    state, other = found.state().tensors, start.state().tensors
    assert not torch.equal(state[first], other[first])
    edge = {"deep-sad": 1, "devnet": 8}[name]
    assert found.score_places(asked()).shape == (6, edge, edge)
    x = torch.from_numpy(asked()).permute(0, 3, 1, 2).float() / 255
    network = found._trained.network().eval()
    with torch.no_grad():
        np.testing.assert_allclose(found.score(asked()), network(x), rtol=1e-4, atol=1e-5)
    assert found.embed(asked()).shape == (6, {"deep-sad": 5, "devnet": 64}[name])


def die_at(monkeypatch, nth):
    """Let the process be killed, as it were, before the nth step that is taken."""
    taken, take = [], Training._step

    def step(self, batch):
        if len(taken) == nth:
            raise KeyboardInterrupt
        taken.append(nth)
        take(self, batch)

    monkeypatch.setattr(Training, "_step", step)


@pytest.mark.parametrize(("name", "kills"), [("deep-sad", [3, 5]), ("devnet", [5])])
def test_killed_it_goes_on_to_the_same_weights(tmp_path, monkeypatch, name, kills):
    whole, reseeded = detector(name), detector(name)
    whole.fit(healthy(), context(tmp_path / "whole"))
    for nth in kills:  # in the pretraining, and after it
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            die_at(patch, nth)
            detector(name).fit(healthy(), context(tmp_path / "killed"))
    resumed = detector(name)
    assert resumed.fit(healthy(), context(tmp_path / "killed")).steps == 6
    state, other = whole.state().tensors, resumed.state().tensors
    assert all(torch.equal(other[key], value) for key, value in state.items())
    reseeded.fit(healthy(), context(tmp_path / "reseeded", seed=2))
    largest = max(state, key=lambda key: state[key].numel())
    assert not torch.equal(reseeded.state().tensors[largest], state[largest])
    with pytest.raises(RunError, match="anomalies"):
        detector(name).fit(healthy(), context(tmp_path / "whole", anomalies=anomalies(5)))


def test_a_longer_pretraining_does_not_end_with_the_ball_of_a_shorter_one(tmp_path):
    detector("deep-sad").fit(healthy(), context(tmp_path, budget=Budget(max_steps=3)))
    with pytest.raises(
        RunError,
        match=r"max_steps 3 \(now .*\), which would change the number of steps of the pretraining",
    ):
        detector("deep-sad").fit(healthy(), context(tmp_path))


@pytest.mark.parametrize("name", METHODS)
def test_state_of_one_network_is_not_that_of_the_other(tmp_path, name):
    found = detector(name)
    found.fit(healthy(), context(tmp_path, budget=Budget(max_steps=1)))
    cls = registry.load(name)
    head = cls(cls.Options(backbone="resnet18"), InputSpec(TilePx(PX), Mpp(1)))
    with pytest.raises(DetectorError, match="not that of this detector"):
        head.load_state(found.state(), CPU)
    blank = State({"fitted.mean": torch.zeros(3)}, found.state().values)
    with pytest.raises(DetectorError, match="not that of this detector"):
        detector(name).load_state(blank, CPU)


@pytest.mark.parametrize("name", METHODS)
def test_a_head_is_the_default_and_its_record_is_as_before(name):
    cls = registry.load(name)
    assert "end_to_end" not in cls.Options().model_dump()
    assert "end_to_end" not in build(cls.Options, {"end_to_end": False}).model_dump(mode="json")
    made = build(cls.Options, {"end_to_end": True})
    assert build(cls.Options, made.model_dump(mode="json")) == made
    assert cls.input_size(made, tile_px=256, mpp=1) == 64
    assert cls.input_size(cls.Options(), tile_px=256, mpp=1) == 256
    assert cls.Options().keep == "last"
    assert made.keep == {"deep-sad": "best", "devnet": "last"}[name]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("deep-sad", {"hidden": 8, "backbone": "resnet18"}, "backbone.*hidden.*of a head"),
        ("deep-sad", {"end_to_end": {"hidden": 8}}, "unknown key"),
        ("deep-sad", {"end_to_end": {"anomalous_share": 1}}, "anomalous_share"),
        ("devnet", {"steps": 20}, "steps: of a head"),
        ("devnet", {"loss": "bce"}, "loss: of a head"),
        ("devnet", {"confidence": True}, "confidence: of a head"),
        ("devnet", {"pooling": "quantile"}, "pooling mean, max or top"),
        ("devnet", {"backbone": "features/uni"}, "imported features have none"),
        ("devnet", {"end_to_end": {"keep": "best"}}, "keep"),
    ],
)
def test_options_of_the_other_network_are_refused(name, options, said):
    with pytest.raises(ConfigError, match=said):
        build(registry.load(name).Options, {"end_to_end": True, **options})


@pytest.mark.parametrize("name", METHODS)
def test_bad_use_is_refused(tmp_path, name):
    with pytest.raises(DetectorError, match="learns from labelled anomalous tiles"):
        detector(name).fit(healthy(), context(tmp_path, anomalies=None))
    with pytest.raises(DetectorError, match="not fitted yet"):
        detector(name).score(asked())
    with pytest.raises(DetectorError, match="no features to store"):
        detector(name).opened(context(tmp_path))
    with pytest.raises(DetectorError, match="once for each fold"):
        detector(name).fit_by_fold(healthy(), None, context(tmp_path))
    with pytest.raises(DetectorError, match="once for each fold"):
        check_learns(registry.load(name), name=name, options=detector(name).options)
