"""PETSeg: from an FDG PET scan to the tumour's mask and its numbers, without PyTorch.

>>> from petseg_runtime import Segmenter, read_volume
>>> segmentation = Segmenter().segment(read_volume("scan.nii.gz"))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from petseg_runtime.errors import (
    BackendError,
    BatchError,
    CancelledError,
    InputError,
    MemoryBudgetError,
    ModelError,
    PetsegError,
    UsageError,
)

if TYPE_CHECKING:
    from petseg_runtime.io.scans import read_volume
    from petseg_runtime.io.suv_attributes import SuvOverrides
    from petseg_runtime.segmentation import Segmentation
    from petseg_runtime.segmenter import Segmenter
    from petseg_runtime.volume import Geometry, Unit, Volume

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "BatchError",
    "CancelledError",
    "Geometry",
    "InputError",
    "MemoryBudgetError",
    "ModelError",
    "PetsegError",
    "Segmentation",
    "Segmenter",
    "SuvOverrides",
    "Unit",
    "UsageError",
    "Volume",
    "__version__",
    "read_volume",
]

# Imported when first asked for, so that `import petseg_runtime` and `petseg-run --version` cost nothing.
_LAZY = {
    "Geometry": "volume",
    "Segmentation": "segmentation",
    "Segmenter": "segmenter",
    "SuvOverrides": "io.suv_attributes",
    "Unit": "volume",
    "Volume": "volume",
    "read_volume": "io.scans",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"petseg_runtime.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
