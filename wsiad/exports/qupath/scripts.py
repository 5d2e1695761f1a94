"""Scripts for QuPath, in Groovy: import, the picture as an overlay, tiles in colours.

They were written from QuPath's documentation and source (0.5 to 0.7) and have not been
run in it.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from wsiad.core.errors import ExportError
from wsiad.core.files import write_text
from wsiad.exports.qupath.objects import CLASS_NAME, UNASSESSED_NAME

logger = logging.getLogger(__name__)

SCRIPTS = ("wsiad_import.groovy", "wsiad_overlay.groovy", "wsiad_measurement_map.groovy")

_SOURCES = Path(__file__).parent / "groovy"
_USES_RESULTS = SCRIPTS[:2]
_MARK = "// wsiad script "
_NOTE = "\n// Replaced when slides are scored again, unless it was changed: wsiad, docs/qupath.md\n"


def script(name: str, results: Path) -> str:
    """Return a script.

    Parameters
    ----------
    name : str
        One of `SCRIPTS`.
    results : Path
        Folder that holds one folder of results for each slide. Scripts look for it beside
        the project's folder first, so that both may be moved together.

    Returns
    -------
    str
        Groovy; its first line holds a digest of the others, by which
        :func:`write_scripts` knows a script that nobody has changed.

    Raises
    ------
    ExportError
        The folder's name cannot be written into a script.
    """
    folder = str(results).replace("\\", "\\\\").replace("'", "\\'")
    if not folder.isprintable():
        raise ExportError("the folder's name cannot be written into a script", subject=folder)
    text = (_SOURCES / name).read_text(encoding="utf-8")
    if name in _USES_RESULTS:
        text += (_SOURCES / "results.groovy").read_text(encoding="utf-8")
    text = text.replace("@ANOMALY@", CLASS_NAME).replace("@UNASSESSED@", UNASSESSED_NAME)
    return _marked(_NOTE + text.replace("@RESULTS@", folder))


def write_scripts(folder: Path, results: Path) -> None:
    """Write all scripts into a folder; one that somebody has changed is left as it is."""
    for name in SCRIPTS:
        path, text = folder / name, script(name, results)
        there = path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
        if there == text:
            continue
        if there is not None and not _is_ours(there):
            logger.warning("%s was changed by hand and is left as it is", path)
            continue
        write_text(path, text)


def _marked(text: str) -> str:
    return f"{_MARK}{hashlib.sha256(text.encode()).hexdigest()[:16]}{text}"


def _is_ours(text: str) -> bool:
    head, line, rest = text.partition("\n")
    return head.startswith(_MARK) and _marked(line + rest) == text
