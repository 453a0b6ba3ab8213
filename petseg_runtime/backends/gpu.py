"""NVIDIA GPUs through cuda-core: which there are, and which one a thread works on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from petseg_runtime.backends.base import one_line
from petseg_runtime.errors import BackendError


def compute_capability(gpu: int) -> str:
    """Compute capability of a GPU, such as "8.6".

    Raises
    ------
    BackendError : if there is no NVIDIA driver, or no such GPU.
    """
    capability = _device(gpu).compute_capability
    return f"{capability.major}.{capability.minor}"


def gpu_name(gpu: int) -> str:
    """The GPU's model, such as "NVIDIA RTX A4000".

    Raises
    ------
    BackendError : as for `compute_capability`.
    """
    return str(_device(gpu).name)


@contextmanager
def current(gpu: int) -> Iterator[Any]:
    """The GPU, as the thread's current one; afterwards that is what it was before, for the thread is its caller's.

    Raises
    ------
    BackendError : as for `compute_capability`.
    """
    device = _device(gpu)
    from cuda.bindings import driver

    _, before = driver.cuCtxGetCurrent()
    device.set_current()
    try:
        yield device
    finally:
        driver.cuCtxSetCurrent(before)


def _device(gpu: int) -> Any:
    try:
        from cuda.core import Device

        return Device(gpu)
    except ImportError as error:
        raise BackendError("cuda-core is not installed. Install petseg[gpu], or use --device cpu.") from error
    except Exception as error:  # no driver, or no such device: cuda-core's errors share no base class
        raise BackendError(f"There is no NVIDIA GPU {gpu} here: {one_line(error)}.") from error
