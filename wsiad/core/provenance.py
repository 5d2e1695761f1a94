"""The origin of an artefact: versions of the package and of all that decides its numbers."""

from __future__ import annotations

import importlib.metadata
import platform

from wsiad._version import __version__

_PACKAGES = (
    "imagecodecs",
    "numba",
    "numcodecs",
    "numpy",
    "opencv-python-headless",
    "openslide-bin",
    "openslide-python",
    "safetensors",
    "scikit-image",
    "scikit-learn",
    "scipy",
    "torch",
    "torchvision",
    "zarr",
)


def versions() -> dict[str, str]:
    """Versions of wsiad, Python and the packages that compute."""
    found = {"wsiad": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
