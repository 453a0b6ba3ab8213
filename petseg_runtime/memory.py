"""What a scan takes of the memory, so that one that is too large is refused before anything is allocated for it.

The bytes a voxel bound what was measured as the peak of whole runs with every output; a test holds them against it.
"""

from __future__ import annotations

from dataclasses import dataclass

from petseg_runtime.errors import MemoryBudgetError, UsageError

# Python with the libraries of reading, inference and writing, and the weights.
_PROCESS_BYTES = 350e6
# Of a voxel of the scan: its values, the mask, the probabilities and the lesions, and what writing takes beside them.
_SCAN_BYTES = 20
# Of a voxel on the network's grid: the input, the probabilities (two with mirrorings), and what resampling takes.
_NETWORK_BYTES = 16
# Buffers that the plan of the network does not show.
_WINDOW_SLACK = 1.3


@dataclass(frozen=True)
class MemoryBudget:
    """How much memory one scan at a time may take, with everything that the process holds.

    Parameters
    ----------
    gigabytes : of 10⁹ bytes.
    window_bytes : what the network takes for one of its windows.

    Raises
    ------
    UsageError : if it is not a positive number.
    MemoryBudgetError : if not even the smallest scan fits it.
    """

    gigabytes: float
    window_bytes: int

    def __post_init__(self) -> None:
        if not 0 < self.gigabytes < float("inf"):
            raise UsageError(f"The memory budget is {self.gigabytes} GB, expected a positive number.")
        if self._left() <= 0:
            needed = (_PROCESS_BYTES + _WINDOW_SLACK * self.window_bytes) / 1e9
            raise MemoryBudgetError(
                f"The memory budget is {self.gigabytes:g} GB, and this model takes {needed:.1f} GB without any scan."
            )

    def _left(self) -> float:
        return self.gigabytes * 1e9 - _PROCESS_BYTES - _WINDOW_SLACK * self.window_bytes

    def scan_voxels(self) -> int:
        """The most voxels that a scan may have."""
        return int(self._left() / _SCAN_BYTES)

    def network_voxels(self, scan_voxels: int) -> int:
        """The most voxels that a scan of so many may have on the network's grid."""
        return max(0, int((self._left() - _SCAN_BYTES * scan_voxels) / _NETWORK_BYTES))
