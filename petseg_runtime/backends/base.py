"""What the segmenter asks of an inference backend."""

from __future__ import annotations

from typing import Protocol

from petseg_runtime.volume import FloatArray


class Backend(Protocol):
    """A loaded network. `predict` may be called from several threads at once."""

    @property
    def name(self) -> str:
        """Backend, version, device and precision, as the record of a run shows them."""

    def predict(self, windows: FloatArray) -> FloatArray:
        """Tumour probabilities `(n, 1, z, y, x)` of normalised windows `(n, c, z, y, x)`, float32."""
