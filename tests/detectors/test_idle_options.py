"""Options that do nothing with others are refused, and those that are refused do nothing."""

import numpy as np
import pytest

from support.tiny_detectors import CPU, TINY, useful
from wsiad.core.config import build, idle_options_allowed
from wsiad.core.errors import ConfigError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors import registry
from wsiad.learning.detector import (
    AnomalousTiles,
    AnomalyType,
    Budget,
    FitContext,
    HealthyTiles,
    InputSpec,
)
from wsiad.store.dataset import ArrayTiles

RNG = np.random.default_rng(0)
TILES = RNG.integers(0, 256, (26, 80, 80, 3), np.uint8)
HEALTHY = HealthyTiles(ArrayTiles(TILES[:20]), ArrayTiles(TILES[20:]))
ANOMALIES = AnomalousTiles(
    tuple(
        AnomalyType(name, ArrayTiles(255 - TILES[i : i + 4]), ("a", "a", "b", "b"))
        for i, name in ((0, "one"), (4, "two"))
    )
)
STEPS = 4
SMALL = {
    **TINY,
    "contrastive": {"widths": [3, 4], "projection": 4, "healthy_tiles": 12},
    "density": {"backbone": "pixels", "backbone_args": {"patch": 2}, "places": 4, "steps": 2},
    "feature-reconstruction": {
        "layers": ["features.3", "features.6"],
        "places": 4,
        "mining_steps": 3,
    },
    "one-class": {"layers": ["features.3"], "places": 2, "steps": STEPS, "batch": 8},
}
JOINT = {"inversion": "joint", "game": {"loss": "bce"}}
VARIANTS = {
    "gan": [
        {"inversion": "descent", "descent_steps": 2},
        {"inversion": "encoder"},
        {"inversion": "encoder", "encoder_loss": "izi", "score": "pixels"},
        {"inversion": "encoder", "score": "code"},
        {**JOINT, "joint": "bigan", "score": "features"},
        {**JOINT, "joint": "bigan", "score": {"pixels": 1.0, "critic": 1.0}},
        {**JOINT, "joint": "alad"},
        {**JOINT, "joint": "alpha", "score": {"pixels": 1.0, "code-critic": 1.0}},
        {"inversion": "simultaneous"},
    ],
    "density": [
        {"model": "flow"},
        {"model": "flow", "grid": "layers", "standardise": "none", "layers": ["level0", "level1"]},
        {"model": "glow", "scales": 2},
        {"model": "glow", "standardise": "tile", "scales": 2},
        {"model": "dagmm", "standardise": "none"},
        {"model": "dagmm", "autoencoder": "conv", "widths": [4, 4]},
        {"model": "dsebm"},
        {"model": "dsebm", "standardise": "tile", "score": "reconstruction"},
    ],
    "contrastive": [
        {"pretext": "simclr"},
        {"pretext": "simclr", "network": "resnet18", "score": "nearest"},
        {"pretext": "simclr", "score": "csi"},
        {"pretext": "csi"},
        {"pretext": "csi", "score": "mahalanobis"},
        {"pretext": "position"},
        {"pretext": "cutpaste"},
        {"pretext": "cutpaste", "score": "nearest"},
    ],
    "feature-reconstruction": [
        {"network": "mlp-1x1", "latent": 3},
        {"network": "mlp-1x1"},
        {"network": "transformer", "transformer": "dinomaly"},
        {"network": "transformer", "transformer": "dinomaly", "mining_share": 0.0},
        {"network": "transformer", "transformer": "inp-former", "lr_schedule": "cosine"},
        {"network": "transformer", "transformer": "uniad"},
    ],
    "one-class": [
        {"objective": "noise"},
        {"objective": "compact"},
        {"objective": "hyperplane"},
        {"objective": "feature-noise"},
        {"objective": "ascent"},
        {"objective": "ascent", "around": "centre"},
    ],
    "diffusion": [{"noise": "gauss"}, {"noise": "simplex", "score": "ssim"}],
}
LEVELS = {"widths": [3, 5], "norm": "none"}
OTHER = {
    "gan": {
        "joint": "alad", "encoder_loss": "ziz", "feature_weight": 3.0, "encoder_bound": 0.5,
        "encoder_learning_rate": 1e-3, "reconstruction_weight": 3.0, "encoder_network": LEVELS,
        "pair_network": LEVELS, "code_widths": [3], "pair_widths": [3],
        "latent_critic_widths": [3], "critic_dropout": 0.5, "distance": "l1", "reduction": "sum",
        "descent_steps": 3, "descent_rate": 0.1, "descent_starts": 8,
        "gan_steps": 1,
    },
    "density": {
        "combine": "product", "fit_tiles": 5, "widths": [5, 5], "autoencoder": "conv", "code": 2,
        "gaussians": 2, "dropout": 0.1, "energy_weight": 1.0, "variance_weight": 0.1,
        "noise": 0.3, "kernels": [3], "stride": 2, "dense": 3, "steps": 3, "scales": 1,
        "hidden_ratio": 0.3, "clamp": 1.0, "squeezes": 1,
    },
    "contrastive": {
        "network": "resnet18", "widths": [4, 5], "views": {"view_px": 24},
        "temperature": 0.1, "shifts": "turns", "patches": [64], "neighbour_weight": 0.0,
        "clusters": 2, "bank": 9, "places": 2, "scoring_views": 2,
    },
    "feature-reconstruction": {
        "transformer": "uniad", "latent": 2, "latent_tiles": 5, "batch_norm": False,
        "linear": True, "width": 8, "depth": 2, "dropout": 0.5, "mining_share": 0.5,
        "mining_steps": 1, "prototypes": 2, "neighbours": 1, "jitter": 1.0, "final_rate": 0.5,
        "combine": "sum",
    },
    "one-class": {
        "noise": 0.5, "hidden": 5, "margin": 0.1, "ascent_steps": 2, "around": "centre",
        "radius": 0.1, "radius_quantile": 0.2, "nu": 0.5, "compactness": 1.0, "templates": 3,
    },
    "diffusion": {
        "frequency": 0.1, "octaves": 2, "decay": 0.5, "layers": {"relu1_2": 1.0},
        "contrast": 2.0, "relative": "place",
    },
}  # fmt: skip
CASES = [(name, variant) for name, variants in VARIANTS.items() for variant in variants]


def found_by(name, folder, given):
    """Return the tensors and scores of a detector, as bytes by name."""
    cls = registry.load(name)
    trained = {"val_interval": 2, "log_interval": 2, "batch": 6} if name != "one-class" else {}
    with idle_options_allowed():
        options = build(cls.Options, {**trained, **given})
    detector = cls(options, InputSpec(TilePx(64 if name == "contrastive" else 32), Mpp(1)))
    folder.mkdir()
    context = FitContext(
        seed=1,
        device=CPU,
        folder=folder,
        budget=Budget(max_steps=STEPS),
        weights="random",
        quiet=True,
        anomalies=ANOMALIES if cls.learns_from_anomalies(options) else None,
    )
    detector.fit(HEALTHY, context)
    size = detector.spec.size
    places = detector.score_map(TILES[:3, :size, :size])
    tensors = {n: t.numpy().tobytes() for n, t in detector.state().tensors.items()}
    return {**tensors, "map": (places.shape, places.tobytes())}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variant"), CASES)
def test_what_is_refused_does_nothing_and_what_is_accepted_does_something(name, variant, tmp_path):
    given = useful(name, SMALL[name], variant)
    cls = registry.load(name)
    uses = build(cls.Options, given).uses()
    own = {n for n in uses if n in cls.Options.__annotations__} & OTHER[name].keys()
    before = found_by(name, tmp_path / "before", given)
    wrong = []
    for option in sorted(own - variant.keys()):
        changed = {**given, option: OTHER[name][option]}
        try:
            after = found_by(name, tmp_path / option, changed)
        except Exception as error:
            after = f"{type(error).__name__} {error}"
        used, _ = uses[option]
        if used != (after != before):
            wrong.append((option, used, after if isinstance(after, str) else ""))
    assert not wrong


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("gan", {"joint": "alad"}, "joint does nothing with inversion: encoder"),
        ("gan", {**JOINT, "gan_steps": 5}, "gan_steps does nothing with inversion: joint"),
        (
            "gan",
            {**JOINT, "reconstruction_weight": 1.0},
            "reconstruction_weight does nothing with inversion: joint and joint: bigan",
        ),
        (
            "gan",
            {"encoder_loss": "izi", "feature_weight": 2.0},
            "feature_weight does nothing with encoder_loss: izi",
        ),
        ("gan", {"descent_steps": 9}, "descent_steps does nothing with inversion: encoder"),
        ("gan", {"score": "code", "distance": "l1"}, "distance does nothing with score: code"),
        (
            "gan",
            {"inversion": "simultaneous", "patience": 9},
            "patience does nothing with inversion: simultaneous",
        ),
        (
            "gan",
            {"game": {"loss": "bce", "gradient_penalty": 1.0}},
            "gradient_penalty does nothing with loss: bce",
        ),
        ("gan", {"game": {"drift_of": "real"}}, "drift_of does nothing with drift: 0"),
        ("density", {"gaussians": 2}, "gaussians does nothing with model: flow"),
        ("density", {"model": "glow", "kernels": [3]}, "kernels does nothing with model: glow"),
        ("density", {"model": "dagmm", "noise": 0.1}, "noise does nothing with model: dagmm"),
        ("density", {"combine": "product"}, "combine does nothing with grid: places"),
        (
            "density",
            {"standardise": "none", "fit_tiles": 9},
            "fit_tiles does nothing with model: flow and standardise: none",
        ),
        ("contrastive", {"places": 4}, "places does nothing with pretext: simclr"),
        ("contrastive", {"pretext": "csi", "clusters": 2}, "clusters does nothing with score: csi"),
        (
            "contrastive",
            {"pretext": "cutpaste", "temperature": 1.0},
            "temperature does nothing with pretext: cutpaste",
        ),
        (
            "contrastive",
            {"network": "resnet18", "widths": [4, 5]},
            "widths does nothing with network: resnet18",
        ),
        (
            "feature-reconstruction",
            {"combine": "sum"},
            "combine does nothing with feature-reconstruction",
        ),
        (
            "feature-reconstruction",
            {"latent": 4, "latent_tiles": 9},
            "latent_tiles does nothing with latent: 4",
        ),
        (
            "feature-reconstruction",
            {"network": "transformer", "transformer": "inp-former", "dropout": 0.1},
            "dropout does nothing with transformer: inp-former",
        ),
        (
            "feature-reconstruction",
            {"final_rate": 0.1},
            "final_rate does nothing with lr_schedule: constant",
        ),
        ("one-class", {"nu": 0.2}, "nu does nothing with objective: feature-noise"),
        (
            "one-class",
            {"objective": "hyperplane", "noise": 0.1},
            "noise does nothing with objective: hyperplane",
        ),
        ("one-class", {"ascent_steps": 5}, "ascent_steps does nothing with objective: feature"),
        (
            "one-class",
            {"objective": "ascent", "around": "centre", "radius": 1.0},
            "radius does nothing with around: centre",
        ),
        ("knn", {"pooling_top": 0.2}, "pooling_top does nothing with pooling: "),
        ("student-teacher", {"keep": "last", "patience": 9}, "patience does nothing with keep: la"),
    ],
)
def test_an_option_that_does_nothing_is_refused_in_one_line(name, given, message):
    with pytest.raises(ConfigError, match=message) as error:
        build(registry.load(name).Options, given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "given", "words", "mended"),
    [
        (
            "reconstruction",
            {"latent": "memory", "codes": 5},
            "codes does nothing with latent: memory; leave it out, or set codes=512",
            {"codes": 512},
        ),
        (
            "density",
            {"gaussians": 3, "autoencoder": "conv"},
            'leave them out, or set autoencoder="dense", gaussians=4',
            {"gaussians": 4, "autoencoder": "dense"},
        ),
        (
            "reconstruction",
            {"game": {"loss": "bce"}},
            "latent_game: none; leave it out",
            {"game": {}},
        ),
    ],
)
def test_an_idle_option_is_refused_with_a_way_out_that_also_replaces_a_presets(
    name, given, words, mended
):
    options = registry.load(name).Options
    with pytest.raises(ConfigError) as error:
        build(options, given)
    assert words in str(error.value)
    build(options, given | mended)
