"""Import torchvision's models also where its compiled operators do not load.

torchvision's wheel on PyPI is linked against the CUDA build of torch. Beside a
CPU-only torch (PyPI's on some platforms, or the ``+cpu`` wheels) its extension
cannot be loaded, and ``import torchvision`` then dies of registering shape functions
for operators that were never defined (``operator torchvision::nms does not exist``).
The models that this package uses are plain PyTorch and need none of them.
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
from types import ModuleType

import torch

_MISSING = re.compile(r"operator torchvision::(\w+) does not exist")
_MOST_OPERATORS = 64


@functools.cache
def models() -> ModuleType:
    """Return the module ``torchvision.models``.

    Where importing it fails only because a compiled operator is not defined, a
    placeholder of that name is defined (calling it is still an error) and the import
    is done again.

    Raises
    ------
    ImportError, RuntimeError
        torchvision cannot be imported for any other reason.
    """
    for _ in range(_MOST_OPERATORS):
        try:
            return importlib.import_module("torchvision.models")
        except RuntimeError as error:
            missing = _MISSING.search(str(error))
            if missing is None:
                raise
            _forget("torchvision")
            _library().define(f"{missing[1]}(Tensor input) -> Tensor")  # type: ignore[no-untyped-call]
    raise ImportError("torchvision lacks more compiled operators than it has")


def operators_load() -> bool:
    """Whether torchvision's compiled operators are usable; for ``wsiad doctor``."""
    models()
    return bool(importlib.import_module("torchvision.extension")._has_ops())


@functools.cache
def _library() -> torch.library.Library:
    # "FRAGMENT" adds to a namespace that others may define too; the object must
    # stay alive, as its definitions go with it.
    return torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]


def _forget(package: str) -> None:
    """Drop a half-imported package, so that its next import runs afresh."""
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        del sys.modules[name]
