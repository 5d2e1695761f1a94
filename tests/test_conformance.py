"""wsiad's own detectors and slides pass the suites of wsiad.testing; what is wrong does not."""

import numpy as np
import pytest
import torch

from support import tiny_detectors
from support.builders import ArraySlide, halve, stained, write_scn, write_tiff
from support.dicom_slides import write_level
from support.tiff_slides import smooth, write_jpeg
from wsiad.core.errors import DetectorError
from wsiad.core.geometry import Box, Spacing
from wsiad.detectors import registry
from wsiad.exports.export_format import ExportFormat, formats
from wsiad.learning.detector import Detector, DetectorOptions, FitReport, State
from wsiad.slides.opening import open_slide
from wsiad.slides.slide import Region
from wsiad.testing import check_detector, check_export, check_slide, tissue_tiles

TINY = {name: {**options, "batch": 6} for name, options in tiny_detectors.TINY.items()}
TINY["dpa"] = {
    "latent_px": 8,
    "channels": 3,
    "layers": {"relu1_2": 2.0, "relu2_1": 1.0},
    "batch": 6,
}
TINY["fixed-point-gan"] = {
    "width": 2,
    "blocks": 1,
    "critic_width": 2,
    "critic_levels": 2,
    "critic": {"updates": 2},
    "batch": 4,
}
TOKENS = {
    **tiny_detectors.DISTILLED,
    "network": "transformer",
    "width": 8,
    "depth": 2,
    "batch": 6,
    "learning_rate": 1e-2,
}
ONE_CLASS = {"layers": ["features.3"], "places": 2, "hidden": 8, "learning_rate": 1e-3}
OTHERS = {
    "dpa, pixels and a critic": (
        "dpa",
        {**TINY["dpa"], "layers": {}, "image_weight": 1.0, "adversarial_weight": 0.5},
    ),
    "deep-svdd, soft boundary": (
        "deep-svdd",
        {**TINY["deep-svdd"], "objective": "soft-boundary", "grad_clip": 1.0},
    ),
    "deep-geo, separate heads": (
        "deep-geo",
        {**TINY["deep-geo"], "heads": "separate", "score": "softmax"},
    ),
    "deep-geo, turns alone": (
        "deep-geo",
        {**TINY["deep-geo"], "heads": "turn", "score": "softmax"},
    ),
    "feature-reconstruction, dinomaly": (
        "feature-reconstruction",
        {**TOKENS, "optimiser": "stable-adamw", "grad_clip": 0.1, "warmup_steps": 2},
    ),
    "feature-reconstruction, inp-former": (
        "feature-reconstruction",
        {**TOKENS, "transformer": "inp-former", "prototypes": 2},
    ),
    "feature-reconstruction, uniad": (
        "feature-reconstruction",
        {**TOKENS, "transformer": "uniad", "neighbours": 1},
    ),
    "feature-reconstruction, linear without batch norm": (
        "feature-reconstruction",
        {**TINY["feature-reconstruction"], "linear": True, "batch_norm": False, "latent": 0.9},
    ),
    "one-class, against noise": ("one-class", {**ONE_CLASS, "objective": "noise"}),
    "one-class, compact": ("one-class", {**ONE_CLASS, "objective": "compact", "templates": 3}),
    "one-class, hyperplane": ("one-class", {**ONE_CLASS, "objective": "hyperplane"}),
    "one-class, ascent": ("one-class", {**ONE_CLASS, "objective": "ascent", "ascent_steps": 6}),
    "contrastive, csi": ("contrastive", {**TINY["contrastive"], "pretext": "csi"}),
    "contrastive, csi of three views, by lars": (
        "contrastive",
        {**TINY["contrastive"], "pretext": "csi", "scoring_views": 3, "optimiser": "lars"},
    ),
    "contrastive, cutpaste": ("contrastive", {**TINY["contrastive"], "pretext": "cutpaste"}),
    "devnet, confidence": ("devnet", {"confidence": True, "steps": 3, "layers": ["features.3"]}),
    "deep-sad, from end to end": (
        "deep-sad",
        {
            "representation": 6,
            "end_to_end": {
                "channels": [4, 6],
                "batch": 6,
                "pretrain_steps": 2,
                "checkpoint_seconds": 1e-6,
            },
        },
    ),
    "devnet, from end to end": (
        "devnet",
        {
            "backbone": "resnet18",
            "magnify": 1,
            "pooling": "top",
            "end_to_end": {"layer": "layer1", "batch": 3, "checkpoint_seconds": 1e-6},
        },
    ),
    "contrastive, nearest": ("contrastive", {**TINY["contrastive"], "score": "nearest"}),
    "student-teacher, sgd": (
        "student-teacher",
        {**TINY["student-teacher"], "optimiser": "sgd", "learning_rate": 0.01},
    ),
    "student-teacher, batch norm and average": (
        "student-teacher",
        {"backbone": "resnet18", "layers": ["layer1"], "ema_decay": 0.9, "batch": 3, "places": 4},
    ),
    "student-teacher, a slim one": (
        "student-teacher",
        {
            "backbone": "wsiad",
            "layers": ["features.4", "features.9"],
            "student_width": 2,
            "distance": "whole",
            "value_weight": 0.1,
            "scored_layers": 1,
            "combine": "sum",
            "places": 4,
            "batch": 6,
        },
    ),
    "knn, in four orientations": ("knn", {"orientations": 4, "places": 4}),
    "ensemble, with a member that is trained": (
        "ensemble",
        {
            "members": [
                {"detector": "gaussian", "options": {"places": 4}},
                {"detector": "dpa", "options": {**TINY["dpa"], "checkpoint_seconds": 1e-6}},
            ]
        },
    ),
}
NET = {"network": {"widths": [4, 6], "hidden": [8]}, "latent_channels": 3, "batch": 6}
U_NET = {
    "network": {"widths": [4, 6], "skips": True},
    "spatial": True,
    "latent_channels": None,
    "batch": 6,
}
RECONSTRUCTION = {
    "probability": {"latent": "vae", "loss": "uncertainty", "score": "probability"},
    "slope": {
        "latent": "vae",
        "score": "gradient",
        "gradient_by_distance": True,
        "task": "erase",
        "whole_weight": 1.0,
    },
    "density by place": {"latent": "vae", "spatial": True, "score": "density"},
    "projection": {"latent": "vae", "score": "projection", "projection_steps": 3},
    "attention": {"latent": "vae", "score": "attention"},
    "memory": {"latent": "memory", "memory_size": 5, "code_weight": 0.5},
    "spatial memory": {"latent": "memory", "memory_size": 5, "spatial": True},
    "autoregressive": {
        "latent": "autoregressive",
        "bins": 5,
        "estimator_channels": 3,
        "score": "density",
    },
    "code book": {"latent": "quantised", "spatial": True, "codes": 6},
    "uncertainty and noise": {"loss": "uncertainty", "task": "noise", "grad_clip": 1.0},
    "perceptual": {"loss": {"perceptual": 1, "l1": 0.5}, "layers": {"relu1_2": 1.0}},
    "squares": {
        **U_NET,
        "task": "checkerboard",
        "loss": {"l2": 1, "msgms": 1, "ssim": 1},
        "smooth": 5,
        "keep": "last",
    },
    "critics of images and codes": {
        "network": {"widths": [4, 6], "latent_activation": "tanh"},
        "image_game": "prior",
        "latent_game": "uniform",
        "critic_network": {"widths": [4, 4], "norm": "layer"},
        "latent_critic_widths": [5],
        "game": {"loss": "lsgan"},
    },
    "critic's judgement": {
        "task": "noise",
        "image_game": "reconstruction",
        "critic_network": {"widths": [4, 4]},
        "game": {"loss": "bce"},
        "model_updates": 2,
        "score": "critic",
        "keep": "last",
    },
    "critic's judgement by place": {
        **U_NET,
        "task": "noise",
        "image_game": "reconstruction",
        "critic_network": {"widths": [4, 4]},
        "critic_by_place": True,
        "game": {"loss": "lsgan"},
        "score": "critic",
        "keep": "last",
    },
    "scales": {"scales": 2, "loss": "l1", "spatial": True},
    "structure": {
        "structure": "nuclei",
        "loss": {"l1": 100, "nuclei": 1},
        "judged_by": {"l1": 1, "nuclei": 1},
        "image_game": "reconstruction",
        "critic_network": {"widths": [4, 4]},
        "game": {"loss": "bce"},
    },
    "spread attention": {
        "latent": "vae",
        "spatial": True,
        "attention_weight": 0.1,
        "score": "inattention",
    },
    "response": {"score": "response"},
    "two phases": {
        "task": "noise",
        "image_game": "reconstruction",
        "critic_network": {"widths": [4, 4]},
        "game": {"loss": "bce"},
        "second_phase_steps": 2,
        "old_steps": 2,
        "score": "critic",
        "keep": "last",
    },
    "mined codes": {
        "network": {"widths": [4, 6], "latent_activation": "tanh"},
        "image_game": "prior",
        "latent_game": "uniform",
        "mining_steps": 1,
        "critic_network": {"widths": [4, 4]},
        "latent_critic_widths": [5],
        "game": {"loss": "bce"},
    },
    "stripes": {**U_NET, "task": "stripes"},
    "grey and turned": {**U_NET, "task": "grey-turn", "turn": True},
    "puzzle": {**U_NET, "task": "puzzle", "attack": 0.1},
}
OTHERS |= {
    f"reconstruction, {name}": ("reconstruction", {**NET, **options})
    for name, options in RECONSTRUCTION.items()
}
GANOMALY = {
    "skips": {
        "spatial": True,
        "latent_channels": None,
        "loss": {"critic": 1, "l1": 50, "features": 1},
        "judged_by": {"l2": 0.9, "features": 0.1},
        "critic_vector": 7,
        "noise": 0.1,
    },
    "skips and a second encoder": {
        "spatial": True,
        "latent_channels": 2,
        "loss": {"critic": 1, "l2": 50, "code": 1},
        "game": {"loss": "hinge"},
        "keep": "last",
    },
}
OTHERS |= {
    f"ganomaly, {name}": (
        "ganomaly",
        {**TINY["ganomaly"], "network": {"widths": [4, 6], "skips": True}, **options},
    )
    for name, options in GANOMALY.items()
}
GAN = {
    "descent": {
        "inversion": "descent",
        "game": {"loss": "bce"},
        "prior": "uniform",
        "distance": "l1",
        "reduction": "sum",
        "descent_steps": 4,
    },
    "drawn codes": {"encoder_loss": "ziz", "encoder_bound": None},
    "bigan": {"inversion": "joint", "score": {"pixels": 0.9, "critic": 0.1}},
    "alad": {
        "inversion": "joint",
        "joint": "alad",
        "game": {"loss": "bce"},
        "spectral": True,
        "critic_dropout": 0.2,
        "pair_network": {"widths": [4, 4], "norm": "none", "dropout": 0.2},
        "code_widths": [4, 4],
        "pair_widths": [5],
        "score": "features",
        "ema_decay": 0.9,
    },
    "alpha": {
        "inversion": "joint",
        "joint": "alpha",
        "game": {"loss": "bce-ratio"},
        "score": {"pixels": 1, "critic": 1, "code-critic": 1},
    },
    "simultaneous": {"inversion": "simultaneous", "score": "code"},
}
OTHERS |= {f"gan, {name}": ("gan", {**TINY["gan"], **options}) for name, options in GAN.items()}
CASES = [(name, TINY.get(name, {})) for name in registry.names()]


@pytest.mark.parametrize(("name", "options"), CASES, ids=[name for name, _ in CASES])
def test_every_detector_conforms(name, options):
    check_detector(registry.load(name), options, input_px=32 if name in TINY else 64)


@pytest.mark.parametrize(("name", "options"), OTHERS.values(), ids=OTHERS)
def test_detectors_conform_with_other_options(name, options):
    check_detector(registry.load(name), tiny_detectors.useful(name, options), input_px=32)


# --- what a suite must find in a detector ------------------------------------------------


class BrightnessOptions(DetectorOptions):
    """Options of a small detector that conforms."""

    share: float = 1.0
    """Factor of the score."""


class Brightness(Detector):
    """The difference of a tile's brightness to that of healthy tiles."""

    Options = BrightnessOptions

    def fit(self, tiles, context):
        every = np.concatenate(list(tiles.fit.ordered(64)))
        self.mean = torch.tensor([every.mean()])
        return FitReport("fitted")

    def known(self):
        if not hasattr(self, "mean"):
            raise DetectorError("the detector is not fitted yet")
        return float(self.mean)

    def score_places(self, tiles):
        away = np.abs(tiles.mean(axis=(1, 2, 3)) - self.known())
        return away.reshape(-1, 1, 1).astype(np.float32)

    def state(self):
        self.known()
        return State({"mean": self.mean}, {})

    def load_state(self, state, device):
        if [tuple(tensor.shape) for tensor in state.tensors.values()] != [(1,)]:
            raise DetectorError("the state is not that of this detector")
        self.mean = state.tensors["mean"]


class Abstract(Detector):
    pass


class Undescribed(Brightness):
    class Options(DetectorOptions):
        bare: int = 1


class WithoutFit(Brightness):
    def known(self):
        return float(getattr(self, "mean", torch.zeros(1)))

    def state(self):
        return State({"mean": getattr(self, "mean", torch.zeros(1))}, {})


class Crashing(Brightness):
    def known(self):
        return float(self.mean)  # an AttributeError before the fit


class Double(Brightness):
    def score_places(self, tiles):
        return super().score_places(tiles).astype(np.float64)


class Flat(Brightness):
    def score_places(self, tiles):
        return super().score_places(tiles)[:, 0, 0]


class Infinite(Brightness):
    def score_places(self, tiles):
        found = super().score_places(tiles)
        found[:1] = np.inf
        return found


class Constant(Brightness):
    def score_places(self, tiles):
        return super().score_places(tiles) * 0


class OfTheBatch(Brightness):
    def score_places(self, tiles):
        found = super().score_places(tiles)
        return found - found.mean() if len(found) else found


class Writing(Brightness):
    def score_places(self, tiles):
        found = super().score_places(tiles)
        tiles[:1] = 0
        return found


class Drawing(Brightness):
    def fit(self, tiles, context):
        report = super().fit(tiles, context)
        self.mean += torch.rand(1)
        return report


class Twice(Brightness):
    """Continues a fit that was stopped, and sees its first batches again."""

    def fit(self, tiles, context):
        kept = context.folder / "sum"
        total = float(kept.read_text()) if kept.exists() else 0.0
        for batch in tiles.fit.shuffled(7, seed=context.seed, epoch=0):
            total += float(batch.mean())
            kept.write_text(repr(total))
        self.mean = torch.tensor([total / 4])
        return FitReport("fitted")


class Unsaved(Brightness):
    class Options(BrightnessOptions):
        checkpoint_seconds: float = 300.0
        """Maximum time between two checkpoints, seconds."""

    def fit(self, tiles, context):
        list(tiles.fit.shuffled(7, seed=context.seed, epoch=0))
        return super().fit(tiles, context)


class AwayFromGlass(Brightness):
    """Has no score for a window that shows some glass."""

    def score_places(self, tiles):
        found = super().score_places(tiles)
        found[(tiles == 243).all(axis=-1).mean(axis=(1, 2)) > 0.05] = np.nan
        return found


class Forgetful(Brightness):
    def load_state(self, state, device):
        super().load_state(state, device)
        self.mean = self.mean + 1


class InTheValues(Brightness):
    def state(self):
        return State({"mean": torch.zeros(1)}, {"mean": self.known()})

    def load_state(self, state, device):
        self.mean = torch.tensor([state.values["mean"]], dtype=torch.float64)


class Lenient(Brightness):
    def load_state(self, state, device):
        self.mean = next(iter(state.tensors.values()), torch.zeros(1)).flatten()[:1]


class Crumbling(Brightness):
    def load_state(self, state, device):
        self.mean = state.tensors["mean"]
        float(self.mean)


class Ending(Brightness):
    def fit(self, tiles, context):
        super().fit(tiles, context)
        return FitReport("converged")


class Noting(Brightness):
    def fit(self, tiles, context):
        super().fit(tiles, context)
        return FitReport("fitted", notes={"mean": np.float32(1)})


class Embedding(Brightness):
    def embed(self, tiles):
        return np.repeat(self.score(tiles)[:, None], 3, axis=1).astype(np.float64)


class Reconstructing(Brightness):
    def reconstruct(self, tiles):
        self.known()
        return tiles

    def difference(self, tiles):
        return self.score_map(tiles) + np.float32(1)


@pytest.mark.parametrize(
    ("cls", "found"),
    [
        (Abstract, "lacks fit, load_state, score_places, state"),
        (Undescribed, "bare have no description"),
        (WithoutFit, "score_map before the fit is not refused"),
        (Crashing, "score_map before the fit ends with AttributeError"),
        (Double, "float64, not float32"),
        (Flat, r"the shape \(5,\), not \(5, any, any\)"),
        (Infinite, "not finite"),
        (Constant, "all tiles have the same score"),
        (OfTheBatch, "depend on the other tiles"),
        (Writing, "scoring changes the tiles"),
        (Drawing, "two fits with one seed differ in the tensor mean"),
        (Twice, "one that was stopped and continued, differ in the tensor mean"),
        (Unsaved, "a training that is stopped leaves no checkpoint"),
        (AwayFromGlass, "drawn tissue cannot be scored: a score is not a finite number"),
        (Forgetful, "read back of it differ in the tensor mean"),
        (InTheValues, "a state without its tensors is not refused"),
        (Lenient, "a state without its tensors is not refused"),
        (Crumbling, "a state without its tensors ends with KeyError"),
        (Ending, "ended_by is 'converged'"),
        (Noting, "the notes of the fit are not JSON values"),
        (Embedding, "embed gives float64"),
        (Reconstructing, "not pooled to the score"),
        (dict, "does not derive from wsiad's Detector"),
    ],
)
def test_what_does_not_conform_is_told(cls, found):
    with pytest.raises(AssertionError, match=found):
        check_detector(cls)


@pytest.mark.parametrize("input_px", [16, 100, 224])
def test_a_small_detector_conforms(input_px):
    check_detector(Brightness, {"share": 2.0}, input_px=input_px)


class InSteps(Brightness):
    """Continues a fit that was stopped where it was."""

    def fit(self, tiles, context):
        kept = context.folder / "means"
        means = [float(word) for word in kept.read_text().split()] if kept.exists() else []
        begun.append(len(means))
        for batch in tiles.fit.shuffled(7, seed=context.seed, epoch=0, start=len(means)):
            means.append(float(batch.mean()))
            kept.write_text(" ".join(map(repr, means)))
        self.mean = torch.tensor([np.mean(means)])
        return FitReport("fitted")


begun: list[int] = []


def test_a_fit_is_stopped_after_a_batch_and_continued():
    begun.clear()
    check_detector(InSteps, input_px=16)
    assert begun == [0, 0, 1]


def test_tiles_follow_the_seed_and_strange_ones_are_told_apart():
    first, again, other = (tissue_tiles(3, 20, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (3, 20, 20, 3)
    assert first.dtype == np.uint8
    assert np.abs(first.astype(int) - other).mean() > 5
    strange = tissue_tiles(3, 20, seed=1, strange=True)
    assert strange[..., 1].max() > first.mean()


# --- slides ------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["openslide", "jpeg-tiff"])
def test_slides_of_both_readers_conform(tmp_path, backend):
    path = write_jpeg(tmp_path / "a.tif", smooth(700, 1011), space="YCBCR", subsampling="420")
    with open_slide(path, backend=backend) as slide:
        assert slide.backend == backend
        check_slide(slide)


def test_slides_of_other_formats_conform(tmp_path):
    image = smooth(600, 515)
    paths = [write_tiff(tmp_path / "lossless.tif", image)]
    scn = {"mpp": 0.5, "offset_px": (100, 300), "collection_px": (2000, 3000)}
    paths.append(write_scn(tmp_path / "area.scn", image, **scn))
    folder = tmp_path / "dicom"
    folder.mkdir()
    paths.append(write_level(folder / "0.dcm", image, series=7))
    write_level(folder / "1.dcm", halve(image), series=7, number=2, mpp=1.0)
    for path in paths:
        with open_slide(path) as slide:
            check_slide(slide)


def test_slide_with_holes_conforms():
    valid = np.ones((300, 400), bool)
    valid[50:120, 30:200] = False
    check_slide(ArraySlide(smooth(300, 400), levels=3, valid=valid))
    check_slide(ArraySlide(stained(5, 3), levels=1))


class _Faulty(ArraySlide):
    """A slide that does one thing wrong."""

    def read_level(self, level, x, y, size):
        region = super().read_level(level, x, y, size)
        return self.change(region, level, x, y)


class AllValid(_Faulty):
    def change(self, region, level, x, y):
        return Region(region.rgb)


class Float(_Faulty):
    def change(self, region, level, x, y):
        return Region(region.rgb.astype(np.float32), region.valid)


class Shifted(_Faulty):
    """Is off by a pixel where a rectangle does not begin at the edge."""

    def change(self, region, level, x, y):
        return Region(np.roll(region.rgb, 1, axis=1), region.valid) if x > 0 else region


class Changing(_Faulty):
    calls = 0

    def change(self, region, level, x, y):
        self.calls += 1
        return Region(region.rgb + np.uint8(self.calls % 7), region.valid)


class Darker(_Faulty):
    def change(self, region, level, x, y):
        return Region(region.rgb // 2 if level else region.rgb, region.valid)


class WholeTiles(ArraySlide):
    def read_tiles(self, level, corners, out):
        super().read_tiles(level, corners, out)
        out[:] = out[::-1, ::-1]
        return np.ones(len(out), bool)


def wrong(**changes):
    slide = ArraySlide(smooth(300, 400), levels=3)
    for name, value in changes.items():
        setattr(slide, name, value)
    return slide


@pytest.mark.parametrize(
    ("slide", "found"),
    [
        (AllValid(smooth(300, 400), levels=2), "beyond the level are valid"),
        (Float(smooth(300, 400)), "pixels are float32"),
        (Shifted(smooth(300, 400)), "pixels differ"),
        (Changing(smooth(300, 400)), "read twice: pixels differ"),
        (Darker(smooth(300, 400), levels=2), "level 1 differs from level 0 by"),
        (WholeTiles(smooth(300, 400)), "read_tiles: pixels differ"),
        (wrong(spacing=Spacing(0, 0.5)), "the spacing along x is 0"),
        (wrong(bounds=Box(0, 0, 500, 300)), "are not within"),
        (wrong(levels=()), "there are no levels"),
        (wrong(name=""), "name is ''"),
        (wrong(levels=wrong().levels[::-1]), "downsample of level 0 is not 1"),
        (wrong(levels=(wrong().levels[0], wrong().levels[0])), "from the finest to the coarsest"),
        ("a.tif", "does not derive from wsiad's Slide"),
    ],
)
def test_slides_that_do_not_conform_are_told(slide, found):
    with pytest.raises(AssertionError, match=found):
        check_slide(slide)


@pytest.mark.parametrize("name", sorted(formats()))
def test_export_formats_pass_their_suite(name):
    check_export(formats()[name])


class Points(ExportFormat):
    name = "points"
    summary = "detections as text"
    shows_regions = True

    def files(self, slide):
        return ("points.txt",)

    def write(self, folder, findings):
        (folder / "points.txt").write_text(repr(findings.detections) + repr(findings.regions))


class Elsewhere(Points):
    def write(self, folder, findings):
        super().write(folder, findings)
        (folder.parent / "points.txt").write_text("")


class Unnamed(Points):
    def write(self, folder, findings):
        super().write(folder, findings)
        (folder / "more.txt").write_text("")


class Random(Points):
    def write(self, folder, findings):
        (folder / "points.txt").write_text(str(np.random.default_rng().random()))


class Changing(Points):
    def write(self, folder, findings):
        findings.heatmap.scores[:] = 0
        super().write(folder, findings)


class Fails(Points):
    def write(self, folder, findings):
        (folder / "points.txt").write_text(repr(findings.regions[0]) + repr(findings.detections[0]))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (Elsewhere, "writes outside of its folder"),
        (Unnamed, "writes .*more.txt.* and names"),
        (Random, "writes other bytes of the same findings"),
        (Changing, "changes the scores"),
        (type("Silent", (Points,), {"shows_regions": False}), "shows_regions.* is False"),
        (type("Away", (Points,), {"files": lambda self, slide: ("../a.txt",)}), "is not that of"),
        (type("Taken", (Points,), {"name": "png"}), "is wsiad's own"),
        (type("Spaced", (Points,), {"name": "two words"}), "as one word"),
        (type("Nameless", (Points,), {"name": ""}), "is empty"),
    ],
)
def test_an_export_format_that_is_wrong_is_told(wrong, said):
    check_export(Points)
    with pytest.raises(AssertionError, match=said):
        check_export(wrong)


def test_an_export_format_that_needs_findings_fails():
    with pytest.raises(IndexError):
        check_export(Fails)
