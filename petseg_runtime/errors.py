"""Every way in which PETSeg refuses to go on, and the exit code `petseg-run` ends with.

A message says what is wrong, what came, what was expected and what to do next, in one line, and
never carries a patient's name or identifier.
"""

from errno import EDQUOT, ENOSPC


class PetsegError(Exception):
    """Base of every error that PETSeg raises on purpose."""

    exit_code = 1


class UsageError(PetsegError):
    """The request itself cannot be carried out: an unknown option value, an output folder that cannot be written."""

    exit_code = 2


class InputError(PetsegError):
    """The scan is refused: unreadable, not a PET volume, or not safe to turn into numbers."""

    exit_code = 3


class ModelError(PetsegError):
    """The model file is refused: unreadable, without a manifest, damaged, or not for this version."""

    exit_code = 4


class BackendError(PetsegError):
    """The inference backend or the device is absent, or is not the one that was asked for."""

    exit_code = 5


class MemoryBudgetError(PetsegError):
    """The scan does not fit the memory budget."""

    exit_code = 6


class BatchError(PetsegError):
    """Some scans of a batch failed; the others are done."""

    exit_code = 7


class CancelledError(PetsegError):
    """The caller's wish to stop, carried out; nothing is left of the scan."""

    exit_code = 130


def as_petseg_error(error: Exception) -> PetsegError:
    """The error itself, or for one that nobody thought of a line that says so and holds nothing of the scan."""
    if isinstance(error, PetsegError):
        return error
    if isinstance(error, MemoryError):
        return MemoryBudgetError("The scan does not fit into the memory of this machine.")
    if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT):
        return UsageError("The disk that results or messages go to is full. Make room, and run again.")
    return PetsegError(f"Unexpected {type(error).__name__}: please report it, with what --verbose prints.")
