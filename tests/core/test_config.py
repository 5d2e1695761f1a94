"""Configs, errors and files."""

import importlib
import pickle
import re
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pydantic
import pytest
from pydantic import Field
from safetensors.numpy import save_file

from wsiad.core.config import (
    Config,
    Paths,
    QuietOptions,
    build,
    dump_yaml,
    option_texts,
    read_yaml,
    resolve,
    stated_path,
    verb,
)
from wsiad.core.errors import (
    ConfigError,
    InputError,
    RunError,
    ScaleError,
    SlideReadError,
    WsiadError,
)
from wsiad.core.files import (
    atomic_file,
    atomic_folder,
    checked_name,
    fingerprint,
    read_json,
    write_json,
)


class Inner(Config):
    size: int = 3


class Outer(Config):
    name: str
    scale: float = 0.5
    inner: Inner = Inner()
    options: dict[str, int] = {}


def test_flags_win_over_the_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("name: a\nscale: 2\ninner: {size: 4}\noptions: {k: 1}\n")
    got = resolve(Outer, file=path, flags={"scale": "3", "options": {"j": 2}})
    assert got == Outer(name="a", scale=3, inner=Inner(size=4), options={"k": 1, "j": 2})


@pytest.mark.parametrize(
    ("path", "out", "found"),
    [
        ("store", "runs/knn", "project/store"),
        ("../store", "runs/knn", "project/../store"),
        ("store", "./runs/knn/", "project/store"),
        ("store", "knn", "project/runs/store"),
        ("store", ".", "project/runs/knn/store"),
        ("store", "runs/renamed", "store"),  # from the working directory
        ("store", "../runs/knn", "store"),
        ("store", "/elsewhere/runs/knn", "store"),
        ("/data/store", "runs/knn", "/data/store"),
        ("store", None, "store"),
    ],
)
def test_a_stated_path_counts_from_where_the_command_was_started(tmp_path, path, out, found):
    folder = tmp_path / "project" / "runs" / "knn"
    expected = tmp_path / found if found.startswith("project") else Path(found)
    assert stated_path(Path(path), folder=folder, out=out) == expected


def test_a_stated_path_stays_short_where_the_command_was_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert stated_path(Path("store"), folder=Path("runs/knn"), out="runs/knn") == Path("store")


def test_dump_and_read_back(tmp_path):
    config = Outer(name="µm", inner=Inner(size=9))
    path = tmp_path / "c.yaml"
    path.write_text(dump_yaml(config), encoding="utf-8")
    assert resolve(Outer, file=path, flags={}) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nscael: 1", "scael: unknown key .did you mean 'scale'"),
        ("name: a\ninner: {sise: 1}", "inner.sise: unknown key"),
        (
            "name: a\ninner.size: 4",
            r"inner.size: a group of options is set as a whole.*'inner={size: 4}'",
        ),
        ("name: a\ninner.sise: 4", "inner.sise: unknown key"),
        ("scale: 1", "name: is required"),
        ("name: a\nscale: wide", "scale: 'wide' is not allowed; it should be a valid number"),
        ("name: a\nscale: .nan", "scale: .*finite"),
        ("- a", "does not hold a mapping"),
        ("name: a\nname: b", "occurs twice"),
        ("name: !!python/object/apply:os.system [true]", "cannot be read as YAML"),
        ("name: [", "cannot be read as YAML"),
    ],
)
def test_bad_yaml(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        resolve(Outer, file=path, flags={})
    assert "c.yaml" in str(error.value)


class Choices(Config):
    kind: Literal["one", "two"] = "one"
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    count: Annotated[int, Field(ge=2)] | Literal["all"] = "all"
    edges: tuple[Literal[1, 3], ...] = ()
    paths: Annotated[Paths, Field(min_length=1)] = (Path("a"),)
    inner: Inner = Inner()

    @pydantic.model_validator(mode="after")
    def _fit_together(self):
        if self.kind == "two" and self.edges:
            raise ValueError("`two` has no edges")
        return self


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"kind": "three"}, "kind: 'three' is not allowed; it should be 'one' or 'two'"),
        ({"share": 0}, "share: 0 is not allowed; it should be greater than 0"),
        ({"share": "x"}, "share: 'x' is not allowed; it should be a valid number"),
        ({"count": 1}, "count: 1 is not allowed; it should be greater than or equal to 2 or 'all'"),
        ({"edges": [3, 2]}, "edges.1: 2 is not allowed; it should be 1 or 3"),
        ({"edges": 3}, "edges: 3 is not allowed; it should be a list"),
        ({"inner": {"size": []}}, "inner.size: [] is not allowed; it should be a valid integer"),
        ({"inner": 4}, "inner: 4 is not allowed; it should be a mapping"),
        ({"paths": []}, "paths: value should have at least 1 item, not 0 .got []"),
        ({"kind": "two", "edges": [1]}, "`two` has no edges"),
        ({"kind": "twoo"}, "kind: .*'two' .did you mean 'two'"),
        ({"paths": [3]}, "paths.0: 3 is not allowed; it should be a path"),
        ({"share": 2, "count": 0}, "share: 2 is .*; count: 0 is "),
    ],
)
def test_a_wrong_value_is_answered_with_those_that_are_allowed(values, problem):
    with pytest.raises(ConfigError) as error:
        build(Choices, values)
    assert re.fullmatch(problem.replace("[", r"\[") + ".*", error.value.problem)
    assert error.value.remedy is None
    assert len(error.value.problem.split("; ")) <= 2 * len(values)


def test_known_keys_are_listed_for_unknown_ones_alone():
    with pytest.raises(ConfigError) as error:
        build(Choices, {"kind": "x", "inner": {"sise": 1}})
    assert error.value.remedy == "Known keys of inner: size."
    assert "inner.sise: unknown key (did you mean 'size'?)" in error.value.problem
    with pytest.raises(ConfigError, match=r"Known keys: name, scale, inner, options\.$"):
        build(Outer, {"name": "a", "color": 1})


def test_a_long_value_is_cut_short():
    with pytest.raises(ConfigError) as error:
        build(Choices, {"kind": "x" * 10_000})
    assert len(str(error.value)) < 200


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: there is no such file. Check the path"):
        read_yaml(tmp_path / "none.yaml")


def test_verb_takes_a_config_or_its_fields():
    @verb(Outer)
    def double(config):
        return config.name * 2

    assert double(Outer(name="x")) == double(name="x") == "xx"
    with pytest.raises(ConfigError, match="not both"):
        double(Outer(name="x"), name="y")
    with pytest.raises(ConfigError, match="nmae"):
        double(nmae="y")


def test_configs_are_frozen():
    with pytest.raises(Exception, match="frozen"):
        build(Outer, {"name": "a"}).name = "b"


@pytest.mark.parametrize("cls", [ScaleError, SlideReadError, ConfigError])
def test_errors_survive_a_process_boundary(cls):
    error = cls("is broken", subject="slide_1", remedy="Mend it.")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert str(again) == str(error) == "slide_1: is broken. Mend it."
    assert isinstance(again, WsiadError)


def test_files_are_as_open_as_the_umask_says(tmp_path):
    """safetensors makes files that nobody else can read, also of runs that a group shares."""
    (tmp_path / "plain").write_bytes(b"")
    with atomic_file(tmp_path / "weights.safetensors") as partial:
        save_file({"a": np.zeros(3)}, str(partial))
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_atomic_file_is_complete_or_absent(tmp_path):
    path = tmp_path / "sub" / "a.txt"
    with pytest.raises(RuntimeError), atomic_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert list(path.parent.iterdir()) == []
    with atomic_file(path) as partial:
        partial.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    with pytest.raises(RuntimeError), atomic_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "whole"


def test_atomic_folder_replaces_whole(tmp_path):
    path = tmp_path / "f"
    for text in ("one", "two"):
        with atomic_folder(path) as partial:
            (partial / text).write_text(text)
    assert [entry.name for entry in path.iterdir()] == ["two"]
    with pytest.raises(RuntimeError), atomic_folder(path) as partial:
        raise RuntimeError
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]


def test_json_is_strict(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_a_json_object_is_read_back(tmp_path):
    write_json(tmp_path / "a.json", {"µm": [1, None]})
    assert read_json(tmp_path / "a.json", RunError, keys=["µm"], remedy="") == {"µm": [1, None]}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "No such file"),
        (b"{", "Expecting property name"),
        (b"\xff", "decode"),
        (b"[" * 100_000, "cannot be read"),
        (b'[{"a": 1}]', "does not hold a JSON object"),
        (b'{"a": 1}', "has no b, c"),
    ],
)
def test_what_is_no_such_object_is_an_error_of_the_callers_kind(tmp_path, content, problem):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunError, match=problem) as error:
        read_json(path, RunError, keys=["a", "b", "c"], remedy="Train again.")
    assert error.value.subject == str(path)
    assert error.value.remedy == "Train again."


@pytest.mark.parametrize("given", [{"slides": ""}, {"slides": ["a", " "]}, {"out": ""}])
def test_an_empty_path_is_not_the_current_folder(given):
    class Places(Config):
        slides: Paths = (Path("a"),)
        out: Path | None = None
        title: str = ""

    assert build(Places, {"title": ""}).title == ""
    assert build(Places, {"out": "."}).out == Path()
    (name,) = given
    with pytest.raises(ConfigError, match=f"{name}: an empty path is not a path"):
        build(Places, given)


def test_fingerprint_follows_content_not_name(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    data = bytes(range(256)) * 8192  # 2 MiB: head, middle and tail do not overlap
    a.write_bytes(data)
    b.write_bytes(data)
    assert fingerprint(a) == fingerprint(b)
    for position in (0, len(data) // 2, len(data) - 1):
        b.write_bytes(data[:position] + b"\xaa" + data[position + 1 :])
        assert (fingerprint(a) != fingerprint(b)) == (data[position] != 0xAA)
    b.write_bytes(data + b"x")
    assert fingerprint(a) != fingerprint(b)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\\b", ".h", "a\0", "x" * 300])
def test_names_stay_in_their_folder(name):
    with pytest.raises(InputError):
        checked_name(name)


def test_ordinary_names_pass():
    for name in ("tumor_001", "TCGA-A1 (2)", "Präparat µ"):
        assert checked_name(name) == name
    assert Path(checked_name("a")).name == "a"


class Painted(QuietOptions):
    ORDER = ("width", ..., "quiet")

    colour: str = "red"
    """Of the paint."""
    width: int
    """Of the brush."""


class Framed(Painted):
    frame: str = "oak"
    """Its wood."""


def test_options_of_several_configs_stand_where_order_says():
    assert list(Painted.model_fields) == ["width", "colour", "quiet"]
    stored = dump_yaml(build(Painted, {"quiet": True, "width": 3}))
    assert stored.splitlines() == ["width: 3", "colour: red", "quiet: true"]


def test_what_is_made_of_a_config_keeps_its_order_and_adds_its_own():
    assert list(Framed.model_fields) == ["width", "colour", "quiet", "frame"]
    assert list(build(Framed, {"width": 3}).model_dump()) == list(Framed.model_fields)
    with pytest.raises(ConfigError, match="width: 'x' is not allowed"):
        build(Framed, {"width": "x"})


def test_a_config_gives_the_options_of_one_that_it_is_made_of():
    made = build(Framed, {"width": 3, "colour": "blue", "frame": "ash", "quiet": True})
    assert made.part(Painted) == build(Painted, {"width": 3, "colour": "blue", "quiet": True})
    assert type(made.part(Painted)) is Painted
    assert made.part(QuietOptions).quiet


def test_an_order_of_options_that_there_are_not_is_refused():
    with pytest.raises(KeyError, match="wood"):

        class Wrong(Painted):
            ORDER = ("wood", ...)


DESCRIBED = """
from __future__ import annotations
from typing import Annotated, ClassVar
import pydantic
from {module} import {base} as Base

Number = Annotated[int, pydantic.Field(description="Of the alias.")]

class Below(Base):
    first: int = 1
    \"\"\"The first,
    on two lines.

      Indented.\"\"\"
    bare: int = 2
    second: int = 3
    kept: ClassVar[int] = 4
    \"\"\"Of no option.\"\"\"
    alias: Number = 5
    \"\"\"Not shown.\"\"\"
    stated: int = pydantic.Field(6, description="Stated.")
    method: int = 7

    def work(self) -> None:
        \"\"\"Work.\"\"\"

class Above(Below):
    first: int = 10
    second: int = 11
    \"\"\"The second.\"\"\"

    class Nested(Base):
        inner: int = 1  # pydantic 2.10 takes it for one of `Above` too, if that has it
        \"\"\"Nested.\"\"\"

def made():
    class Above(Base):
        first: int = 1
        \"\"\"Local.\"\"\"
    return Above

KINDS = (Below, Above, Above.Nested, made())
"""
BASE = """
import pydantic

class Described(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(use_attribute_docstrings=True)
"""


def test_texts_of_options_are_those_that_pydantic_reads(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "described_base.py").write_text(BASE)
    bases = {"described_base": "Described", "wsiad.core.config": "Config"}
    modules = []
    for number, (module, base) in enumerate(bases.items()):
        text = DESCRIBED.replace("{module}", module).replace("{base}", base)
        (tmp_path / f"described_{number}.py").write_text(text)
        modules.append(importlib.import_module(f"described_{number}"))
    for theirs, ours in zip(*(module.KINDS for module in modules), strict=True):
        expected = {name: info.description or "" for name, info in theirs.model_fields.items()}
        assert option_texts(ours) == expected
        described = (kind.model_json_schema()["properties"] for kind in (theirs, ours))
        assert next(described) == next(described)
    assert option_texts(modules[1].Below)["first"] == "The first,\non two lines.\n\n  Indented."
    assert option_texts(modules[1].Above)["first"] == ""
    assert modules[1].Below.model_fields["first"].description is None  # not read by an import


def test_without_their_source_options_have_no_texts():
    space = {"Config": Config, "__name__": "nowhere"}
    exec('class Unseen(Config):\n    a: int = 1\n    """A."""\n', space)
    assert option_texts(space["Unseen"]) == {"a": ""}
