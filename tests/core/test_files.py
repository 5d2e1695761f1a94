"""Where files can be written can be tried; errors name what the user asked for."""

import errno
import os
from pathlib import Path

import h5py
import pytest

from wsiad.core.errors import InputError
from wsiad.core.files import (
    MOST_FACTS,
    atomic_file,
    atomic_folder,
    check_folder,
    new_file,
    read_json,
    said,
    write_text,
)
from wsiad.core.ownership import claimed, locked

PROC = Path("/proc")
"""A folder in which nobody can make a file, not even root."""
needs_proc = pytest.mark.skipif(not (PROC / "self").exists(), reason="no /proc here")


def test_a_folder_is_tried_and_left_as_it_was(tmp_path):
    before = tmp_path.stat().st_mode
    check_folder(tmp_path / "a" / "b", tried=True)
    assert list(tmp_path.iterdir()) == []
    assert tmp_path.stat().st_mode == before


@needs_proc
@pytest.mark.parametrize("path", [PROC, PROC / "wsiad" / "out"])
def test_a_folder_that_cannot_be_written_to_is_named_with_the_option(path):
    check_folder(path)
    with pytest.raises(InputError, match=r"/proc: cannot be written to \(.+\)\. .*--here"):
        check_folder(path, option="--here", tried=True)


@pytest.mark.parametrize("most", [None, MOST_FACTS])
def test_a_file_that_is_too_large_is_not_read(tmp_path, most):
    path, given = tmp_path / "run.json", {} if most is None else {"most": most}
    path.write_text("{}")
    assert read_json(path, InputError, remedy="Copy it again.", **given) == {}
    os.truncate(path, (most or 64 << 20) + 1)
    with pytest.raises(InputError) as caught:
        read_json(path, InputError, remedy="Copy it again.", **given)
    size = 64 if most is None else 1
    assert str(caught.value) == (
        f"{path}: cannot be read: it has more than {size} MiB. Copy it again."
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_permissions_count(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(InputError, match=r"cannot be written to \(permission denied\)"):
        check_folder(tmp_path / "out", tried=True)


def refused(path):
    raise PermissionError(errno.EACCES, "Permission denied", str(path))


@pytest.mark.parametrize("writer", [atomic_file, new_file, atomic_folder])
def test_an_error_names_the_path_and_not_its_temporary_name(tmp_path, writer):
    path = tmp_path / "scores.h5"
    with pytest.raises(PermissionError) as error, writer(path) as partial:
        refused(partial)
    assert said(error.value).startswith(f"{path}: permission denied.")
    with pytest.raises(PermissionError) as error, atomic_folder(path) as partial:
        refused(partial / "tiles" / "0")
    assert error.value.filename == str(path / "tiles" / "0")
    with pytest.raises(PermissionError) as error, writer(path):
        refused(tmp_path / "other.csv")  # what is not its own keeps its name
    assert error.value.filename == str(tmp_path / "other.csv")
    assert list(tmp_path.iterdir()) == []


@needs_proc
def test_the_error_of_a_folder_without_rights_names_the_file(tmp_path):
    for write in (lambda path: write_text(path, "x"), _write_hdf5):
        with pytest.raises(OSError, match=r"/proc/wsiad\.h5") as error:
            write(PROC / "wsiad.h5")
        assert "partial" not in str(error.value)
    for lock in (claimed(PROC), locked(PROC / ".slides.csv.lock")):
        with pytest.raises(OSError, match="/proc") as error, lock:
            pass
        assert error.value.filename == "/proc"


def _write_hdf5(path):
    with atomic_file(path) as partial, h5py.File(partial, "w"):
        pass
