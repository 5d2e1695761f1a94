"""What every detector with a trained network must do, with tiny networks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from support.tiny_detectors import CPU, HEALTHY, SMOOTH, TINY, context, detector, fitted
from wsiad.core.errors import DetectorError, RunError
from wsiad.learning.checkpoint import CHECKPOINT
from wsiad.learning.detector import State
from wsiad.learning.loop import Training
from wsiad.store.dataset import ArrayTiles

CASES = [pytest.param(name, {}, id=name) for name in TINY] + [
    pytest.param("student-teacher", {"optimiser": "sgd", "learning_rate": 0.01}, id="sgd"),
    pytest.param(
        "student-teacher",
        {"backbone": "resnet18", "layers": ["layer1"], "ema_decay": 0.9, "batch": 3},
        id="batch-norm and average",
    ),
    pytest.param(
        "student-teacher",
        {
            "backbone": "wsiad",
            "layers": ["features.4", "features.9"],
            "student_width": 2,
            "distance": "whole",
            "value_weight": 0.1,
        },
        id="a slim student",
    ),
    pytest.param(
        "contrastive",
        {"pretext": "csi", "scoring_views": 2, "optimiser": "lars", "learning_rate": 1.0},
        id="views and lars",
    ),
    pytest.param("deep-geo", {"heads": "turn", "score": "softmax"}, id="turns alone"),
    pytest.param(
        "feature-reconstruction",
        {
            "network": "transformer",
            "layers": ["features.4", "features.7"],
            "width": 8,
            "depth": 2,
            "optimiser": "stable-adamw",
            "mining_steps": 5,
        },
        id="dropout and stable-adamw",
    ),
    pytest.param(
        "feature-reconstruction",
        {"network": "transformer", "transformer": "uniad", "width": 8, "depth": 2},
        id="noise of tokens",
    ),
    pytest.param(
        "reconstruction",
        {
            "image_game": "reconstruction",
            "image_game_moves": "decoder",
            "latent_game": "gaussian",
            "critic_network": {"widths": [4, 4], "norm": "layer", "spectral": True},
            "critic": {"updates": 2},
        },
        id="games",
    ),
    pytest.param(
        "reconstruction",
        {"latent": "quantised", "task": "noise", "spatial": True},
        id="code book and noise",
    ),
    pytest.param(
        "gan",
        {
            "inversion": "joint",
            "joint": "alad",
            "game": {"loss": "bce"},
            "spectral": True,
            "critic_dropout": 0.2,
            "pair_network": {"widths": [4, 4], "norm": "none", "dropout": 0.2},
            "pair_widths": [5],
            "ema_decay": 0.9,
        },
        id="three critics of pairs",
    ),
    pytest.param(
        "gan",
        {"inversion": "simultaneous", "score": "code"},
        id="an encoder next to a game",
    ),
    pytest.param(
        "ganomaly",
        {
            "network": {"widths": [4, 6], "skips": True},
            "spatial": True,
            "latent_channels": None,
            "loss": {"critic": 1, "l1": 50, "features": 1},
            "judged_by": {"l2": 0.9, "features": 0.1},
            "critic_vector": 7,
            "noise": 0.1,
            "game": {"loss": "wasserstein-gp"},
            "critic": {"updates": 2},
        },
        id="skips, noise and mixtures",
    ),
    pytest.param(
        "reconstruction",
        {
            "network": {"widths": [4, 6], "latent_activation": "tanh", "dropout": 0.1},
            "latent": "plain",
            "task": "erase",
            "attack": 0.1,
            "image_game": "prior",
            "latent_game": "uniform",
            "mining_steps": 1,
            "critic_network": {"widths": [4, 4]},
            "latent_critic_widths": [4],
        },
        id="mined codes and adversarial inputs",
    ),
    pytest.param("deep-svdd", {"objective": "soft-boundary", "grad_clip": 1.0}, id="soft-boundary"),
]


HUGE = 10**7
TOO_LARGE = {
    "contrastive": {"widths": [HUGE, HUGE]},
    "deep-svdd": {"channels": [HUGE]},
    "diffusion": {"widths": [HUGE, HUGE]},
    "gan": {"network": {"widths": [HUGE, HUGE]}},
    "ganomaly": {"network": {"widths": [HUGE, HUGE]}},
    "reconstruction": {"network": {"widths": [4], "hidden": [HUGE, HUGE]}},
    "synthetic": {"finding_width": HUGE},
}


@pytest.mark.parametrize("name", sorted(TOO_LARGE.keys() & TINY.keys()))
def test_a_network_that_memory_cannot_hold_is_refused(name, tmp_path):
    with pytest.raises(DetectorError, match="numbers is too large"):
        fitted(name, tmp_path / "run", **TOO_LARGE[name])


FIRST = {
    "deep-svdd": {"pretrain_steps": 2},
    "efficient-ad": {"teacher_steps": 2},
    "gan": {"gan_steps": 2},
    "uninformed-students": {"teacher_steps": 2},
}
"""Options by which a first training ends in the same step, whatever the limit of the run is."""


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def die_at(monkeypatch, nth):
    """Let the process be killed, as it were, before the nth step that is taken."""
    taken = 0
    whole = Training._step

    def step(self, tiles):
        nonlocal taken
        taken += 1
        if taken == nth:
            raise KeyboardInterrupt
        whole(self, tiles)

    monkeypatch.setattr(Training, "_step", step)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_killed_fit_ends_like_one_that_was_not(tmp_path, monkeypatch, name, options):
    whole = fitted(name, tmp_path / "whole", **options)
    for nth in (6, 7):  # of deep-svdd the second is in its second part
        with monkeypatch.context() as patch:
            die_at(patch, nth)
            with pytest.raises(KeyboardInterrupt):
                fitted(name, tmp_path / "killed", **options)
    resumed = fitted(name, tmp_path / "killed", **options)
    assert equal(whole.state().tensors, resumed.state().tensors)
    tiles = SMOOTH[:, 4:36, 4:36]
    np.testing.assert_array_equal(whole.score_places(tiles), resumed.score_places(tiles))
    ends = [load_file(tmp_path / folder / CHECKPOINT) for folder in ("whole", "killed")]
    assert equal(*ends)


@pytest.mark.parametrize("name", TINY)
def test_damaged_state_is_refused(tmp_path, name):
    state = fitted(name, tmp_path, steps=2).state()
    key = sorted(k for k, t in state.tensors.items() if t.ndim > 1)[-1]
    for tensors in (
        {k: t for k, t in state.tensors.items() if k != key},
        {**state.tensors, key: torch.zeros(2)},
        {**state.tensors, "more": torch.zeros(2)},
    ):
        with pytest.raises(DetectorError, match="not that of this detector"):
            detector(name).load_state(State(tensors, state.values), CPU)


@pytest.mark.parametrize("name", TINY)
def test_seed_decides(tmp_path, name):
    states = [
        fitted(name, tmp_path / str(number), steps=3, seed=seed).state().tensors
        for number, seed in enumerate((1, 1, 2))
    ]
    assert equal(states[0], states[1])
    assert not equal(states[0], states[2])


@pytest.mark.parametrize("name", TINY)
def test_checkpoint_of_another_training_is_refused(tmp_path, name):
    first = FIRST.get(name, {})
    fitted(name, tmp_path, steps=2, **first)
    with pytest.raises(RunError, match="another learning_rate"):
        fitted(name, tmp_path, steps=3, learning_rate=3e-5, **first)
    # What only scoring depends on may change.
    found = detector(name, pooling="max", orientations=2, **first)
    assert found.fit(HEALTHY, context(tmp_path, 3)).steps == 3


@pytest.mark.parametrize("name", TINY)
def test_use_before_the_fit_and_tiles_too_small(tmp_path, name):
    with pytest.raises(DetectorError, match="not fitted"):
        detector(name).score(SMOOTH[:1, :32, :32])
    with pytest.raises(DetectorError, match="not fitted"):
        detector(name).state()
    small = replace(HEALTHY, fit=ArrayTiles(SMOOTH[:, :24, :24]))
    with pytest.raises(DetectorError, match="24 px are smaller"):
        detector(name).fit(small, context(tmp_path))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("deep-svdd", {}, "number of steps of the pretraining"),
        ("efficient-ad", {"teacher_steps": 9}, "number of steps of the teachers"),
        ("gan", {"gan_steps": 9}, "number of steps of the generator"),
        ("uninformed-students", {"teacher_steps": 9}, "number of steps of the teachers"),
    ],
)
def test_a_longer_first_training_does_not_end_with_the_second_of_a_shorter_one(
    tmp_path, name, options, said, monkeypatch
):
    fitted(name, tmp_path, steps=3, **options)

    def works(*_: object) -> None:
        raise AssertionError("a step was taken before the refusal")

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_step", works)
        message = rf"with max_steps 3 \(now 6\), which would change the {said}"
        with pytest.raises(RunError, match=message):
            fitted(name, tmp_path, steps=6, **options)
    fitted(name, tmp_path, steps=3, **options)  # with the value of before it goes on


def test_a_longer_second_training_goes_on_after_the_first_one(tmp_path):
    options = {"pretrain_steps": 2}
    fitted("deep-svdd", tmp_path / "killed", steps=3, **options)
    longer = fitted("deep-svdd", tmp_path / "killed", steps=6, **options)
    whole = fitted("deep-svdd", tmp_path / "whole", steps=6, **options)
    assert equal(whole.state().tensors, longer.state().tensors)
