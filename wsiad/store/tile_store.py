"""The tile store: a zarr v3 hierarchy with one group per slide (docs/store-format.md)."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic

from wsiad.core.errors import StoreError, StoreMismatchError
from wsiad.core.files import new_file, write_json
from wsiad.core.ownership import clear_leftovers, discard, refuse_foreign
from wsiad.core.typed_files import first_fault
from wsiad.slides.folder_kinds import STORE, refuse_other
from wsiad.slides.slide_table import FAILED, SLIDES_TABLE, SlideRow, lost_rows, read_table
from wsiad.stain.profile import StainProfile
from wsiad.store.group_facts import group_facts
from wsiad.tiling.preparation import CompressionOptions, Preparation

if TYPE_CHECKING:
    from wsiad.store.stored_slide import StoredSlide

logger = logging.getLogger(__name__)

FORMAT = "wsiad-tile-store"
FORMAT_VERSION = 1
GROUPS = "slides.zarr"
"""Folder of the zarr hierarchy in a store."""
_ROOT = f"{GROUPS}/zarr.json"
OVERVIEWS = "overviews"
"""Folder of the overviews, outside of the groups, where zarr would warn of unknown files."""


class TileStore:
    """A tile store on disk.

    Parameters
    ----------
    path : str or Path
        The store's folder.

    Raises
    ------
    StoreError
        The folder is not a store, is damaged, or has an unknown format version.
    """

    def __init__(self, path: str | Path) -> None:
        if not str(path):
            raise StoreError("the path of the store is empty", remedy="Pass the store's folder.")
        path = self.path = Path(path)
        if not (path / _ROOT).exists():
            remedy = "Make one with `wsiad tile`."
            refuse_other(path, STORE, StoreError, remedy=remedy)
            there = path.exists() or path.is_symlink()
            problem = "is not a tile store" if there else "there is no such folder"
            raise StoreError(problem, subject=str(path), remedy=remedy)
        remedy = "Tile the slides again into an empty folder."
        try:
            facts = group_facts(path / GROUPS)
            made_by = (facts["format"], facts["version"])
            if made_by == (FORMAT, FORMAT_VERSION):
                self.preparation = Preparation.model_validate(facts["preparation"])
                self.target: dict[str, Any] = dict(facts["stain_target"])
                StainProfile.from_dict(self.target)  # to be sure that it can be
                self.digest = str(facts["digest"])
                self.compression = CompressionOptions.model_validate(facts.get("compression", {}))
                self.encoder: str | None = facts.get("encoder")
        except StoreError as error:
            raise StoreError(
                f"is damaged: its root group {error.problem}", subject=str(path), remedy=remedy
            ) from error
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"is damaged: its root group cannot be read ({_one_line(error)})",
                subject=str(path),
                remedy=remedy,
            ) from error
        if made_by != (FORMAT, FORMAT_VERSION):
            raise StoreError(
                f"has format {made_by[0]} version {made_by[1]}; this version of "
                f"wsiad reads {FORMAT} version {FORMAT_VERSION}",
                subject=str(path),
                remedy="Tile the slides again, or use the version of wsiad that made it.",
            )

    @classmethod
    def create(
        cls,
        path: Path,
        preparation: Preparation,
        target: dict[str, Any],
        *,
        compression: CompressionOptions | None = None,
        encoder: str | None = None,
    ) -> TileStore:
        """Create a store, or open it if it was made with the same preparation.

        Parameters
        ----------
        path : Path
        preparation : Preparation
            Options that decide the pixels; the same for all slides of a store.
        target : dict
            The stain target's profile as JSON values.
        compression : CompressionOptions, optional
            Compression of a new store. A store keeps the compression that it was made with; a
            different one is refused if either changes pixels.
        encoder : str, optional
            Network whose features the store holds in place of tiles.

        Raises
        ------
        StoreMismatchError
            The store was made with another preparation; the error names the differences.
        StoreError
            The folder holds something else.
        """
        preparation = preparation.preparation()
        target = json.loads(json.dumps(target))  # tuples become lists, as when read back
        compression = compression or CompressionOptions()
        if there := cls.made_alike(path, preparation, target, compression, encoder=encoder):
            return there
        facts: dict[str, Any] = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "digest": preparation.digest(target, compression=compression),
            "preparation": preparation.as_json(),
            "stain_target": target,
            "compression": compression.facts(),
        } | ({"encoder": encoder} if encoder else {})
        # zarr's own writer is not atomic; a root group is one small JSON file. Another run may
        # have created the store since it was looked for, with another configuration.
        group = {"zarr_format": 3, "node_type": "group", "attributes": {"wsiad": facts}}
        with (
            contextlib.suppress(FileExistsError),
            new_file(path / _ROOT) as partial,
        ):
            write_json(partial, group)
        made = cls.made_alike(path, preparation, target, compression, encoder=encoder)
        return made or cls(path)

    @classmethod
    def made_alike(
        cls,
        path: Path,
        preparation: Preparation,
        target: dict[str, Any],
        compression: CompressionOptions,
        *,
        encoder: str | None = None,
    ) -> TileStore | None:
        """Return the store if it is there and was made alike; ``None`` if it can be created.

        Raises
        ------
        StoreMismatchError
            The store was made with another preparation; the error names the differences.
        StoreError
            The folder holds something else.
        """
        refuse_foreign(path, StoreError, what="a tile store", marks=[_ROOT], begun=[GROUPS])
        if not (path / _ROOT).exists():
            return None
        store = cls(path)
        if store.encoder != encoder:
            kinds = [f"features of {e} without tiles" if e else "tiles" for e in
                     (store.encoder, encoder)]  # fmt: skip
            raise StoreMismatchError(
                f"holds {kinds[0]}, not {kinds[1]}", subject=str(path), remedy="Use another --out."
            )
        if store.digest != preparation.digest(target, compression=compression):
            raise StoreMismatchError(
                f"was made with another configuration: "
                f"{_differences(store, preparation, target, compression)}",
                subject=str(path),
                remedy="Use the same configuration, or another --out.",
            )
        if store.compression.facts() != compression.facts():
            logger.warning(
                "%s: keeps the compression that it was made with: %s",
                path,
                store.compression.facts(),
            )
        return store

    def folder(self, name: str) -> Path:
        """Return the folder of a slide's group."""
        return self.path / GROUPS / name

    def overview(self, name: str) -> Path:
        """Return the path of a slide's overview; stores of early versions have no overviews."""
        return self.path / OVERVIEWS / f"{name}.jpg"

    def __contains__(self, name: str) -> bool:
        try:
            return (self.folder(name) / "zarr.json").exists()
        except OSError:  # a name that the file system does not take
            return False

    def names(self, *, failed: bool = False) -> list[str]:
        """Return the names of the slides that are complete in the store, sorted.

        Parameters
        ----------
        failed : bool
            True to include slides that ``slides.csv`` calls failed. The last call found that
            their files were replaced or stated otherwise, say: their tiles are not those of the
            slides that are there now, and iteration leaves them out as well. A warning says of
            which slides the table has no row, whose labels are lost and which may have failed.

        Raises
        ------
        InputError
            The store's table is damaged.
        """
        groups = self.path / GROUPS
        rows = [] if failed else read_table(self.path / SLIDES_TABLE, SlideRow)
        left_out = {row.slide for row in rows if row.status == FAILED}
        complete = {
            entry.relative_to(groups).as_posix()
            for folder in self.folders()
            for entry in folder.iterdir()
            if not entry.name.startswith(".") and (entry / "zarr.json").exists()
        }
        if lost := [] if failed else sorted(complete - {row.slide for row in rows}):
            _warn_of_lost_rows(self.path / SLIDES_TABLE, tuple(lost))
        return sorted(complete - left_out)

    def folders(self) -> list[Path]:
        """Return the folders of groups: the root, and those of names such as ``patient1/1``."""
        found = [self.path / GROUPS]
        for folder in found:
            found += [
                entry
                for entry in folder.iterdir()
                if not entry.name.startswith(".")
                and entry.is_dir()
                and not entry.is_symlink()
                and not (entry / "zarr.json").exists()
            ]
        return found

    def slide(self, name: str) -> StoredSlide:
        """Open a slide's group.

        Raises
        ------
        StoreError
            The store has no such slide, or its group is damaged.
        StoreMismatchError
            The slide was prepared with another configuration than the store's.
        """
        from wsiad.store.stored_slide import open_slide_group

        self._check_there(name)
        stored = open_slide_group(name, self.folder(name), store=self.path)
        self._check_digest(name, stored.facts)
        return stored

    def check(self, name: str) -> None:
        """Check a slide's group as :meth:`slide` does, without the time that zarr takes.

        Raises
        ------
        StoreError, StoreMismatchError
            As :meth:`slide`.
        """
        from wsiad.store.stored_slide import check_slide_group

        self._check_there(name)
        facts, _ = check_slide_group(name, self.folder(name), store=self.path)
        self._check_digest(name, facts)

    def _check_there(self, name: str) -> None:
        if name not in self:
            raise StoreError(
                f"holds no slide {name!r}", subject=str(self.path), remedy="Tile it first."
            )

    def _check_digest(self, name: str, facts: Mapping[str, Any]) -> None:
        if facts.get("digest") != self.digest:
            raise StoreMismatchError(
                f"slide {name!r} was prepared with another configuration than the store's",
                subject=str(self.path),
                remedy=f"Delete {self.folder(name)} and tile the slide again.",
            )

    def __iter__(self) -> Iterator[StoredSlide]:
        return (self.slide(name) for name in self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        made = self.preparation
        return f"TileStore({str(self.path)!r}, tiles of {made.tile} px at {made.mpp:g} µm/px)"


@functools.lru_cache(maxsize=16)  # once in a process
def _warn_of_lost_rows(table: Path, slides: tuple[str, ...]) -> None:
    logger.warning("%s %s", table, lost_rows(table, slides))


def _one_line(error: Exception) -> str:
    """Return the first fault that an error reports, in one line."""
    if isinstance(error, pydantic.ValidationError):
        return first_fault(error, whole="the attributes")
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def is_store(path: Path) -> bool:
    """Tell whether a folder is a tile store."""
    return (path / GROUPS / "zarr.json").exists()


def _differences(
    store: TileStore,
    preparation: Preparation,
    target: dict[str, Any],
    compression: CompressionOptions,
) -> str:
    def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in values.items():
            if isinstance(value, dict):
                out |= flat(value, f"{prefix}{key}.")
            else:
                out[prefix + key] = value
        return out

    there, here = (
        flat(p.model_dump(mode="json", exclude={"stain": {"target"}}) | {"compression": c.facts()})
        for p, c in ((store.preparation, store.compression), (preparation, compression))
    )
    found = [
        f"{key} is {there.get(key)!r} in the store and {here.get(key)!r} here"
        for key in here
        if there.get(key) != here.get(key)
    ]
    if store.target != target:
        found.append("the stain targets have different stains")
    return "; ".join(found) or "its digest differs"


def parts_folder(store: TileStore, name: str) -> Path:
    """Return the folder of the parts of a slide that is not complete yet."""
    group = store.folder(name)
    return group.with_name(f".{group.name}.parts")


def clear_store(path: Path) -> None:
    """Remove leftovers of dead runs from a store, and the parts of slides that are complete.

    Parameters
    ----------
    path : Path
        The store's folder.
    """
    store = TileStore(path)
    overviews = path / OVERVIEWS
    groups = store.folders()
    pictures = [overviews / folder.relative_to(groups[0]) for folder in groups]
    clear_leftovers(path, *groups, *pictures, path / "runs")
    for parts in [parts for folder in groups for parts in folder.glob(".*.parts")]:
        clear_leftovers(parts)
        group = parts.with_name(parts.name[1:].removesuffix(".parts"))
        if group.relative_to(groups[0]).as_posix() in store:
            discard(parts)
        with contextlib.suppress(OSError):
            parts.rmdir()  # if it is empty


@contextlib.contextmanager
def tidied(path: Path) -> Iterator[None]:
    """Remove leftovers of earlier runs before the work, and of lost workers after it."""
    clear_store(path)
    try:
        yield
    finally:
        clear_store(path)
