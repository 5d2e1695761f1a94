"""Rules of the package's files: names, sizes, and file names that are spelt in one module.

`exceptions.toml` lists the faults of today, which are still to be mended. Its lists may only
shrink: what is new is refused, and so is an entry that is no longer needed.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "wsiad"
MODULES = {
    path.relative_to(PACKAGE).as_posix(): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py"
}
EXCEPTIONS = tomllib.loads((Path(__file__).parent / "exceptions.toml").read_text("utf-8"))

SHORTEST, LONGEST = 100, 500
LONGEST_VERB = 250

# Entry points and the version, which are as short as they can be.
ALWAYS_SHORT = {"__main__.py", "_version.py"}
# The code of a process of its own: what it imports decides how fast it starts and what it may do.
ALWAYS_SHORT |= {"compute/job_worker.py", "compute/local_worker.py", "slides/reader_process.py"}
# Options that --help shows: they are read without the libraries that what they steer works with.
ALWAYS_SHORT |= {name for name in MODULES if name.endswith("_options.py")}
# The only import of Numba, which several rooms compile their loops with.
ALWAYS_SHORT |= {"core/compiled.py"}
# Chooses among the backends of slides, which it stands above: none of them can hold it.
ALWAYS_SHORT |= {"slides/opening.py"}
# A network is one file, as a detector is.
ALWAYS_SHORT |= {name for name in MODULES if name.startswith("networks/")}
# A detector is one file, however little it adds to what the methods share.
ALWAYS_SHORT |= {name for name in MODULES if name.startswith("detectors/")}
# An export format is one file: somebody who looks for PNG opens png.py.
ALWAYS_SHORT |= {name for name in MODULES if name.startswith("exports/")}
# Owns the names of a folder's files, which all rooms above import: it is as long as they are many.
ALWAYS_SHORT |= {"results/file_names.py"}
# A verb is one file, however thin: what it does belongs to the rooms below.
ALWAYS_SHORT |= {name for name in MODULES if name.startswith("verbs/")}

A_FILE = re.compile(
    r"[\w.-]*\w\.(csv|gz|geojson|html|jpg|json|npy|png|safetensors|tif|xml|yaml|zarr)"
)

# Each kind of folder has one module that spells what lies in it.
SPELLERS = {
    "results/file_names.py",  # results
    "runs/run.py",  # a run
    "slides/slide_table.py",  # the table of a store, and of results
    "store/tile_store.py",  # a store
}
# Tells kinds of folders apart for errors, from below all the rooms that own them.
KINDS = "slides/folder_kinds.py"
# The name that zarr gives.
FOREIGN = {"zarr.json"}


def compared(today: set[str], listed: list[str], remedy: str) -> None:
    """Nothing new, and nothing that is listed in vain."""
    assert not (new := sorted(today - set(listed))), f"{new}: {remedy}"
    assert not (mended := sorted(set(listed) - today)), (
        f"{mended}: mended, so take them off tests/rules/exceptions.toml"
    )


def file_names(source: str) -> set[str]:
    """Names of files among the texts of a module; what docstrings say does not count."""
    tree = ast.parse(source)
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    texts = (
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in docstrings
    )
    return {text for text in texts if A_FILE.fullmatch(text) and not text.startswith(".")}


def spelt_again(sources: dict[str, str]) -> set[str]:
    """`module: name` for every name that a module spells although another one owns it."""
    spelt = defaultdict(set)
    for module, source in sources.items():
        for name in file_names(source) - FOREIGN:
            spelt[name].add(module)
    return {
        f"{module}: {name}"
        for name, modules in spelt.items()
        if len(modules - {KINDS}) > 1
        for module in modules - SPELLERS - {KINDS}
    }


def test_a_file_name_stands_once_in_the_package() -> None:
    names = Counter(Path(module).name for module in MODULES)
    compared(
        {name for name, times in names.items() if times > 1},
        EXCEPTIONS["same_names"],
        "files of the same name; give one another noun",
    )


def test_files_are_neither_short_nor_long() -> None:
    lines = {name: path.read_text("utf-8").count("\n") for name, path in MODULES.items()}
    compared(
        {name for name in lines.keys() - ALWAYS_SHORT if lines[name] < SHORTEST},
        EXCEPTIONS["short_files"],
        f"shorter than {SHORTEST} lines; let them join the module that uses them",
    )
    compared(
        {name for name in lines if lines[name] > LONGEST},
        EXCEPTIONS["long_files"],
        f"longer than {LONGEST} lines; divide them",
    )


def test_verbs_are_a_config_a_result_and_a_function() -> None:
    lines = {name: path.read_text("utf-8").count("\n") for name, path in MODULES.items()}
    long = {name for name in lines if name.startswith("verbs/") and lines[name] > LONGEST_VERB}
    assert not long, f"longer than {LONGEST_VERB} lines; the work belongs to the rooms below"


def test_a_file_of_a_folder_is_spelt_in_one_module() -> None:
    compared(
        spelt_again({name: path.read_text("utf-8") for name, path in MODULES.items()}),
        EXCEPTIONS["spelt_again"],
        "import the name from the module that owns the folder",
    )


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ('"""Reads slides.csv."""\n', set()),
        ('open(folder / "slides.csv")\n', {"slides.csv"}),
        ('A, B = "run.json", "not a file.json"\nC = ".json"\n', {"run.json"}),
        (
            'def f():\n    """windows.npy"""\n    return f"{x}/windows.npy", "windows.npy"\n',
            {"windows.npy"},
        ),
    ],
)
def test_names_are_found_in_code_alone(source: str, names: set[str]) -> None:
    assert file_names(source) == names


def test_an_owner_may_spell_a_name_that_another_may_not() -> None:
    spells = 'NAME = "slides.csv"\n'
    assert spelt_again({"verbs/tile.py": spells}) == set()
    assert spelt_again({"verbs/tile.py": spells, "slides/slide_table.py": spells}) == {
        "verbs/tile.py: slides.csv"
    }


def test_the_lists_refuse_new_faults_and_mended_ones() -> None:
    compared({"a.py"}, ["a.py"], "remedy")
    with pytest.raises(AssertionError, match=r"b\.py.*remedy"):
        compared({"a.py", "b.py"}, ["a.py"], "remedy")
    with pytest.raises(AssertionError, match=r"a\.py.*take them off"):
        compared(set(), ["a.py"], "remedy")


# The first words of half a sentence, whose beginning would be the name before it.
UNREADABLE = re.compile(
    r"(Of|What|Who|Whose|How|Which|Where|Whether|When|As|From|For|Not|One (of|per|a))\b"
)


def docstrings(text: str) -> Iterator[str]:
    """Docstrings of a module, its classes and functions, and of their attributes.

    Descriptions of options that are passed as an argument are among them.
    """
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.keyword) and node.arg == "description":
            value = node.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value.value.strip()
        body = getattr(node, "body", None)
        if isinstance(body, list):
            for part in body:
                value = part.value if isinstance(part, ast.Expr) else None
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield value.value.strip()


def half_sentences(text: str) -> list[str]:
    return [line for line in docstrings(text) if UNREADABLE.match(line)]


def test_docstrings_read_well_alone() -> None:
    found = [
        f"{name}: {line.splitlines()[0]}"
        for name, path in MODULES.items()
        for line in half_sentences(path.read_text("utf-8"))
    ]
    assert not found, "begin with the subject, or with a verb"


def test_half_sentences_are_found() -> None:
    module = '"""How it is done."""\nsize: int\n"""Size of it."""\nOF = 1\n"""Of it."""\n'
    function = 'def f():\n    """Whether it is.\n\n    Of it.\n    """\n'
    option = 'A = Field(description="Which one.")\nB = Field(description="One line.")\n'
    assert [line.splitlines()[0] for line in half_sentences(module + function + option)] == [
        "How it is done.",
        "Of it.",
        "Whether it is.",
        "Which one.",
    ]


MOST_POSITIONAL = 4


def called_by_position(sources: dict[str, str]) -> list[str]:
    """`module:line: name` for every call of a function or class of ours by too many positions.

    Compiled functions, which take keywords slowly, and those of any number of arguments may be
    called so; and so may the functions of other libraries.
    """
    trees = {module: ast.parse(source) for module, source in sources.items()}
    ours, others = set(), set()
    for node in (node for tree in trees.values() for node in ast.walk(tree)):
        if isinstance(node, ast.ClassDef):
            ours.add(node.name)
        elif isinstance(node, ast.FunctionDef):
            compiled = any(ast.unparse(one) == "compiled" for one in node.decorator_list)
            (others if compiled or node.args.vararg else ours).add(node.name)
    found = []
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and len(node.args) > MOST_POSITIONAL:
                name = ast.unparse(node.func).rpartition(".")[2]
                if name in {*ours, "cls"} - others:
                    found.append(f"{module}:{node.lineno}: {name}")
    return found


def test_more_than_four_arguments_go_by_keyword() -> None:
    found = called_by_position({name: path.read_text("utf-8") for name, path in MODULES.items()})
    assert not found, "two neighbours of one type could be swapped; name the arguments"


def test_calls_by_position_are_found() -> None:
    ours = "class Box: ...\ndef cut(a, b, c, d, e): ...\ndef f(*sizes): ...\n"
    compiled = "@compiled\ndef g(a, b, c, d, e): ...\n"
    calls = "Box(1, 2, 3, 4, 5)\nx.cut(1, 2, 3, 4, 5)\ncut(1, 2, 3, 4, e=5)\n"
    free = "f(1, 2, 3, 4, 5)\ng(1, 2, 3, 4, 5)\ncv2.line(1, 2, 3, 4, 5)\n"
    assert called_by_position({"a.py": ours + compiled, "b.py": calls + free}) == [
        "b.py:1: Box",
        "b.py:2: cut",
    ]
