"""YAML from outside: plain values, or one line."""

from pathlib import Path

import pytest

from wsiad.core.config import Config, read_yaml, resolve
from wsiad.core.errors import ConfigError
from wsiad.core.yaml_text import MOST_BYTES, YamlError, in_one_line, parse, read

CONFIGS = Path(__file__).parents[2] / "configs"


class Some(Config):
    name: str = "a"
    count: int = 1
    options: dict[str, object] = {}


def laughs(item: str, link: str) -> str:
    text = f"a: &a {item}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        text += f"{name}: &{name} " + link.format(",".join([f"*{before}"] * 9)) + "\n"
    return text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("? [a, b]\n: 1", "a key is a list or a mapping"),
        ("{[1]: 2}", "a key is a list or a mapping"),
        ("a: {[x]: 1}", "a key is a list or a mapping"),
        ("a: !!timestamp foo", "timestamp"),
        ("a: !!int foo", "invalid literal"),
        ("a: !!binary foo", "binary"),
        ("a: !!python/name:os.system ''", "python/name"),
        ("[" * 5000, "nested deeper"),
        ("{a: " * 60 + "1" + "}" * 60, "nested deeper than 50 levels"),
        (laughs("[x, x]", "[{}]"), "100,000 values, aliases counted"),
        (laughs("{x: 1}", "{{<<: [{}]}}"), "100,000 values, aliases counted"),
        ("&a [*a]", "a value that contains it"),
        ("a: *b", "undefined alias"),
        ("9" * 5000, "digits"),
        ("a: \x1b", "special characters"),
        ("a: 1\na: 2", "occurs twice"),
        ("!!map [1]", "."),
    ],
)
def test_what_is_no_plain_value(text, words, tmp_path):
    with pytest.raises(YamlError, match=words) as error:
        parse(text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml: cannot be read as YAML"):
        resolve(Some, file=tmp_path / "c.yaml", flags={})


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_own_files_are_the_same_by_either_parser(path):
    assert repr(read(path, own=True)) == repr(read(path))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2", "occurs twice"),
        ("&a [*a]", "a value that contains it"),
        ("a: !!python/name:os.system ''", "python/name"),
        ("{a: " * 60 + "1" + "}" * 60, "nested deeper than 50 levels"),
        ("a: [", "at line"),
    ],
)
def test_own_files_have_plain_values_too(text, words):
    with pytest.raises(YamlError, match=words):
        parse(text, own=True)
    assert parse("a: 2024-01-01", own=True) == {"a": "2024-01-01"}


def test_what_looks_like_a_date_is_a_text(tmp_path):
    (tmp_path / "c.yaml").write_text("name: 2024-13-45\n")
    assert resolve(Some, file=tmp_path / "c.yaml", flags={}).name == "2024-13-45"
    (tmp_path / "c.yaml").write_text("count: 2024-01-01\n")
    with pytest.raises(
        ConfigError, match="count: '2024-01-01' is not allowed; it should be a valid int"
    ):
        resolve(Some, file=tmp_path / "c.yaml", flags={})


@pytest.mark.parametrize(
    "value",
    [None, True, 3, 1e-05, 0.1, "resnet50", "yes", "1e-3", "12", "", "2026-11-30", "a: b", "µm/px ",
     "null", "it's", ["layer1", [2, {"view_px": 32}], None], {"low": 1, "layers": ["a", "b, c"]}],
)  # fmt: skip
def test_a_value_in_one_line_is_read_back(value):
    text = in_one_line(value)
    assert "\n" not in text
    found = parse(text)
    assert (type(found), found) == (type(value), value)


def test_aliases_and_merges_of_a_sane_size():
    found = parse("a: &a {b: 1, c: 2}\nd: {<<: *a, c: 3}\ne: [*a, *a]")
    assert found["d"] == {"b": 1, "c": 3}
    assert found["e"] == [found["a"]] * 2


def test_files_that_cannot_be_a_configuration(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_bytes(b"a: " + b"x" * MOST_BYTES)
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        read_yaml(path)
    path.write_bytes(b"name: \xff")
    with pytest.raises(ConfigError, match="it is not UTF-8"):
        read_yaml(path)
    path.write_text("1: a")
    with pytest.raises(ConfigError, match="the key 1 is not a text"):
        read_yaml(path)
    with pytest.raises(ConfigError, match=r"[Ii]s a directory"):
        read_yaml(tmp_path)


@pytest.mark.parametrize("text", ["options: {1: 2}", "options: {null: 2}", "count: {a: [1]}"])
def test_wrong_values_within(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"options|count") as error:
        resolve(Some, file=tmp_path / "c.yaml", flags={})
    assert "\n" not in str(error.value)
