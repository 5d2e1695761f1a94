"""The words of tables that users write: names of columns, and labels of slides.

Manifests and references use the same words. Capitals, blanks, ``_``, ``-`` and ``.`` do not
matter in them.
"""

from __future__ import annotations

import difflib
import logging
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator

from wsiad.core.errors import InputError

logger = logging.getLogger(__name__)

LabelsOf = Literal["tiles", "slides", "reference"]
"""Subject of the labels that a detector learns from: anomalous tiles; slides that hold an anomaly,
of which some tiles may be healthy; or a reference set beside the healthy tiles, other tissue or
pictures of which none counts as anomalous."""

NORMAL, TUMOUR = "normal", "tumor"
"""The labels to which other words are mapped."""

_LABELS = {
    NORMAL: (
        *("normal", "healthy", "negative", "neg", "benign", "0", "control", "no", "false"),
        *("non-tumor", "non-tumour", "no-tumor", "no-tumour", "not-tumor", "tumor-free"),
        *("tumour-free", "non-cancer", "non-malignant", "unremarkable", "n0"),
    ),
    TUMOUR: (
        *("tumor", "tumour", "tumorous", "tumourous", "positive", "pos", "1", "yes", "true"),
        *("cancer", "cancerous", "malignant", "malignancy", "abnormal", "anomalous", "anomaly"),
        *("diseased", "pathological"),
    ),
    # Kinds of tumour that data sets have as labels; they stay apart as types of anomalies.
    "carcinoma": ("carcinoma",),
    "adenocarcinoma": ("adenocarcinoma",),
    "metastasis": ("metastasis", "metastases", "metastatic"),
    "macro": ("macro", "macro-metastasis", "macro-metastases"),
    "micro": ("micro", "micro-metastasis", "micro-metastases"),
    "itc": ("itc", "isolated-tumor-cells", "isolated-tumour-cells"),
}

SLIDE, NAME, MPP, LABEL, SPLIT = "slide", "name", "mpp", "label", "split"
ANOMALY_TYPE = "anomaly_type"

_COLUMNS = {
    SLIDE: (
        *("slide", "image", "file", "path", "filename", "filepath", "slide path", "image path"),
        *("slide file", "image file", "slide filename", "image filename", "full path", "fullpath"),
        *("wsi", "wsi path", "wsi file", "svs", "svs path"),
    ),
    NAME: (
        *("name", "slide name", "image name", "slide id", "image id", "wsi id", "wsi name"),
    ),
    MPP: (
        *("mpp", "mpp x", "mpp y", "slide mpp", "um per px", "um/px", "µm/px", "μm/px"),
        *("um per pixel", "um/pixel", "µm per px", "µm per pixel", "micron per pixel"),
        *("microns per pixel", "micrometer per pixel", "micrometers per pixel", "pixel size"),
        *("pixel size um", "pixel size µm", "px size", "pixel spacing", "spacing"),
    ),
    LABEL: ("label", "labels", "class", "type", "slide label", "slide class", "ground truth"),
    SPLIT: ("split", "subset", "set", "partition", "data split"),
    ANOMALY_TYPE: ("anomaly type", "anomaly kind"),
}  # fmt: skip


def _plain(text: str) -> str:
    shown = "".join(c for c in text if unicodedata.category(c) != "Cf")  # marks without width
    plain = "".join(shown.casefold().split())
    if not any(c.isalpha() for c in plain):
        return plain.removesuffix(".0") if plain in ("0.0", "1.0") else plain  # -1 is not 1
    return "".join(c for c in plain if c not in "_-.")


_LABEL_OF = {_plain(word): label for label, words in _LABELS.items() for word in words}
_COLUMN_OF = {_plain(word): column for column, words in _COLUMNS.items() for word in words}


def label_of(text: str) -> str | None:
    """Return the label that a word means; ``""`` for an empty word, ``None`` for an unknown one.

    Examples
    --------
    >>> label_of(" Tumour"), label_of("0"), label_of(""), label_of("tumr")
    ('tumor', 'normal', '', None)
    """
    plain = _plain(text)
    return _LABEL_OF.get(plain) if plain else ""


def understood_label(text: str, *, slide: str) -> str:
    """Return the label that a word means.

    Raises
    ------
    InputError
        The label is unknown; the error names the nearest known one, and those that are allowed.
    """
    label = label_of(text)
    if label is None:
        near = near_label(text)
        meant = f" (did you mean {near!r}?)" if near else ""
        raise InputError(
            f"the label of {slide} is {text!r}, which is not understood{meant}",
            remedy=f"Write {allowed_labels()}.",
        )
    return label


def near_label(text: str) -> str:
    """Return the known word that an unknown one is nearest to; empty if none is near, or is known.

    Examples
    --------
    >>> near_label("normla"), near_label("stroma"), near_label("healthy")
    ('normal', '', '')
    """
    if label_of(text) is not None:
        return ""
    found = difflib.get_close_matches(_plain(text), list(_LABEL_OF), n=1, cutoff=0.7)
    return found[0] if found else ""


def own_label(text: str) -> str:
    """Return a label that users may choose freely, and warn if it is nearly a known one.

    Tiles with a label of its own are neither healthy nor a known kind of tumour.
    """
    if near := near_label(text):
        logger.warning(
            "the label %r is none that wsiad knows, and is taken for something not healthy. If you "
            "mean %r, run the command again with it.",
            text,
            near,
        )
    return text.strip().lower()


def split_of(text: str) -> str:
    """Return the split that a word means: capitals, and blanks around it, do not matter.

    Examples
    --------
    >>> split_of(" Train")
    'train'
    """
    return text.strip().lower()


Split = Annotated[str, AfterValidator(split_of)]
"""Split of slides as an option states it, read like a manifest's."""


def allowed_labels() -> str:
    """Return a text that lists the labels that are understood."""
    healthy, tumour = (", ".join(_LABELS[label][:6]) for label in (NORMAL, TUMOUR))
    kinds = ", ".join(label for label in _LABELS if label not in (NORMAL, TUMOUR))
    return f"normal ({healthy}), tumor ({tumour}, 1, cancer, malignant) or a kind of it ({kinds})"


def is_healthy(label: str) -> bool:
    """Tell whether a slide's label says that it is healthy; an empty label does not."""
    return label_of(label) == NORMAL


def column_of(header: str) -> str | None:
    """Return the column that a header means; ``None`` if it is unknown."""
    return _COLUMN_OF.get(_plain(header))


def nearest_column(header: str, columns: Iterable[str]) -> str | None:
    """Return the column, out of some, with the name or synonym that is most similar to a header."""
    wanted = set(columns)
    words = [word for word, column in _COLUMN_OF.items() if column in wanted]
    near = difflib.get_close_matches(_plain(header), words, n=1, cutoff=0.6)
    return _COLUMN_OF[near[0]] if near else None


def known_columns(header: Sequence[str]) -> dict[str, list[int]]:
    """Return the positions of the known columns of a table; one can occur under two names."""
    found: dict[str, list[int]] = {}
    for at, cell in enumerate(header):
        if (column := column_of(cell)) is not None:
            found.setdefault(column, []).append(at)
    return found


def cell_of(
    cells: Sequence[str], places: Sequence[int], *, meaning: Callable[[str], str | None] = str
) -> str:
    """Return the value of a row in columns of the same meaning.

    Parameters
    ----------
    cells : sequence of str
        Cells of the row.
    places : sequence of int
        Positions of the columns.
    meaning : callable
        Function that returns the meaning of a cell, as different words can mean the same;
        ``None`` if it does not know.

    Raises
    ------
    InputError
        The columns have different values.
    """
    said: dict[str, str] = {}
    for at in places:
        if text := cells[at] if at < len(cells) else "":
            said.setdefault(meaning(text) or text, text)
    if len(said) > 1:
        raise InputError(
            f"columns that mean the same say {' and '.join(map(repr, said.values()))}",
            remedy="Keep one of the columns.",
        )
    return next(iter(said.values()), "")
