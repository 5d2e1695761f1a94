"""`wsiad demo`: every verb in turn, ending in a report with what was promised."""

import json

import pytest

import wsiad
from wsiad.core.errors import InputError


@pytest.mark.slow
def test_demo_ends_with_a_report(tmp_path):
    result = wsiad.demo(out=tmp_path / "demo", fast=True, quiet=True)
    page = result.report.read_text()
    assert result.report == tmp_path / "demo" / "report.html"
    for text in ("ROC of the slides", "FROC", "Heatmap over the tissue", "tissue outlined",
                 "lymph_node.safetensors",
                 "parts of the slide", "not real tissue", "tumor_003"):  # fmt: skip
        assert text in page, text
    assert page.count("data:image/png;base64,") == 12
    assert page.count('alt="Scored parts of the slide') == 5
    inside = tmp_path / "demo" / "results"
    assert "not real tissue" in (inside / "report.html").read_text()
    assert 'href="report.html#slide-1"' in (inside / "contact_sheet.html").read_text()
    regions = (tmp_path / "demo" / "results").glob("*/regions.json")
    found = sum(len(json.loads(path.read_text())["regions"]) for path in regions)
    assert page.count('alt="Outlined in the slide') == found > 0
    values = json.loads((tmp_path / "demo" / "results" / "evaluation.json").read_text())
    assert values["counts"]["tumour_slides"] == 3
    assert 0 <= values["tile_auroc"]["value"] <= 1
    with pytest.raises(InputError, match="is not empty"):
        wsiad.demo(out=tmp_path / "demo", fast=True, quiet=True)
