"""torchvision's models, imported without what they do not need.

They are also imported if torchvision's compiled operators do not load. Its wheel on PyPI is linked
against the CUDA build of torch. Next to a CPU-only torch (PyPI's on some platforms, or the
``+cpu`` wheels) its extension cannot be loaded, and ``import torchvision`` then fails while it
registers shape functions for operators that were never defined (``operator torchvision::nms does
not exist``). The models that this package uses are plain PyTorch and need none of them.
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

_MISSING = re.compile(r"operator torchvision::(\w+) does not exist")
_MOST_OPERATORS = 64
_COMPILER = "torch._dynamo.utils"


@functools.cache
def torchvision_models() -> ModuleType:
    """Return the module ``torchvision.models``.

    If the import fails only because a compiled operator is not defined, a placeholder of that
    name is defined (calling it is still an error), and the import is repeated.

    Raises
    ------
    ImportError, RuntimeError
        torchvision cannot be imported for any other reason.
    """
    for _ in range(_MOST_OPERATORS):
        try:
            with _compiler_later():
                return importlib.import_module("torchvision.models")
        except RuntimeError as error:
            missing = _MISSING.search(str(error))
            if missing is None:
                raise
            _forget("torchvision")
            _library().define(f"{missing[1]}(Tensor input) -> Tensor")  # type: ignore[no-untyped-call]
    raise ImportError("torchvision lacks more compiled operators than it has")


def operators_load() -> bool:
    """Tell whether torchvision's compiled operators are usable; for ``wsiad doctor``."""
    torchvision_models()
    return bool(importlib.import_module("torchvision.extension")._has_ops())


class _Later(ModuleType):
    """Stands for torch's compiler until something of it is called."""

    def is_compile_supported(self, device: str | torch.device) -> Any:
        """Ask the compiler, as torchvision's detection networks do when they run."""
        return importlib.import_module(_COMPILER).is_compile_supported(device)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        _put_away(self)
        return getattr(importlib.import_module(_COMPILER), name)


def _put_away(later: _Later) -> None:
    if sys.modules.get(_COMPILER) is later:
        del sys.modules[_COMPILER]


@contextmanager
def _compiler_later() -> Iterator[None]:
    """Let torchvision be imported without torch's compiler, which takes longer than itself.

    Its detection networks take one function of the compiler when they are imported, and call it
    when they run; no networks of wsiad do. While torchvision is imported, and no longer, something
    else stands in ``sys.modules`` for the module of that function. It hands on whatever is asked
    of it, so that the real one is loaded then. Nothing is done where the compiler is loaded
    already, and what is compiled later does not meet the stand-in. It saves five sixths of the
    processor time of the import (0.26 in place of 1.41 s, torch 2.13). A lazy module of
    :class:`importlib.util.LazyLoader` would be loaded at once, because names are taken from it.
    """
    if _COMPILER in sys.modules:
        yield
        return
    later = sys.modules[_COMPILER] = _Later(_COMPILER)
    try:
        yield
    finally:
        _put_away(later)


@functools.cache
def _library() -> torch.library.Library:
    # "FRAGMENT" adds to a namespace that others may define too; the object must
    # stay alive, as its definitions go with it.
    return torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]


def _forget(package: str) -> None:
    """Drop a half-imported package, so that its next import starts again."""
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        del sys.modules[name]
