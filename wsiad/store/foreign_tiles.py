"""Tiles that other software cut, read from a folder, a tar or an HDF5 file into a store.

HDF5 files have the layout of PCam. Sources are untrusted. No name of a source becomes the name
of a file, a tar is read in memory and member by member, links are refused, and sizes are
checked before bytes are read or decoded. The tiles belong to no slide, so their group in the
store has no geometry.
"""

from __future__ import annotations

import gzip
import itertools
import math
import tarfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import h5py
import numpy as np
import numpy.typing as npt
import PIL
import zarr

from wsiad._version import __version__
from wsiad.core.errors import InputError
from wsiad.core.hdf5 import Hdf5Tiles
from wsiad.core.images import MAX_FILE_BYTES, decode, is_picture
from wsiad.core.picture_tiles import check_edge, tile_of_picture
from wsiad.stain.colour_table import ColourTable
from wsiad.stain.colours import ColourHistogram
from wsiad.stain.fit import fit_stains
from wsiad.stain.profile import StainProfile
from wsiad.store.group import TileArray, beside, create_group, write_array
from wsiad.store.tile_store import TileStore
from wsiad.tiling.preparation import PictureOptions, StainOptions
from wsiad.tissue.artefacts import without_ink
from wsiad.tissue.quality import COLUMNS, measure

Tile = npt.NDArray[np.uint8]

MAX_NAME_BYTES = 1024
"""Maximum length of a tile's name in its source."""

_BLOCK = 512  # of a tar
_GZIP = b"\x1f\x8b"


class TileImages(ABC):
    """Tiles of one source, which can be read repeatedly and always in the same order.

    Parameters
    ----------
    path : Path
        Path of the source.
    pictures : PictureOptions, optional
        Preparation of pictures that are not tiles yet.
    """

    format: str

    def __init__(self, path: Path, *, pictures: PictureOptions | None = None) -> None:
        self.path, self._pictures = path, pictures

    def _decoded(self, data: bytes, *, subject: str, tile: int | None) -> Tile:
        """Return the tile that a file holds, or that is made of its picture."""
        made = self._pictures
        if made is None:
            return decode(data, subject=subject, tile=tile)
        pixels = tile_of_picture(
            data,
            subject=subject,
            grey_values=made.grey_values,
            resize=made.resize,
            crop=made.crop,
            clahe=made.clahe,
        )
        check_edge(pixels, tile, subject=subject)
        return pixels

    @abstractmethod
    def count(self) -> int:
        """Count the tiles without decoding any.

        Raises
        ------
        InputError
            The source cannot be read.
        """

    @abstractmethod
    def tiles(self, *, tile: int | None = None, every: int = 1) -> Iterator[tuple[str, Tile]]:
        """Yield names and pixels, uint8 (tile, tile, 3), of every ``every``-th tile.

        Parameters
        ----------
        tile : int, optional
            Edge that tiles must have, pixels.
        every : int
            Step from tile to tile, 1 for all; the tiles between are not decoded.

        Raises
        ------
        InputError
            The source holds something that is not a tile of that size or not safe to read; the
            error names it.
        """


class FolderTiles(TileImages):
    """The image files of a folder, in the order of their names, without hidden files."""

    format = "folder"

    def count(self) -> int:
        """Count the files."""
        return len(self._paths())

    def tiles(self, *, tile: int | None = None, every: int = 1) -> Iterator[tuple[str, Tile]]:
        """Yield names and tiles; see :meth:`TileImages.tiles`."""
        for index, path in enumerate(self._paths()):
            subject = str(path)
            if path.is_dir():
                raise InputError(
                    "is a folder within a folder of tiles",
                    subject=subject,
                    remedy="Import each folder of tiles as a separate source.",
                )
            _check_name(path.name, subject)
            if index % every:
                continue
            if not path.is_file():
                raise InputError("is not a file", subject=subject)
            if path.stat().st_size > MAX_FILE_BYTES:
                raise _too_large(subject)
            yield path.name, self._decoded(path.read_bytes(), subject=subject, tile=tile)

    def _paths(self) -> list[Path]:
        return sorted(p for p in self.path.iterdir() if not p.name.startswith("."))


class TarTiles(TileImages):
    """The image files of a plain or gzipped tar, in the archive's order."""

    format = "tar"

    def count(self) -> int:
        """Count the files by reading their headers."""
        return sum(1 for _ in self._members())

    def tiles(self, *, tile: int | None = None, every: int = 1) -> Iterator[tuple[str, Tile]]:
        """Yield names and tiles; see :meth:`TileImages.tiles`."""
        for index, (archive, member) in enumerate(self._members()):
            subject = f"{self.path}: {member.name}"
            _check_member(member, subject)
            if index % every:
                continue
            try:
                content = archive.extractfile(member)
                assert content is not None  # it is a file
                data = content.read()
            except _DAMAGED as error:
                raise self._damaged(error) from error
            yield member.name, self._decoded(data, subject=subject, tile=tile)

    def _members(self) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
        with self.path.open("rb") as file:
            compressed = file.read(2) == _GZIP
        with gzip.open(self.path) if compressed else self.path.open("rb") as file:
            bounded = _Bounded(cast("IO[bytes]", file))
            try:
                # Mode "r:" uses `bounded` alone, whatever the archive says that it is.
                with tarfile.open(fileobj=cast("IO[bytes]", bounded), mode="r:") as archive:
                    while (member := archive.next()) is not None:
                        archive.members.clear()  # type: ignore[attr-defined]  # of millions
                        if not _passed_over(member):
                            yield archive, member
                # The library takes a damaged header for the end.
                if bounded.last != bytes(_BLOCK):
                    raise tarfile.ReadError("it is incomplete or damaged")
            except _DAMAGED as error:
                raise self._damaged(error) from error
            except RecursionError:  # the library calls itself for each
                raise self._damaged(tarfile.ReadError("a member has too many headers")) from None

    def _damaged(self, error: BaseException) -> InputError:
        return InputError(
            f"cannot be read as a tar: {error}",
            subject=str(self.path),
            remedy="Fetch or pack it again.",
        )


_DAMAGED = (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, UnicodeError)


def _passed_over(member: tarfile.TarInfo) -> bool:
    """Tell whether a member is skipped: a folder, or a hidden file such as macOS's."""
    return member.isdir() or (member.isfile() and PurePosixPath(member.name).name.startswith("."))


class _Bounded:
    """A file that refuses the very large headers that a false size might request.

    Newer releases of Python read a long header in pieces, and none seeks within one. So the
    limit is on all that is read since the last seek.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._asked = 0
        self.last = b""
        """The block that was read last; an archive ends with a block of zeros."""

    def read(self, size: int = -1) -> bytes:
        self._asked += size
        if size < 0 or self._asked > MAX_FILE_BYTES:
            raise tarfile.ReadError("a header states a size that is too large")
        self.last = self._file.read(size)
        return self.last

    def seek(self, offset: int, whence: int = 0) -> int:
        self._asked = 0
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _check_member(member: tarfile.TarInfo, subject: str) -> None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name:
        raise InputError("the name leads out of the archive", subject=subject)
    if not member.isreg() or member.issparse():
        raise InputError(
            "is a link or another special file",
            subject=subject,
            remedy="Pack the files themselves (tar --dereference).",
        )
    _check_name(member.name, subject)
    if member.size > MAX_FILE_BYTES:
        raise _too_large(subject)


def _check_name(name: str, subject: str) -> None:
    if not is_picture(name):
        raise InputError(
            "is not a tile: it does not end in .png, .jpg, .jpeg, .tif or .tiff",
            subject=subject,
            remedy="Leave only tiles in the source.",
        )
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        size = 0
    if not 0 < size <= MAX_NAME_BYTES or not name.isprintable():
        raise InputError("its name is too long, or not a printable text", subject=repr(subject))


def _too_large(subject: str) -> InputError:
    return InputError(f"has more than {MAX_FILE_BYTES >> 20} MiB, too many for a tile",
                      subject=subject)  # fmt: skip


class PcamTiles(TileImages):
    """Tiles of an HDF5 file in the layout of PatchCamelyon; they have no names.

    Parameters
    ----------
    path : Path
    chosen : ndarray of bool, (N,), optional
        True for the tiles that belong to the source; by default all do.
    """

    format = "hdf5"

    def __init__(self, path: Path, chosen: npt.NDArray[np.bool_] | None = None) -> None:
        super().__init__(path)
        self._chosen = chosen

    def count(self) -> int:
        """Count the tiles that belong to the source."""
        if self._chosen is not None:
            return int(self._chosen.sum())
        with Hdf5Tiles(self.path) as file:
            return len(file)

    def tiles(self, *, tile: int | None = None, every: int = 1) -> Iterator[tuple[str, Tile]]:
        """Yield empty names and tiles; see :meth:`TileImages.tiles`."""
        with Hdf5Tiles(self.path) as file:
            if tile is not None and file.tile != tile:
                raise InputError(
                    f"its tiles have {file.tile} px, and the tiles here have {tile}",
                    subject=str(self.path),
                    remedy="All tiles of a store have one size.",
                )
            for number, pixels in enumerate(file.tiles(self._chosen)):
                if number % every == 0:
                    yield "", pixels


def source_format(path: Path) -> str:
    """Return the format of a source: ``"folder"``, ``"tar"`` or ``"hdf5"``.

    Raises
    ------
    InputError
        The source does not exist or has another format.
    """
    if path.is_dir():
        return "folder"
    try:
        with path.open("rb") as file:
            head = file.read(8)
            file.seek(257)
            magic = file.read(5)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", subject=str(path)) from error
    if head == b"\x89HDF\r\n\x1a\n":
        return "hdf5"
    if magic == b"ustar" or (head[:2] == _GZIP and _inner_name(path).endswith((".tar", ".tgz"))):
        return "tar"
    unpack = " Unpack it first: gunzip." if head[:2] == _GZIP else ""
    raise InputError(
        "is neither a folder of tiles, nor a tar, nor an HDF5 file",
        subject=str(path),
        remedy=f"See docs/interchange.md for what can be imported.{unpack}",
    )


def _inner_name(path: Path) -> str:
    return path.name.lower().removesuffix(".gz")


def source_name(path: Path) -> str:
    """Return the name of a source's group: the file name without its suffix or ``.tar.gz``."""
    if path.is_dir():
        return path.resolve().name
    return Path(path.stem).stem if path.name.lower().endswith(".tar.gz") else path.stem


_BLOCK_BYTES = 8 * 2**20


def write_tiles(
    store: TileStore,
    name: str,
    source: TileImages,
    *,
    tile: int,
    fingerprint: str,
    normalised: bool = False,
) -> int:
    """Write the tiles of a source as a group of a store.

    Memory bound: a chunk of the store (about 3 MB) and a few blocks of 8 MB.

    Parameters
    ----------
    store : TileStore
        Store to write to; its preparation decides the stain normalisation.
    name : str
        Name of the group.
    source : TileImages
    tile : int
        Edge of the tiles, pixels.
    fingerprint : str
        Fingerprint of the source.
    normalised : bool
        True where the tiles have the store's stains already, and are stored unchanged.

    Returns
    -------
    int
        Number of tiles written.

    Raises
    ------
    InputError
        The source holds no tile, or something that is not a tile; nothing remains in the
        store.
    OSError
        The disk is full; nothing remains in the store.
    """
    target = StainProfile.from_dict(store.target)
    stain = target if normalised else estimate(source, store.preparation.stain, tile=tile)
    table = None if normalised else ColourTable.between(stain, target)
    with beside(store, name) as folder:
        group = create_group(folder)
        tiles = TileArray(group, tile, store.compression)
        names: list[bytes] = []
        quality: list[dict[str, npt.NDArray[np.float32]]] = []
        for block in _blocks(source.tiles(tile=tile), tile):
            pixels = np.stack([each for _, each in block])
            quality.append(measure(pixels))
            tiles.append(table.apply(pixels) if table else pixels)
            names.extend(each.encode() for each, _ in block)
        tiles.finish()
        if not tiles.count:
            raise InputError("holds no tiles", subject=str(source.path))
        for column in COLUMNS:
            write_array(group, column, np.concatenate([part[column] for part in quality]))
        if any(names):
            write_array(group, "source_name", _padded(names))
        facts = _facts(
            store, source, tile=tile, count=tiles.count, stain=stain, fingerprint=fingerprint
        )
        group.attrs.put({"wsiad": facts | {"compression": tiles.facts()}})
        return tiles.count


def estimate(source: TileImages, options: StainOptions, *, tile: int) -> StainProfile:
    """Estimate the stains of a source from tiles spread over it, as for a slide.

    Raises
    ------
    InputError
        Something in the source is not a tile.
    """
    if options.method == "none":
        return StainProfile("none")
    histogram = ColourHistogram()
    wanted = max(1, options.sample_px // tile**2)
    every = max(1, math.ceil(source.count() / wanted))
    patches = [pixels for _, pixels in source.tiles(tile=tile, every=every)]
    for pixels, usable in zip(patches, without_ink(patches), strict=True):
        histogram.add(pixels, usable)
    return fit_stains(histogram, method=options.method)


def _blocks(tiles: Iterator[tuple[str, Tile]], tile: int) -> Iterator[list[tuple[str, Tile]]]:
    size = max(1, _BLOCK_BYTES // (tile * tile * 3))
    while block := list(itertools.islice(tiles, size)):
        yield block


def _padded(names: list[bytes]) -> npt.NDArray[np.uint8]:
    """Return names as rows of UTF-8 padded with zeros: any zarr v3 reader knows uint8."""
    rows = np.zeros((len(names), max(map(len, names))), np.uint8)
    for row, name in zip(rows, names, strict=True):
        row[: len(name)] = np.frombuffer(name, np.uint8)
    return rows


def _facts(
    store: TileStore,
    source: TileImages,
    tile: int,
    count: int,
    stain: StainProfile,
    fingerprint: str,
) -> dict[str, Any]:
    return {
        "status": "ok",
        "tiles": count,
        "tiles_missing": 0,
        "digest": store.digest,
        "slide": {
            "geometry": False,
            "file": source.path.resolve().name,
            "format": source.format,
            "fingerprint": fingerprint,
        },
        "grid": {"tile_px": tile},
        "stain": stain.to_dict(),
        "versions": {
            "wsiad": __version__,
            "h5py": h5py.__version__,
            "pillow": PIL.__version__,
            "zarr": zarr.__version__,
        },
    }
