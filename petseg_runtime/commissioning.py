"""Commissioning: whether this machine computes what the model's maker computed.

A model file carries the probabilities that the network must give for a few windows that anyone can make. The self-test
runs each backend and precision of the machine on them and keeps a record for the model and the machine: what failed is
refused from then on, and reduced precision (bf16 on the CPU, fp16 in an engine) is used only where it passed.

Tolerances, between the machine's probabilities and the stored ones, which are of ONNX Runtime in f32:

- f32: no probability further than 3e-3 (the stored ones are rounded by up to 1.3e-4, and OpenVINO on one thread is up
  to 1.5e-3 from a float64 computation, three times as far as on two); DSC of the masks at least 0.999.
- bf16 and fp16: mean difference at most 1e-3, DSC at least 0.995. Single voxels on an edge may differ by more, so the
  masks decide: a model that marks nothing in the windows proves nothing, and does not pass.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import os
import platform
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from petseg_runtime.errors import ModelError
from petseg_runtime.manifest import ModelManifest
from petseg_runtime.volume import FloatArray, Shape, Triple

# Ellipsoids of the test windows: mm up, back and left of the middle, radii in mm, uptake in the network's scale.
_BLADDER = (-20.0, -35.0, 0.0, (22.0, 25.0, 30.0), 6.0)
_TUMOURS = (
    (0.0, 15.0, 5.0, (24.0, 22.0, 26.0), 14.0),
    (4.0, 18.0, -8.0, (28.0, 24.0, 30.0), 12.0),
    (5.0, 20.0, 8.0, (30.0, 30.0, 30.0), 8.0),
)
WINDOWS = len(_TUMOURS)
_STEPS = 4000  # of a stored probability from 0 to 1
MAX_DIFFERENCE_F32, MIN_DSC_F32 = 3e-3, 0.999
MAX_MEAN_DIFFERENCE_REDUCED, MIN_DSC_REDUCED = 1e-3, 0.995

Predict = Callable[[Iterable[FloatArray]], Iterator[FloatArray]]


@dataclass(frozen=True)
class Outcome:
    """How one backend did: `name` tells backend, version, device and precision. `dsc` is NaN between empty masks."""

    name: str
    largest_difference: float
    mean_difference: float
    dsc: float

    @property
    def precision(self) -> str:
        return precision_of(self.name)

    @property
    def passed(self) -> bool:
        if self.precision == "f32":
            return self.largest_difference <= MAX_DIFFERENCE_F32 and not self.dsc < MIN_DSC_F32
        return self.mean_difference <= MAX_MEAN_DIFFERENCE_REDUCED and self.dsc >= MIN_DSC_REDUCED


@dataclass(frozen=True)
class Record:
    """What a self-test found, for one model on one machine."""

    model_sha256: str
    machine: str
    date: str
    outcomes: tuple[Outcome, ...]

    def passed(self, name: str) -> bool | None:
        """Whether the backend passed; None if it was not tested."""
        return next((outcome.passed for outcome in self.outcomes if outcome.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values, with what passed."""
        return {
            **{key: value for key, value in asdict(self).items() if key != "outcomes"},
            "outcomes": [
                _as_json(asdict(outcome)) | {"precision": outcome.precision, "passed": outcome.passed}
                for outcome in self.outcomes
            ],
        }


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    """With None for NaN and infinity, which JSON does not have."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()
    }


def precision_of(backend_name: str) -> str:
    """The precision that a backend of this name computes in: "f32", "bf16" or "fp16"."""
    return backend_name.rpartition(" ")[2]


def self_test_windows(shape: Shape, spacing_mm: Triple) -> list[FloatArray]:
    """Windows `(1, 1, z, y, x)` of the network's scale, the same on every machine to the last bit.

    A pelvis: air, a body with the noise of a scan, a full bladder, and behind it a tumour, larger and paler in each
    window. A network that learned to tell the two marks some thousand voxels, few of them near the threshold: where it
    is unsure of all it marks, the masks tell little about the machine. Only sums, products, quotients and comparisons
    are used, which IEEE 754 rounds alike everywhere: a sine would differ between libraries.

    Parameters
    ----------
    shape : voxels `(z, y, x)` of the model's patch; its middle is the origin.
    spacing_mm : of the model's voxels `(z, y, x)`, so that organs have their size whatever the model's grid.
    """
    z, y, x = np.meshgrid(
        *((np.arange(n) - n // 2) * step for n, step in zip(shape, spacing_mm, strict=True)), indexing="ij"
    )
    windows = []
    for index, tumour in enumerate(_TUMOURS):
        noise = np.random.Generator(np.random.PCG64(index)).integers(-8, 9, shape) / 16.0
        window = np.where((y / 115.0) ** 2 + (x / 170.0) ** 2 < 1, noise, -1.0)
        for up, back, left, (height, depth, width), uptake in (_BLADDER, tumour):
            # Full up to 0.7 of the radii, and falling from there to 1.2 as a scanner blurs it.
            apart = ((z - up) / height) ** 2 + ((y - back) / depth) ** 2 + ((x - left) / width) ** 2
            window += uptake * np.clip(1.5 - apart, 0.0, 1.0)
        windows.append(window.astype(np.float32)[None, None])
    return windows


def pack(probabilities: Sequence[FloatArray]) -> str:
    """Probabilities of the test windows as text for the model file."""
    steps = np.rint(np.stack([one[0, 0] for one in probabilities]) * _STEPS).astype("<u2")
    return base64.b64encode(zlib.compress(steps.tobytes(), 9)).decode()


def unpack(text: str, shape: Shape) -> list[FloatArray]:
    """The inverse of `pack`.

    Raises
    ------
    ModelError : if the text is damaged or of another patch size.
    """
    try:
        size = 2 * WINDOWS * math.prod(shape)
        # One byte more than it may be, so that what unpacks to gigabytes is refused without them.
        unpacker = zlib.decompressobj()
        content = unpacker.decompress(base64.b64decode(text, validate=True), size + 1)
        if not unpacker.eof:
            raise ValueError("it is cut short, or holds more")
        steps = np.frombuffer(content, "<u2")
        return list((steps / np.float32(_STEPS)).reshape(WINDOWS, 1, 1, *shape))
    except (ValueError, zlib.error, binascii.Error) as error:
        raise ModelError("The model's stored results are damaged. Export the model again.") from error


def examine(name: str, predict: Predict, expected: Sequence[FloatArray], manifest: ModelManifest) -> Outcome:
    """Run the backend of this name on the test windows of the model of this manifest."""
    found = list(predict(self_test_windows(manifest.patch_size, manifest.preprocessing.spacing_mm)))
    threshold = manifest.threshold
    apart = [np.abs(one - other) for one, other in zip(found, expected, strict=True)]
    ours, theirs = np.stack(found) >= threshold, np.stack(expected) >= threshold
    # A voxel whose stored probability lies on the threshold may fall to either side.
    clear = np.abs(np.stack(expected) - threshold) > MAX_DIFFERENCE_F32
    both, total = int((ours & theirs & clear).sum()), int((ours & clear).sum() + (theirs & clear).sum())
    return Outcome(
        name,
        largest_difference=float(np.max([part.max() for part in apart])),  # which is NaN where a part is
        mean_difference=float(np.mean([part.mean(dtype=np.float64) for part in apart])),
        dsc=2 * both / total if total else math.nan,
    )


def new_record(model_sha256: str, outcomes: Sequence[Outcome]) -> Record:
    """The record of a self-test done now on this machine."""
    return Record(model_sha256, machine(), datetime.now(UTC).isoformat(timespec="seconds"), tuple(outcomes))


def kept(model_sha256: str) -> Record | None:
    """The record of this model on this machine, if there is one that can be read."""
    try:
        path = record_path(model_sha256)
        if path is None:
            return None
        fields = json.loads(path.read_text(encoding="utf-8"))
        outcomes = tuple(_outcome(outcome) for outcome in fields["outcomes"])
        record = Record(fields["model_sha256"], fields["machine"], fields["date"], outcomes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return record if (record.model_sha256, record.machine) == (model_sha256, machine()) else None


def _outcome(fields: dict[str, Any]) -> Outcome:
    numbers = {key: fields[key] for key in ("largest_difference", "mean_difference", "dsc")}
    return Outcome(str(fields["name"]), **{key: math.nan if n is None else float(n) for key, n in numbers.items()})


def machine() -> str:
    """What a result may depend on: the processor and the operating system."""
    processor = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        processor = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), processor)
    except OSError:
        pass
    return f"{processor}, {platform.machine()}, {platform.system()}"


def record_path(model_sha256: str) -> Path | None:
    """Where the record of a model is kept: among the user's state, by the XDG base directory specification."""
    folder = user_folder("XDG_STATE_HOME", ".local/state")
    return None if folder is None else folder / "petseg" / f"{model_sha256}.json"


def user_folder(variable: str, below_home: str) -> Path | None:
    """A folder of the XDG base directory specification; None for a user without a home, as in some containers."""
    named = Path(os.environ.get(variable, ""))
    if named.is_absolute():  # others are to be ignored
        return named
    try:
        return Path.home() / below_home
    except RuntimeError:
        return None
