"""Files, folders and manifests of slides."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile

from support.builders import make_heatmap, stained
from support.dicom_slides import write_annotations, write_level
from wsiad.core.errors import InputError
from wsiad.core.geometry import PixelMap
from wsiad.exports.ome import write_ome_tiff
from wsiad.slides.inputs import find_slides
from wsiad.slides.slide_folder import folder_slides


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


def names(sources):
    return sorted(slide.name for slide in find_slides(sources) if not slide.problem)


def test_slides_of_one_stem_are_named_by_their_paths(tmp_path):
    touch(tmp_path, "p1/1.svs", "p2/1.tif", "p2/deep/1.svs", "1.svs", "y.svs")
    assert names([tmp_path]) == ["1", "p1/1", "p2/1", "p2/deep/1", "y"]
    # Of two folders the paths begin where they part; of files too.
    assert names([tmp_path / "p1", tmp_path / "p2"]) == ["p1/1", "p2/1", "p2/deep/1"]
    assert names([tmp_path / "p1/1.svs", tmp_path / "p2/1.tif"]) == ["p1/1", "p2/1"]
    rows = [f"{file}," for file in ("p1/1.svs", "p2/1.tif")]
    assert names([manifest(tmp_path / "m.csv", *rows, header="slide,name")]) == ["p1/1", "p2/1"]
    rows = ["p1/1.svs,first", "p2/1.tif,"]
    assert names([manifest(tmp_path / "m.csv", *rows, header="slide,name")]) == ["1", "first"]


def test_dicom_slides_of_one_folder_name_are_named_by_their_paths(tmp_path):
    for number in (1, 2):
        write_level(tmp_path / f"s{number}/DICOM/0.dcm", stained(64, 64), series=number)
    assert names([tmp_path]) == ["s1/DICOM", "s2/DICOM"]


def test_names_that_stay_equal_or_lie_within_others_are_refused_and_others_go_on(tmp_path):
    touch(tmp_path, "a/x.svs", "a/x.tif", "y.svs", "b.svs", "b/1.svs", "c/1.svs")
    by_path = {slide.path.relative_to(tmp_path): slide for slide in find_slides([tmp_path])}
    assert "another slide has the name 'x'" in by_path[Path("a/x.svs")].problem
    assert by_path[Path("a/x.tif")].problem
    assert "among those of the slide 'b'" in by_path[Path("b/1.svs")].problem
    for path in ("y.svs", "b.svs", "c/1.svs"):
        assert not by_path[Path(path)].problem


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a//b", ".h/b", "a/..", "a/", "a\\b", "zarr.json", "a/zarr.json"]
)
def test_a_name_that_leads_out_or_is_a_stores_is_refused(tmp_path, name):
    touch(tmp_path, "a.svs")
    (slide,) = find_slides([manifest(tmp_path / "m.csv", f"a.svs,{name}", header="slide,name")])
    assert "cannot be used as a name" in slide.problem


def test_one_slide_given_twice_is_one_slide(tmp_path):
    touch(tmp_path, "x.svs")
    slides = find_slides([tmp_path, tmp_path / "x.svs"])
    assert len(slides) == 1
    assert not slides[0].problem


def manifest(path, *rows, header="slide,label,mpp,split,centre"):
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_all_that_sources_say_of_a_slide_is_kept_in_any_order(tmp_path):
    touch(tmp_path, "s/a.svs", "s/b.svs")
    (tmp_path / "link.svs").symlink_to(tmp_path / "s" / "a.svs")
    os.link(tmp_path / "s" / "a.svs", tmp_path / "hard.svs")
    sources = [
        tmp_path / "s",
        manifest(tmp_path / "m.csv", "s/a.svs,Tumour,,,", "s/b.svs,normal,,train,"),
        manifest(tmp_path / "n.csv", "s/a.svs,1,0.25,,umcu"),
        tmp_path / "link.svs",
        tmp_path / "hard.svs",
    ]
    for given in itertools.permutations(sources):
        found = {s.name: s for s in find_slides(given)}
        assert set(found) == {"a", "b"}
        a, b = found["a"], found["b"]
        assert (a.label, a.mpp, a.split, a.extra) == ("tumor", 0.25, "", {"centre": "umcu"})
        assert (b.label, b.split, a.problem, b.problem) == ("normal", "train", "", "")


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ("a.svs,tumor,,,", "l.svs,normal,,,", "`label` is 'tumor' by .*line 2, and 'normal' by"),
        ("a.svs,,0.25,,", "a.svs,,0.5,,", "`mpp` is 0.25 by .*line 2, and 0.5 by .*line 3"),
        ("a.svs,,,train,", "./a.svs,,,test,", "`split` is 'train' by .*, and 'test' by"),
        ("a.svs,,,,umcu", "a.svs,,,,rumc", "`centre` is 'umcu' by .*, and 'rumc' by"),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_what_contradicts_itself_is_refused_with_both(tmp_path, first, second, told, swapped):
    touch(tmp_path, "a.svs")
    (tmp_path / "l.svs").symlink_to("a.svs")
    sources = [tmp_path, manifest(tmp_path / "m.csv", first, second)]
    with pytest.raises(InputError, match=told):
        find_slides(sources[::-1] if swapped else sources)
    apart = [manifest(tmp_path / f"{n}.csv", row) for n, row in enumerate((first, second))]
    with pytest.raises(InputError, match=r"is named twice.*0\.csv.*1\.csv"):
        find_slides(apart)


def test_a_scale_that_is_only_rounded_is_no_contradiction(tmp_path):
    touch(tmp_path, "a.svs")
    path = manifest(tmp_path / "m.csv", "a.svs,,0.2520,,", "a.svs,,0.25201,,")
    assert [slide.mpp for slide in find_slides([path])] == [0.252]


def test_two_links_to_one_file_are_one_slide_and_told_of(tmp_path, caplog):
    touch(tmp_path, "archive/1.svs", "cohort/x")
    for name in ("case01.svs", "case02.svs"):
        (tmp_path / "cohort" / name).symlink_to(tmp_path / "archive" / "1.svs")
    (slide,) = find_slides([tmp_path / "cohort"])
    assert slide.name == "case01"
    assert "case02.svs, and is used once, as case01" in caplog.text


def test_linked_folders_are_followed_once_and_broken_links_are_told_of(tmp_path, caplog):
    touch(tmp_path, "archive/b.svs", "archive/deep/c.svs", "cohort/a.svs")
    cohort = tmp_path / "cohort"
    (cohort / "batch2").symlink_to(tmp_path / "archive")
    (cohort / "again").symlink_to(tmp_path / "archive")
    (tmp_path / "archive" / "round").symlink_to(cohort)
    (cohort / "self").symlink_to("self")
    (cohort / "gone.svs").symlink_to(tmp_path / "nothere.svs")
    (cohort / "batch3").symlink_to(tmp_path / "nothere")
    os.mkfifo(cohort / "pipe.tif")
    found = {slide.name: slide for slide in find_slides([cohort])}
    assert set(found) == {"a", "b", "c", "gone", "pipe"}
    assert "nothere.svs, which does not exist" in found["gone"].problem
    assert found["pipe"].problem == "is not a file"
    assert not any(found[name].problem for name in "abc")
    assert "batch3: is a link to nothing" in caplog.text
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "batch").symlink_to(tmp_path / "archive")
    assert {slide.name for slide in find_slides([tmp_path / "only"])} == {"a", "b", "c", "gone",
                                                                          "pipe"}  # fmt: skip
    with pytest.raises(InputError, match=r"gone\.svs: is a link to .*nothere\.svs"):
        find_slides([cohort / "gone.svs"])


def test_a_manifest_may_name_a_slide_and_its_folder(tmp_path):
    touch(tmp_path, "one/a.svs", "two/b.svs", "two/c.svs")
    path = manifest(tmp_path / "m.csv", "one,first", "two,second", "gone.svs,", header="path,name")
    first, second, gone = find_slides([path])
    assert (first.name, first.path) == ("first", tmp_path / "one" / "a.svs")
    assert "holds 2 slides" in second.problem
    assert gone.name == "gone"


def test_dicom_series_are_told_apart_and_what_is_no_image_is_no_slide(tmp_path, caplog):
    image = stained(64, 64)
    for number in (1, 2):
        write_level(tmp_path / "flat" / f"{number}_l0.dcm", image, series=number)
        write_level(tmp_path / "flat" / f"{number}_l1.dcm", image[::4], series=number, number=2)
    write_level(tmp_path / "flat" / "0_label.dcm", image, series=2, number=3, kind="LABEL")
    write_level(tmp_path / "one" / "0001", image, series=3)
    write_level(tmp_path / "one" / "0002", image[::4], series=3, number=2)
    write_annotations(tmp_path / "one" / "0_annotations.dcm", series=3)
    touch(tmp_path, "one/readme", "one/1.2.3")
    found = {slide.name: slide.path.name for slide in find_slides([tmp_path])}
    assert found == {"1_l0": "1_l0.dcm", "2_l0": "2_l0.dcm", "one": "0001"}
    assert "1 file left out: DICOM, but not images of slides: 0_ann" in caplog.text
    # A level, or the label, that is named is the slide.
    for names in (["1_l1.dcm", "1_l0.dcm"], ["1_l0.dcm", "1_l1.dcm"]):
        (slide,) = find_slides([tmp_path / "flat" / name for name in names])
        assert slide.name == names[0][:-4]
    label = tmp_path / "flat" / "0_label.dcm"
    assert len(find_slides([tmp_path / "flat", label])) == 2
    (slide,) = find_slides([tmp_path / "one" / "0_annotations.dcm"])
    assert "not an image of a slide" in slide.problem


def test_a_dicom_file_that_is_damaged_has_a_row(tmp_path):
    write_level(tmp_path / "s" / "l0.dcm", stained(64, 64), series=1)
    (tmp_path / "s" / "l1.dcm").write_bytes(bytes(128) + b"DICM" + b"\xff" * 300)
    (tmp_path / "s" / "l2.dcm").write_bytes(b"no DICOM")
    found = {slide.name: slide.problem for slide in find_slides([tmp_path])}
    assert set(found) == {"s", "l1", "l2"}
    assert not found["s"]
    assert "cannot be read as DICOM" in found["l1"]
    assert "does not begin as a DICOM file" in found["l2"]


def test_results_and_masks_among_slides_are_left_out_with_one_line(tmp_path, caplog):
    touch(tmp_path, "a.svs", "b.ome.tif", "c_mask.tif", "a_mask.tif", "a_evaluation_mask.tif",
          "results/a/slide.json", "results/a/heatmap.ome.tif", "results/a/a_likelihood_map.tif",
          "results/a/heatmap.ome.zarr/d.tif")  # fmt: skip
    write_ome_tiff(
        make_heatmap(np.ones((8, 9)), PixelMap(0, 0, 9.0, 9.0)), tmp_path / "moved.ome.tif"
    )
    tifffile.imwrite(tmp_path / "x_likelihood_map.tif", np.zeros((32, 32), np.float32))
    tifffile.imwrite(tmp_path / "y_likelihood_map.tif", np.zeros((32, 32, 3), np.uint8))
    found = [slide.name for slide in find_slides([tmp_path])]
    assert sorted(found) == ["a", "b.ome", "c_mask", "y_likelihood_map"]
    assert caplog.text.count("left out: results or masks of slides") == 1
    assert "6 files left out: results" in caplog.text
    # Those of different slides have equal names.
    named = "a_evaluation_mask.tif, a_mask.tif, moved.ome.tif …"
    assert caplog.text.rstrip().endswith(f"not slides: {named}")
    caplog.clear()
    touch(tmp_path, "results/b/slide.json", "results/b/heatmap.ome.tif")
    folder_slides(tmp_path / "results")
    named = "a/a_likelihood_map.tif, a/heatmap.ome.tif, b/heatmap.ome.tif"
    assert caplog.text.rstrip().endswith(f"not slides: {named}")
    # What is named is what is meant.
    assert find_slides([tmp_path / "a_mask.tif"])[0].name == "a_mask"


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


def labels(folder, text, encoding="utf-8"):
    (folder / "m.csv").write_bytes(text.encode(encoding))
    return [(s.name, s.label, s.mpp, s.split) for s in find_slides([folder / "m.csv"])]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("slide, label , mpp,split\na.tif, Tumour , 0.25 ,Train\n", "utf-8"),
        ("Slide,LABEL,Mpp,Split\r\na.tif,1,0.25,train\r\n\r\n,,,\r\n", "utf-8-sig"),
        ("image;class;um per px;Subset\na.tif;positive;0,25;train\n", "utf-8"),
        ("File\tType\tµm/px\tset\na.tif\tmalignant\t0.25\ttrain\n", "utf-16"),
        ('slide_path,Ground Truth,MPP_x,mpp_y,split\na.tif,1.0,"0,25",0.25,train\n', "utf-8"),
        ("split,wsi,label,class,mpp\ntrain,a.tif,tumor,POS,.25\n", "utf-8"),
        ("split,subset,wsi,label,mpp\nTrain,TRAIN,a.tif,tumor,.25\n", "utf-8"),
    ],
)
def test_headers_and_labels_of_manifests_are_understood(tmp_path, text, encoding):
    assert labels(tmp_path, text, encoding) == [("a", "tumor", 0.25, "train")]


def test_one_word_for_healthy_and_kinds_of_tumour_stay_apart(tmp_path):
    words = ["0", "Negative", "benign", "HEALTHY", "non-tumor", "", "macro", "ITC", "Metastases"]
    text = "slide,label\n" + "".join(f"{n}.tif,{word}\n" for n, word in enumerate(words))
    found = [label for _, label, *_ in labels(tmp_path, text)]
    assert found == [*["normal"] * 5, "", "macro", "itc", "metastasis"]


def test_an_anomaly_type_is_what_the_user_says_and_not_healthy(tmp_path):
    text = "slide,label,Anomaly Type\na.tif,tumor,Necrosis\nb.tif,,fold\nc.tif,normal,\n"
    assert [label for _, label, *_ in labels(tmp_path, text)] == ["necrosis", "fold", "normal"]


def test_a_link_to_itself_is_one_slide_that_cannot_be_worked_on(tmp_path):
    touch(tmp_path, "a.svs")
    (tmp_path / "b.svs").symlink_to("b.svs")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/up").symlink_to("..")
    rows = manifest(tmp_path / "m.csv", "b.svs,tumor", "a.svs,normal", header="slide,label")
    for sources in ([tmp_path], [rows], [tmp_path, rows]):
        problems = {slide.name: slide.problem for slide in find_slides(sources)}
        assert problems == {"a": "", "b": "is a link to b.svs, which does not exist"}


@pytest.mark.skipif(os.name != "posix", reason="names of files are bytes only there")
@pytest.mark.parametrize("name", [b"b\xff.svs", b"sub\xff/b.svs"])
def test_a_path_that_is_not_utf8_is_the_slides_row(tmp_path, name):
    path = os.fsencode(tmp_path) + b"/" + name
    try:
        Path(os.fsdecode(path)).parent.mkdir(exist_ok=True)
        Path(os.fsdecode(path)).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    good, bad = find_slides([touch(tmp_path, "a.svs")])
    assert (good.name, good.problem) == ("a", "")
    assert r"\udcff" in bad.problem
    assert "not UTF-8" in bad.problem
    f"{bad.name}{bad.path}".encode()  # what a table can hold


def test_a_column_of_labels_under_another_name_is_told_of(tmp_path, caplog):
    rows = ["a.svs,tumor,7", "b.svs,0,1", "c.svs,,"]
    find_slides([manifest(tmp_path / "m.csv", *rows, header="slide,diagnosis,centre")])
    assert "'diagnosis' (did you mean `label`?), 'centre'" in caplog.text
    caplog.clear()
    rows = ["a.svs,tumor,normal", "b.svs,0,normal"]
    find_slides([manifest(tmp_path / "m.csv", *rows, header="slide,finding,label")])
    assert "'finding'" in caplog.text
    assert "did you mean" not in caplog.text


def test_marks_without_width_do_not_hide_a_column(tmp_path):
    rows = ["a.svs,tumor\u200b"]
    slides = find_slides([manifest(tmp_path / "m.csv", *rows, header="\u200bslide,label\u200b")])
    assert [slide.label for slide in slides] == ["tumor"]


def test_a_column_that_is_not_known_is_kept_and_told_of(tmp_path, caplog):
    (tmp_path / "m.csv").write_text("slide,mmp,lable,centre\na.tif,0.5,tumor,umcu\n")
    (slide,) = find_slides([tmp_path / "m.csv"])
    assert slide.extra == {"mmp": "0.5", "lable": "tumor", "centre": "umcu"}
    for words in ("'mmp' (did you mean `mpp`?)", "'lable' (did you mean `label`?)", "'centre'"):
        assert words in caplog.text
    assert "'centre' (" not in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("folder\na.svs\n", "no column `slide`"),
        ("slide,label\na.svs,tumr\n", "line 2: the label of a.svs is 'tumr'.*'tumor'.*negative"),
        ("slide,label\na.svs,-1\n", "line 2: the label of a.svs is '-1'"),
        ("slide,label,Class\na.svs,normal,1\n", "line 2: `label`: .*'normal' and '1'"),
        ("slide,mpp,MPP\na.svs,0.5,0.25\n", "line 2: `mpp`: .*'0.5' and '0.25'"),
        ("slide,mpp\na.svs,0.0005\n", "line 2: .*'0.0005'.*millimetres.* 0.5 µm/px"),
        ("slide,mpp\na.svs,250\n", "line 2: .*'250'.*nanometres.* 0.25 µm/px"),
        ("slide,mpp\na.svs,2.5e-7\n", "line 2: .* metres.* 0.25 µm/px"),
        ("slide,mpp\na.svs,40\n", "line 2: .*'40'.*At 40× it is about 0.25"),
        ("slide,label,anomaly type\na.svs,0,necrosis\n", "a.svs is normal.*'necrosis'"),
        ("slide\n", "lists no slides"),
        ("slide,mpp\na.svs,zero\n", "line 2: `mpp` is 'zero'"),
        ("slide,mpp\na.svs,-1\n", "line 2: `mpp` is '-1'"),
        ("slide,mpp\na.svs,0.25 um\n", "line 2: `mpp` is '0.25 um'.*only the number"),
        ("slide,label\na\0.svs,tumor\n", r"line 2: `slide` is 'a\\x00\.svs': no file has a NUL"),
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
