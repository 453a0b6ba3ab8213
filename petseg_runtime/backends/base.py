"""What the segmenter asks of an inference backend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from petseg_runtime.errors import ModelError
from petseg_runtime.volume import FloatArray, Shape


class Backend(Protocol):
    """A loaded network. `predict` may be called from several threads at once."""

    @property
    def device(self) -> str:
        """Where it runs: "cpu" or "gpu:N"."""

    @property
    def name(self) -> str:
        """Backend, version, device and, as the last word, precision; as the record of a run shows them.

        The self-test's record knows a backend by it, so all that the numbers depend on is in it.
        """

    def predict(self, windows: Iterable[FloatArray]) -> Iterator[FloatArray]:
        """Tumour probabilities, float32, of normalised windows `(1, c, z, y, x)`, of the same shape and order."""


@runtime_checkable
class PlansMemory(Protocol):
    """A backend that knows what it will take."""

    def working_bytes(self, window: Shape) -> int:
        """Memory that the network takes for a window `(z, y, x)` beside its weights."""


def check_one_input_and_output(inputs: Sequence[str], outputs: Sequence[str], float32: str) -> None:
    """Refuse a network that is not windows in, probabilities out.

    Parameters
    ----------
    inputs, outputs : the type of each, as the backend names it, and `float32` as it names that.

    Raises
    ------
    ModelError : if it has more inputs or outputs, which a backend would leave unset or pass over in silence, or others
        than float32, to which it would round.
    """
    if (len(inputs), len(outputs)) != (1, 1):
        raise ModelError(
            f"The model has {len(inputs)} inputs and {len(outputs)} outputs, expected one of each. Export it again."
        )
    if {*inputs, *outputs} != {float32}:
        raise ModelError(
            f"The model takes {inputs[0]} and gives {outputs[0]}, expected {float32} for both. Export it again."
        )


def one_line(error: Exception) -> str:
    """What a vendor's error says, to be the end of a message."""
    return " ".join(str(error).split()).rstrip(".")[:300] or type(error).__name__
