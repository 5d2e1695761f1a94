"""Options of stored features: the type of their numbers, and the space that they may take."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wsiad.core.config import Config

Dtype = Literal["float32", "float16", "bfloat16"]
"""Type of stored features, the most exact first; they are float32 in use."""


class FeatureStorageOptions(Config):
    """Options of the storage of features."""

    dtype: Dtype = "float16"
    """Type of the stored numbers. `float16` and `bfloat16` take half the space of `float32`, and
    round to 11 and 8 binary digits."""


class SizeOptions(Config):
    """Limits of the space that features take."""

    max_gib: Annotated[float, Field(gt=0)] = 100.0
    """Maximum size of the features of this call before compression, GiB. More is refused before
    anything is computed."""
