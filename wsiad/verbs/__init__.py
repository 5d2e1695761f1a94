"""List the verbs of the command line with their summaries and examples, without heavy imports."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Verb:
    """Verb of the command line; its module and function have ``_`` for each ``-``.

    Parameters
    ----------
    summary : str
        One line for the list of verbs; it is here so that the list needs no imports.
    positional : tuple of str
        Fields of the config that are passed without a flag.
    examples : str
        Examples at the end of the verb's help.
    common : tuple of str
        Options that the help shows first, besides those that are required.
    following : str
        Command that usually comes next, with fields of the config in braces; empty if there is
        none. It is printed after the summary, unless `quiet` is set; the ``following`` of a result,
        if it is not ``None``, takes its place.
    repeated : tuple of str
        Fields that the following command has too, and must have the same values for. Those that
        were set are added to it as flags.
    stopped : str
        What is said where SIGINT or SIGTERM stopped the verb.
    """

    summary: str
    positional: tuple[str, ...]
    examples: str
    common: tuple[str, ...] = ()
    following: str = ""
    repeated: tuple[str, ...] = ()
    stopped: str = "finished work is kept. Run the same command again to continue."


_ANEW = "nothing is there to go on from. Run the same command again, which begins anew."
"""Words for verbs that are stopped and keep nothing."""


def function_of(verb: str) -> Callable[..., Any]:
    """Import the module of a verb, such as ``score-tiles``, and return its function."""
    name = verb.replace("-", "_")
    function: Callable[..., Any] = getattr(importlib.import_module(f"{__name__}.{name}"), name)
    return function


VERBS = {
    "tile": Verb(
        "cut slides into a zarr store of stain-normalised tissue tiles",
        ("slides",),
        """\
wsiad tile slides/ --out store/ --mpp 0.972 --tile 96
wsiad tile manifest.csv --out store/ --mpp 0.5 --tile 256 --workers 8
wsiad tile slides/ --out store/ --mpp 0.5 --tile 256 --cluster configs/slurm.yaml
wsiad tile slides/ --out store/ --config configs/tile-20x.yaml --stain-target reference.svs""",
        common=(
            "stride",
            "slide_mpp",
            "workers",
            "limit",
            "dry_run",
            "as_json",
        ),
        following="wsiad train {out} --out runs/knn --detector knn",
    ),
    "embed": Verb(
        "compute the features of a store's tiles once, for all methods that read them",
        ("store",),
        """\
wsiad embed store/ --option backbone=squeezenet1_1
wsiad embed store/ --detector linear-probe --weights densenet121.safetensors
wsiad embed store/ --option backbone=resnet50 --option places=1 --h5 features/
wsiad embed store/ --workers 4""",
        common=(
            "detector",
            "options",
            "weights",
            "workers",
        ),
        following="wsiad train {store} --out runs/{detector} --detector {detector}",
        repeated=("preset", "options", "weights", "seed"),
    ),
    "train": Verb(
        "fit a detector on the healthy tiles of a store",
        ("store",),
        """\
wsiad train store/ --out runs/knn --detector knn
wsiad train store/ --out runs/wide --detector knn --option backbone=resnet50 --option places=8
wsiad train store/ --out runs/dpa --detector dpa --weights vgg19.safetensors --max-minutes 30
wsiad train store/ --out runs/probe --detector linear-probe --anomalies tumour_store/
wsiad train store/ --out runs/padim --preset padim""",
        common=(
            "detector",
            "options",
            "weights",
            "preset",
            "anomalies",
            "max_steps",
            "max_minutes",
            "device",
        ),
        following="wsiad heatmap {out} SLIDES --out results/",
    ),
    "detectors": Verb(
        "list the methods and the published systems, with what they need, or explain one",
        ("name",),
        """\
wsiad detectors
wsiad detectors dpa
wsiad detectors --json""",
        common=("as_json",),
        stopped=_ANEW,
    ),
    "tune": Verb(
        "choose a detector's options with a few anomalous tiles, by cross-validation",
        ("store",),
        """\
wsiad tune store/ --anomalies tumour_store/ --out tuned/ --config configs/camelyon16/tune-dpa.yaml
wsiad tune store/ --anomalies tumour_store/ --out tuned/ --detector knn \\
    --space 'neighbours=[1, 3, 9]' --space 'fit_vectors={low: 1000, high: 20000, log: true}'
wsiad tune --config tune.yaml --trials 60 --cluster configs/slurm.yaml
wsiad train --config tuned/best.yaml""",
        common=(
            "detector",
            "space",
            "options",
            "weights",
            "trials",
            "workers",
        ),
    ),
    "pretrain": Verb(
        "train a perceptual network on the healthy tiles of a store, without labels",
        ("store",),
        """\
wsiad pretrain store/ --out network/
wsiad pretrain store/ --out network/ --max-minutes 60 --option precision=bfloat16
wsiad pretrain store/ --out network/ --teacher densenet121.safetensors squeezenet1_1.safetensors
wsiad train store/ --out runs/own --detector knn --weights network/weights.safetensors""",
        common=(
            "teacher",
            "max_steps",
            "max_minutes",
            "device",
        ),
        following="wsiad train {store} --out runs/knn --weights {out}/weights.safetensors",
        repeated=("split",),
    ),
    "heatmap": Verb(
        "score slides: heatmaps, regions and detections, for viewers and for evaluation",
        ("run", "slides"),
        """\
wsiad heatmap runs/knn test_slides/ --out results/
wsiad heatmap runs/knn test_slides/ --out results/ --stride 32 --device cuda
wsiad heatmap runs/knn test_store/ --out results/""",
        common=(
            "stride",
            "viewers",
            "healthy",
            "device",
            "workers",
            "limit",
            "dry_run",
            "as_json",
        ),
        following="wsiad view {out}",
    ),
    "list-slides": Verb(
        "list the slides of folders and manifests, and write a manifest of them",
        ("slides",),
        """\
wsiad list-slides slides/
wsiad list-slides slides/ --manifest manifest.csv
wsiad list-slides slides/ labels.csv --json""",
        common=(
            "manifest",
            "as_json",
        ),
        stopped=_ANEW,
    ),
    "status": Verb(
        "show how far a store, a run or results are: slides done, failed, running, left",
        ("folder",),
        """\
wsiad status store/
wsiad status runs/dpa
wsiad status results/ --json""",
        common=("as_json",),
        stopped=_ANEW,
    ),
    "export": Verb(
        "add files, or derive other regions and detections, without scoring again",
        ("results",),
        """\
wsiad export results/ --format qupath asap
wsiad export results/ --region-quantile 0.99 --region-min-um2 5000
wsiad export results/ --detection-limit 500 --workers 8""",
        common=(
            "format",
            "workers",
        ),
        following="wsiad view {results}",
    ),
    "refine": Verb(
        "take a second look: learn from what stands out in results, if that can be relied on",
        ("run", "results"),
        """\
wsiad refine runs/knn results/ --healthy healthy_results/ --out runs/knn_second
wsiad heatmap runs/knn_second test_slides/ --out results_second/""",
        common=(
            "healthy",
            "reviewed",
            "detector",
            "device",
        ),
        following="wsiad heatmap {out} SLIDES --out results/",
    ),
    "extend": Verb(
        "take the rejected regions of a review into a run, without training it anew",
        ("run", "results"),
        """\
wsiad extend runs/knn results/ --out runs/knn_reviewed
wsiad heatmap runs/knn_reviewed test_slides/ --out results_reviewed/""",
        following="wsiad heatmap {out} SLIDES --out results/",
        stopped=_ANEW,
    ),
    "significance": Verb(
        "add p-values of slides, regions and tiles, from held-out healthy slides",
        ("results",),
        """\
wsiad significance results/ --healthy healthy_results/
wsiad significance results/ --healthy healthy_results/ --check more_healthy_results/ --fdr 0.05""",
        common=(
            "check",
            "fdr",
        ),
        following="wsiad view {results}",
        stopped=_ANEW,
    ),
    "evaluate": Verb(
        "compute slide AUC, FROC and tile AUROC against ground truth",
        ("results",),
        """\
wsiad evaluate results/ --reference reference.csv --annotations xml/ --out results/
wsiad evaluate --detections csv/ --masks masks/ --spacing-um 0.243 --reference ref.csv --out o/""",
        common=(
            "annotations",
            "masks",
            "detections",
            "out",
        ),
        stopped=_ANEW,
    ),
    "compare": Verb(
        "compare two results on the same slides: paired differences of every figure",
        ("a", "b"),
        """\
wsiad compare results_knn/ results_dpa/ --reference reference.csv --annotations xml/ --out knn_dpa/
wsiad compare csv_old/ results/ --reference reference.csv --masks masks/ --out compared/""",
        common=(
            "annotations",
            "masks",
        ),
        stopped=_ANEW,
    ),
    "view": Verb(
        "show slides with their heatmaps in a browser, on this machine only",
        ("results",),
        """\
wsiad view results/
wsiad view results/ --slides /mnt/slides --port 8080 --no-browser""",
        common=(
            "slides",
            "port",
            "browser",
        ),
        stopped="judgements are kept.",
    ),
    "suggest": Verb(
        "choose windows for a reviewer to label, as images to sort",
        ("source",),
        """\
wsiad suggest results/ --out labels/
wsiad suggest results/ --out more_labels/ --known labels/ --count 50
wsiad suggest unlabelled_store/ --run runs/knn --out labels/""",
        common=(
            "run",
            "count",
            "known",
        ),
        stopped=_ANEW,
    ),
    "import-tiles": Verb(
        "import tiles from folders, tars or PCam's HDF5 into a store, without geometry",
        ("sources",),
        """\
wsiad import-tiles normal.tar --out store/ --mpp 0.972 --label normal
wsiad import-tiles folder_of_png/ more_of_them/ --out store/ --mpp 0.5
wsiad import-tiles pcam_valid_x.h5 --labels pcam_valid_y.h5 --out store/ --mpp 0.972""",
        common=(
            "tile",
            "label",
            "labels",
            "workers",
        ),
        following="wsiad train {out} --out runs/knn --detector knn",
    ),
    "import-features": Verb(
        "import features that TRIDENT or CLAM computed, to train and score without slides",
        ("sources",),
        """\
wsiad import-features features_uni_v1/ --out healthy/ --mpp 0.5 --encoder uni --label normal
wsiad import-features h5_files/ --out store/ --mpp 0.5 --encoder uni --tile 256 --slide-mpp 0.25
wsiad train healthy/ --out runs/knn --detector knn""",
        common=(
            "label",
            "workers",
        ),
        following="wsiad train {out} --out runs/knn --detector knn",
    ),
    "score-tiles": Verb(
        "score each tile of a store, and compute tile AUROC if its groups are labelled",
        ("run", "store"),
        """\
wsiad score-tiles runs/gaussian test_store/ --out scores/
wsiad score-tiles runs/gaussian test_store/ --out scores/ --normal healthy ndbe""",
        common=(
            "normal",
            "device",
        ),
        stopped=_ANEW,
    ),
    "export-tiles": Verb(
        "write tiles as PNG or JPEG files, or their coordinates for CLAM or TRIDENT",
        ("store",),
        """\
wsiad export-tiles store/ --out tiles/
wsiad export-tiles store/ --out patches/ --format clam
wsiad export-tiles store/ --out patches/ --format trident""",
        common=("format",),
    ),
    "demo": Verb(
        "run all steps on synthetic slides, which it draws itself, and make a report",
        (),
        """\
wsiad demo
wsiad demo --out my_demo --detector knn""",
        common=(
            "out",
            "detector",
            "fast",
            "workers",
        ),
        stopped="its folder is not complete. Delete that, or set another --out, and run it again.",
    ),
    "doctor": Verb(
        "check what is installed and available, and suggest how to get what is missing",
        (),
        """\
wsiad doctor
wsiad doctor --json""",
        common=("as_json",),
        stopped=_ANEW,
    ),
}
