"""The options of each verb: their names, order and defaults are what users' files hold."""

import importlib
import json
from pathlib import Path

import pytest

from wsiad.core.config import Config, config_class, dump_yaml, option_texts
from wsiad.verbs import VERBS

# One line an option, in the order of `--help` and of a stored config.yaml; without a default
# those that have to be given.
OPTIONS = {
    "tile": """
        mpp
        tile
        stride=null
        min_coverage=0.5
        slide_mpp=null
        allow_upsampling=false
        tissue.mpp=8.0
        tissue.saturation_min=0.05
        tissue.saturation_max=0.15
        tissue.glass_margin=0.06
        tissue.smooth_um=24.0
        tissue.min_area_um2=10000.0
        tissue.max_hole_um2=50000.0
        tissue.remove_pen=true
        stain.method="vahadane"
        stain.target=null
        stain.sample_px=2000000
        quality.min_sharpness=null
        quality.min_saturation=null
        quality.max_pen=null
        quality.max_black=null
        quality.action="drop"
        decode="full"
        damaged_tiles="fail"
        workers=1
        cluster=null
        scheduler=null
        shard=null
        only=[]
        record=null
        retries=1
        stage_dir=null
        slides
        out
        coords=null
        override_mpp=false
        compression.codec="zstd"
        compression.level=-20
        compression.quality=95
        split_tiles=65536
        limit=null
        dry_run=false
        as_json=false
        quiet=false
    """,
    "embed": """
        store
        preset=null
        detector="knn"
        options={}
        weights=null
        dtype="float16"
        orientations=1
        max_gib=100.0
        h5=null
        workers=1
        cluster=null
        scheduler=null
        retries=1
        shard=null
        seed=0
        device="auto"
        quiet=false
        about=null
    """,
    "train": """
        store
        out
        preset=null
        detector="knn"
        options={}
        weights=null
        anomalies=null
        healthy_regions=null
        anomaly_types=[]
        anomaly_tiles=null
        split=null
        calibration=null
        quality.min_sharpness=null
        quality.min_saturation=null
        quality.max_pen=null
        quality.max_black=null
        trimming.share=0.0
        trimming.rounds=3
        trimming.by="score"
        trimming.folds=null
        seed=0
        device="auto"
        devices=1
        healthy_examples=512
        max_steps=null
        max_minutes=null
        accept_inverted=false
        quiet=false
        about=null
        log=null
    """,
    "detectors": """
        name=null
        as_json=false
    """,
    "tune": """
        store
        anomalies
        out
        preset=null
        detector="knn"
        space={}
        scales={}
        options={}
        trials=30
        max_minutes=null
        random_trials=10
        prune=true
        folds=3
        healthy_folds_by="slide"
        anomaly_folds_by="slide"
        healthy_tiles=null
        anomaly_types=[]
        anomaly_tiles=null
        split=null
        quality.min_sharpness=null
        quality.min_saturation=null
        quality.max_pen=null
        quality.max_black=null
        weights=null
        seed=0
        device="auto"
        fit_steps=null
        fit_minutes=null
        workers=1
        cluster=null
        scheduler=null
        retries=1
        at_once=null
        retry_failed=false
        quiet=false
        about=null
    """,
    "pretrain": """
        store
        out
        teacher=[]
        options={}
        split=null
        quality.min_sharpness=null
        quality.min_saturation=null
        quality.max_pen=null
        quality.max_black=null
        seed=0
        device="auto"
        max_steps=null
        max_minutes=null
        quiet=false
    """,
    "heatmap": """
        stride=null
        detail="window"
        precision="run"
        scales_um="auto"
        mean_of="auto"
        top_k=10
        region_quantile=0.999
        region_min_um2=0.0
        region_limit=300
        region_tolerance_um=null
        evidence_regions=10
        evidence_neighbours=3
        detection_quantile=0.5
        detection_limit=1000
        suppression="disc"
        suppression_radius_um=187.0
        viewers=["asap", "napari", "qupath"]
        workers=1
        cluster=null
        scheduler=null
        shard=null
        only=[]
        record=null
        retries=1
        stage_dir=null
        run
        slides
        out
        slide_mpp=null
        override_mpp=false
        allow_upsampling=null
        quality.min_sharpness=null
        quality.min_saturation=null
        quality.max_pen=null
        quality.max_black=null
        damaged_tiles="fail"
        healthy=null
        batch=256
        device="auto"
        limit=null
        dry_run=false
        as_json=false
        quiet=false
    """,
    "list-slides": """
        slides
        manifest=null
        as_json=false
    """,
    "status": """
        folder
        as_json=false
    """,
    "export": """
        scales_um="auto"
        mean_of="auto"
        top_k=10
        region_quantile=0.999
        region_min_um2=0.0
        region_limit=300
        region_tolerance_um=null
        detection_quantile=0.5
        detection_limit=1000
        suppression="disc"
        suppression_radius_um=187.0
        results
        format=[]
        scales_from=null
        workers=1
        quiet=false
    """,
    "refine": """
        run
        results
        healthy=null
        reviewed=null
        out
        store=null
        detector="linear-probe"
        options={}
        weights=null
        scales_um=[100.0, 200.0, 400.0]
        fdr=0.2
        top=0.03
        slides_needed=4
        slide_share=0.5
        usual=0.6
        most_anomalous=2000
        most_usual=6000
        folds=8
        patient=null
        device="auto"
        quiet=false
    """,
    "extend": """
        run
        results
        out
        store=null
        device="auto"
        quiet=false
    """,
    "significance": """
        results
        healthy
        check=null
        fdr=0.1
        slide_score="auto"
        levels=[0.01, 0.05, 0.1]
        quiet=false
    """,
    "evaluate": """
        reference
        annotations=null
        masks=null
        class_map={}
        annotation_origin="auto"
        protocols=["camelyon16-2016", "camelyon16-dataset"]
        slide_score="auto"
        score_percentile=99.0
        spacing_um=null
        mask_downsample=null
        exclude=[]
        exclude_from_froc=[]
        unscored="exclude"
        bootstrap=1000
        seed=0
        quiet=false
        results=null
        detections=null
        out=null
        group_by=null
        groups=null
        slide_classifier="none"
        feature_quantiles=[0.999, 0.99]
    """,
    "compare": """
        reference
        annotations=null
        masks=null
        class_map={}
        annotation_origin="auto"
        protocols=["camelyon16-2016", "camelyon16-dataset"]
        slide_score="auto"
        score_percentile=99.0
        spacing_um=null
        mask_downsample=null
        exclude=[]
        exclude_from_froc=[]
        unscored="exclude"
        bootstrap=1000
        seed=0
        quiet=false
        a
        b
        out
    """,
    "view": """
        results
        slides=[]
        annotations=null
        slide=""
        port=0
        read_only=false
        reviewer=""
        browser=true
    """,
    "suggest": """
        source
        out
        run=null
        count=20
        per_slide=null
        candidates=null
        by=null
        unsure=0.25
        known=[]
        device="auto"
        quiet=false
    """,
    "import-tiles": """
        sources
        out
        mpp
        tile=null
        label=""
        labels=[]
        split=""
        grey_values=null
        resize=null
        crop=null
        clahe=null
        stain.method="none"
        stain.target=null
        stain.sample_px=2000000
        prepared_like=null
        workers=1
        compression.codec="zstd"
        compression.level=-20
        compression.quality=95
        quiet=false
    """,
    "import-features": """
        sources
        out
        mpp
        encoder
        tile=null
        slide_mpp=null
        label=""
        split=""
        dtype="float16"
        workers=1
        quiet=false
    """,
    "score-tiles": """
        run
        store
        out
        normal=[]
        tumour=[]
        batch=256
        bootstrap=1000
        seed=0
        device="auto"
        quiet=false
    """,
    "export-tiles": """
        store
        out
        format="png"
        quality=95
        quiet=false
    """,
    "demo": """
        out="demo"
        detector="gaussian"
        weights="wsiad"
        healthy=4
        max_minutes=2.0
        fast=false
        workers=1
        seed=0
        quiet=false
    """,
    "doctor": """
        weights=null
        as_json=false
    """,
}


def config_of(verb: str) -> type[Config]:
    module = verb.replace("-", "_")
    return config_class(getattr(importlib.import_module(f"wsiad.verbs.{module}"), module))


def stated(cls: type[Config], prefix: str = "") -> list[str]:
    found = []
    for name, field in cls.model_fields.items():
        if field.is_required():
            found.append(f"{prefix}{name}")
            continue
        value = field.get_default(call_default_factory=True)
        if isinstance(value, Config):
            found += stated(type(value), f"{prefix}{name}.")
        else:
            plain = str(value) if isinstance(value, Path) else value
            found.append(f"{prefix}{name}={json.dumps(plain)}")
    return found


def test_every_verb_is_listed():
    assert list(OPTIONS) == list(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_options_keep_their_names_order_and_defaults(verb):
    assert stated(config_of(verb)) == [line.strip() for line in OPTIONS[verb].split("\n")[1:-1]]


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_described(verb):
    assert [name for name, text in option_texts(config_of(verb)).items() if not text] == []


GIVEN = {
    "train": {"out": "o", "store": "s"},
    "tune": {"space": {"neighbours": [1, 3]}, "anomalies": "a", "store": "s", "out": "o"},
    "heatmap": {"out": "o", "run": "r", "slides": ["s"]},
    "tile": {"out": "o", "slides": ["s"], "tile": 96, "mpp": 0.5},
    "evaluate": {"reference": "r", "results": "r"},
}


@pytest.mark.parametrize("verb", GIVEN)
def test_a_stored_config_has_its_keys_in_the_order_of_the_options(verb):
    cls = config_of(verb)
    lines = dump_yaml(cls.model_validate(GIVEN[verb])).splitlines()
    keys = [line.partition(":")[0] for line in lines if not line.startswith((" ", "-"))]
    assert keys == list(cls.model_fields)
