"""The documents name files, folders and modules that exist, and the floors that are checked."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from wsiad.cli import _verb_parser
from wsiad.core.config import config_class
from wsiad.detectors import registry
from wsiad.runs.presets import load_preset, preset_names
from wsiad.verbs import function_of

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
)
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text("utf-8")

CODE = re.compile(r"`([^`\n]+)`")
SOURCE = re.compile(r"[\w./-]*\w\.(py|j2|js|css|sbatch)")
# A path of this repository without a suffix, or of a file that is not source.
OWN_PATH = re.compile(r"(wsiad|tests|benchmarks|pipelines|configs|examples)/[\w./-]*")
MODULE = re.compile(r"wsiad(\.[a-z_]+)+")
OWN_CODE = re.compile(r"\w+/[\w*]+\.py")


def exists(path: str) -> bool:
    """Whether there is such a file or folder, from the root or from the package."""
    return any((base / path).exists() for base in (ROOT, ROOT / "wsiad"))


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").exists()


def named(text: str) -> set[str]:
    """Paths of this repository and dotted modules that a document names, in code or in links."""
    codes = CODE.findall(re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    words = {word.strip("(),;:") for code in codes for word in code.split()}
    return {word for word in words if SOURCE.fullmatch(word) or OWN_PATH.fullmatch(word)} | {
        word for word in words if MODULE.fullmatch(word) and word.count(".") > 1
    }


def missing(text: str) -> list[str]:
    return sorted(
        n for n in named(text) if not (exists(n) or (MODULE.fullmatch(n) and is_module(n)))
    )


def too_long(text: str, most: int = 120) -> list[str]:
    """Lines of code that the pages of the site have no room for: nobody reads them to the end."""
    found, fenced = [], False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif (fenced or line.startswith("    ")) and len(line) > most:
            found.append(line)
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_code_of_a_document_has_lines_that_can_be_read(document: str) -> None:
    assert too_long((ROOT / document).read_text("utf-8")) == []


def test_long_lines_of_code_are_found() -> None:
    long = "wsiad tile " + 110 * "x"
    text = f"{long}\n```\n{long}\n{long[:-1]}\n```\n{long}\n\n    {long}\n"
    assert too_long(text) == [long, f"    {long}"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_names_exists(document: str) -> None:
    assert missing((ROOT / document).read_text("utf-8")) == []


def test_what_does_not_exist_is_missed() -> None:
    assert missing(
        "`slides/gone.py`, `wsiad/gone/`, `wsiad.core.gone`, `gone.py`, `draw.py x`"
    ) == [
        "draw.py",
        "gone.py",
        "slides/gone.py",
        "wsiad.core.gone",
        "wsiad/gone/",
    ]
    assert missing("`slides/tiff.py`, `wsiad/core/`, `wsiad.core.files`, `tests`, `run.json`") == []


HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^()\s]+)\)")


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(text: str) -> set[str]:
    """Anchors of the headings of a document, as GitHub makes them."""
    words = (heading.replace("`", "") for heading in HEADING.findall(without_code(text)))
    words = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", word) for word in words)
    return {re.sub(r"[^\w\- ]", "", word.lower()).strip().replace(" ", "-") for word in words}


def broken_links(document: Path, text: str) -> list[str]:
    """Links of a document to files, folders and headings that do not exist."""
    broken = []
    for link in LINK.findall(without_code(text)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path
        if (path and not target.exists()) or (
            anchor and anchor not in anchors(target.read_text("utf-8") if path else text)
        ):
            broken.append(link)
    return broken


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    assert broken_links(path, path.read_text("utf-8")) == []


def test_a_link_to_nowhere_is_found() -> None:
    text = """
# A title, with `code`
[x](#a-title-with-code) [x](#gone) [x](manifest.md#labels) [x](manifest.md#gone) [x](gone.md)
[x](https://example.org/gone) ![x](../README.md)
"""
    document = ROOT / "docs/drawn.md"
    assert broken_links(document, text) == ["#gone", "manifest.md#gone", "gone.md"]


COMMAND = re.compile(r"^ *wsiad ([a-z-]+ .*)$", re.MULTILINE)
BLOCK = re.compile(r"```.*?```|(?<=\n\n)(?: {4}[^\n]+\n?)+", re.DOTALL)


def refused_commands(text: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Commands in the blocks of a document whose verb or flags wsiad does not have."""
    refused = []
    for block in BLOCK.findall(text):
        for command in COMMAND.findall(block.replace("\\\n", " ")):
            plain = re.split(r" #| →| …|[|&>]", command)[0]
            verb, *words = shlex.split(plain)
            try:
                _verb_parser(verb, config_class(function_of(verb))).parse_args(words)
            except (ImportError, KeyError, SystemExit):
                refused.append(f"{command}: {capsys.readouterr().err or 'no such verb'}")
    return refused


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_of_a_document_have_flags_that_exist(
    document: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused_commands((ROOT / document).read_text("utf-8"), capsys) == []


def test_a_command_with_a_flag_that_does_not_exist_is_found(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = """
A block that is indented:

    wsiad heatmap runs/knn slides/ --out results/    # a remark
    wsiad heatmap slides/ --run runs/knn --out results/

```sh
wsiad tile slides/ \\
    --out store/ --mpp 0.5
wsiad gone store/
```
"""
    assert [line.split()[0] for line in refused_commands(text, capsys)] == ["heatmap", "gone"]


def test_the_index_lists_every_document() -> None:
    index = (ROOT / "docs/README.md").read_text("utf-8")
    names = {path.name for path in ROOT.glob("docs/*.md")} - {"README.md"}
    assert names - set(LINK.findall(index)) == set()


def rows() -> dict[str, list[str]]:
    """Of the table "Where to add something": what is added, and the paths that its row names."""
    table = ARCHITECTURE.split("## Where to add something")[1].split("\n## ")[0]
    cells = [line.strip("| ").split(" | ", 1) for line in table.splitlines() if "|" in line][2:]
    return {
        what: [code for code in CODE.findall(where) if "/" in code or SOURCE.fullmatch(code)]
        for what, where in cells
    }


def test_the_table_where_to_add_something_names_what_exists() -> None:
    assert len(rows()) >= 10
    for what, paths in rows().items():
        assert paths, f"{what}: the row names no file and no folder"
        assert [path for path in paths if not exists(path)] == [], what


def lines_of(paths: Iterable[Path]) -> int:
    return sum(path.read_text("utf-8").count("\n") for path in paths)


def code_of(word: str) -> int:
    """Lines of a detector, or of the Python files that a pattern finds in the package."""
    if not OWN_CODE.fullmatch(word):
        file = ROOT / "wsiad/detectors" / word.replace("-", "_")
        return lines_of(file.glob("*.py") if file.is_dir() else [file.with_suffix(".py")])
    return lines_of((ROOT / "wsiad").glob(word))


def test_the_table_of_code_says_how_long_methods_are() -> None:
    """Within a fifth, so that not every change of a line is one of the table."""
    table = ARCHITECTURE.split("## How long a method is")[1].split("\n## ")[0]
    presets = Counter(load_preset(name).detector for name in preset_names())
    named: list[str] = []
    for line in [line for line in table.splitlines() if line.startswith("| ")][1:]:
        words, lines, systems = line.strip("| ").split(" | ")
        codes = CODE.findall(words)
        named += [code for code in codes if not OWN_CODE.fullmatch(code)]
        codes = codes or list(registry.own_names())
        told = int(lines.replace(",", ""))
        assert abs(told - sum(map(code_of, codes))) <= 0.2 * told, line
        if systems != "–":
            assert int(systems) == sum(presets[code] for code in codes), line
    assert sorted(named) == sorted(registry.own_names())


def test_the_drawing_shows_the_floors_that_are_checked() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    layers = next(c["layers"] for c in settings["contracts"] if c["type"] == "layers")
    floors = [name.strip() for layer in layers for name in layer.split("|")]
    drawing = ARCHITECTURE.split("```")[1].split("\n")
    drawn = [line.split()[0] for line in drawing if line.strip()]
    assert drawn == [name for name in floors if not name.startswith("_")]
