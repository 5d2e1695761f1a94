"""Judgements on regions: what is stored, merged, withdrawn, read by others and refused."""

import json
import multiprocessing
import shutil

import pytest
import shapely

import wsiad
from support.builders import stained, write_scn
from support.geojson_rules import check_feature
from support.runs import score_channel
from wsiad.annotations import Role, read_annotations
from wsiad.core.errors import InputError
from wsiad.results.folder import Results
from wsiad.results.reviews import Judgement, SlideReview, region_id

CORNER = (256 + 256, 128 + 128)
"""Corner of the strange place of the slide, level-0 pixels; its bounds begin at (256, 128)."""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of a slide with bounds and one strange place, in a folder of a patient."""
    folder = tmp_path_factory.mktemp("reviews")
    image = stained(640, 640, seed=2) // 4 + 20
    image[128:224, 256:352, 0] = 220
    image[224:256, 256:352, 0] = 95  # less strange
    image[400:464, 400:464, 0] = 200
    (folder / "slides" / "patient").mkdir(parents=True)
    options = {"mpp": 0.5, "offset_px": (256, 128), "collection_px": (2048, 1024)}
    write_scn(folder / "slides" / "patient" / "s.scn", image, **options)
    (folder / "list.csv").write_text("slide,name\nslides/patient/s.scn,patient/s\n")
    return score_channel(folder, folder / "list.csv")


@pytest.fixture
def slide(results, tmp_path):
    shutil.copytree(results, tmp_path / "out")
    return Results(tmp_path / "out").slide("patient/s")


def ids(slide):
    return [region_id(slide.name, shape) for shape in slide.outlines()]


def say(slide, region, reviewer="Ada", verdict="", comment=""):
    judgement = Judgement(reviewer=reviewer, verdict=verdict, comment=comment)
    return SlideReview(slide).judge(region, judgement)


def test_what_is_stored_is_read_by_readers_of_outlines_at_the_right_place(slide):
    first, second = ids(slide)[:2]
    say(slide, first, verdict="accepted", comment="dense\nnuclei")
    say(slide, second, verdict="rejected")
    path = slide.results / "reviews" / "patient" / "s.geojson"
    for feature in json.loads(path.read_text())["features"]:
        check_feature(feature, bounds=slide.bounds())
    found = read_annotations(path)
    (tumour,), (normal,) = (found.with_role(role) for role in (Role.TUMOUR, Role.CUT_OUT))
    assert not found.ignored
    assert tuple(tumour.shell.min(axis=0)) == pytest.approx(CORNER, abs=1)
    assert tuple(normal.shell.min(axis=0)) == pytest.approx((256 + 384, 128 + 384), abs=17)
    regions = SlideReview(slide).regions()
    assert [(one.id, one.verdict) for one in regions] == [
        (first, "accepted"), (second, "rejected")
    ]  # fmt: skip
    (told,) = regions[0].judgements
    assert (told.reviewer, told.comment) == ("Ada", "dense nuclei")
    assert told.time.endswith("+00:00")
    shapes = slide.outlines()
    assert regions[0].area.equals(shapely.Polygon(shapes[0].rings[0]))


def test_reviewers_who_disagree_are_told_and_decide_nothing(slide):
    first = ids(slide)[0]
    say(slide, first, "Ada", "accepted")
    now, before = say(slide, first, "Bo", "rejected", "fat")
    assert (now.verdict, before) == ("disputed", None)
    path = slide.results / "reviews" / "patient" / "s.geojson"
    found = read_annotations(path)
    assert not found.outlines
    assert found.ignored == {"class Disputed": 1}
    now, before = say(slide, first, "Bo", "accepted")
    assert (now.verdict, before.verdict, before.comment) == ("accepted", "rejected", "fat")


def test_a_judgement_that_says_nothing_withdraws_the_own_one_alone(slide):
    first = ids(slide)[0]
    say(slide, first, "Ada", "accepted")
    say(slide, first, "Bo", comment="why?")
    say(slide, first, "Ada")
    (region,) = SlideReview(slide).regions()
    assert [(one.reviewer, one.comment) for one in region.judgements] == [("Bo", "why?")]
    assert region.verdict == ""
    say(slide, first, "Bo")
    assert SlideReview(slide).regions() == []
    assert not SlideReview(slide).path.exists()


def judged_by(folder, name, regions):
    slide = Results(folder).slide("patient/s")
    for region in regions:
        say(slide, region, name, "rejected", f"of {name}")


def test_no_judgement_is_lost_where_several_write_at_once(slide):
    regions = ids(slide)[:2]
    context = multiprocessing.get_context("spawn")
    names = [f"reviewer {number}" for number in range(3)]
    jobs = [
        context.Process(target=judged_by, args=(slide.results, name, regions)) for name in names
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
        assert job.exitcode == 0
    found = SlideReview(slide).regions()
    assert {one.id for one in found} == {*regions}
    for region in found:
        assert [one.reviewer for one in region.judgements] == names
    assert [path.name for path in SlideReview(slide).path.parent.iterdir()] == ["s.geojson"]


def test_judgements_outlive_regions_that_are_derived_again(slide):
    first = ids(slide)[0]
    say(slide, first, "Ada", "accepted")
    wsiad.export(results=slide.results, region_quantile=0.9, quiet=True)
    again = Results(slide.results).slide("patient/s")
    now = ids(again)
    assert first not in now
    with pytest.raises(InputError, match="no such region any more"):
        say(again, ids(slide)[0].replace("-", "0"), "Bo", "accepted")
    # The same place is the same region, though its outline is another.
    region, _ = say(again, now[0], "Bo", "rejected")
    assert (region.id, region.verdict) == (first, "disputed")
    assert len(SlideReview(again).regions()) == 1


def test_what_other_programs_change_and_draw_is_kept(slide):
    first = ids(slide)[0]
    say(slide, first, "Ada", "accepted")
    path = SlideReview(slide).path
    values = json.loads(path.read_text())
    values["features"][0]["properties"]["classification"] = {"name": "Normal", "color": [0, 0, 0]}
    point = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]},
             "properties": {"objectType": "annotation", "name": "here"}}  # fmt: skip
    values["features"].append(point)
    path.write_text(json.dumps(values))
    (region,) = SlideReview(slide).regions()
    assert region.verdict == "disputed"
    assert region.by("QuPath").verdict == "rejected"
    say(slide, first, "Ada", "rejected")
    (region,) = SlideReview(slide).regions()
    assert region.verdict == "rejected"
    assert json.loads(path.read_text())["features"][1] == point


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"type":"FeatureCollection"}', "features"),
        (
            '{"type":"FeatureCollection","features":[],"wsiad":{"fingerprint":"sha256:0"}}',
            "another slide of this name",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_never_written_over(slide, text, why):
    path = SlideReview(slide).path
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(InputError, match=why):
        SlideReview(slide).regions()
    with pytest.raises(InputError):
        say(slide, ids(slide)[0], "Ada", "accepted")
    assert path.read_text() == text
