"""Files, folders and manifests of slides."""

from pathlib import Path

import pytest

from wsiad.errors import InputError
from wsiad.slides.inputs import find_slides


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def test_folder_is_searched_in_depth(tmp_path):
    touch(
        tmp_path,
        "b.svs",
        "deep/a.tif",
        "notes.txt",
        ".hidden/c.svs",
        ".d.svs",
        "x/1.dcm",
        "x/2.dcm",
        "E.NDPI",
    )
    slides = find_slides([tmp_path])
    assert sorted(slide.name for slide in slides) == ["E", "a", "b", "x"]
    assert not any(slide.problem for slide in slides)


def test_a_named_file_is_taken_whatever_its_suffix(tmp_path):
    touch(tmp_path, "odd.img")
    assert find_slides([tmp_path / "odd.img"])[0].name == "odd"


def test_two_slides_of_one_name_are_both_refused_and_others_go_on(tmp_path):
    touch(tmp_path, "a/x.svs", "b/x.tif", "y.svs")
    by_path = {slide.path.relative_to(tmp_path): slide for slide in find_slides([tmp_path])}
    assert "another slide is named 'x'" in by_path[Path("a/x.svs")].problem
    assert by_path[Path("b/x.tif")].problem
    assert not by_path[Path("y.svs")].problem


def test_one_slide_given_twice_is_one_slide(tmp_path):
    touch(tmp_path, "x.svs")
    slides = find_slides([tmp_path, tmp_path / "x.svs"])
    assert len(slides) == 1
    assert not slides[0].problem


def test_unsafe_name_is_refused(tmp_path):
    touch(tmp_path, "ok.svs", "bad\n.svs")
    problems = {slide.name: slide.problem for slide in find_slides([tmp_path])}
    assert "cannot be used as a name" in problems["bad\n"]
    assert not problems["ok"]


def test_manifest(tmp_path):
    (tmp_path / "m.csv").write_text(
        "slide,mpp,label,split,centre\ns/a.svs,0.25,Normal,train,umcu\nb.tif,,,test,rumc\n"
    )
    a, b = find_slides([tmp_path / "m.csv"])
    assert (a.name, a.path, a.mpp, a.label, a.split) == (
        "a",
        tmp_path / "s/a.svs",
        0.25,
        "normal",
        "train",
    )
    assert (b.mpp, b.label, b.extra) == (None, "", {"centre": "rumc"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path\na.svs\n", "no column `slide`"),
        ("slide\n", "lists no slides"),
        ("slide,mpp\na.svs,zero\n", "line 2: `mpp` is 'zero'"),
        ("slide,mpp\na.svs,-1\n", "line 2: `mpp` is '-1'"),
        ("slide,mpp\na.svs,nan\n", "line 2: `mpp` is 'nan'"),
        ("slide,mpp\n ,1\n", "line 2: `slide` is empty"),
        ("slide,mpp\na.svs\n", "line 2: does not have as many fields"),
        ("slide\na.svs,1\n", "line 2: does not have as many fields"),
    ],
)
def test_bad_manifest(tmp_path, text, message):
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        find_slides([path])


def test_nothing_to_do_is_an_error(tmp_path):
    with pytest.raises(InputError, match="holds no slides"):
        find_slides([tmp_path])
    with pytest.raises(InputError, match="no such file"):
        find_slides([tmp_path / "gone"])
