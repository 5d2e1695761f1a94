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
