"""Write the golden vectors: what the model's network must give, in whatever language it runs.

    python examples/embedding/golden.py

The window is made of whole numbers by a rule that any language follows exactly (see `window`, and `node/run.mjs`). It
looks like no patient, and little in it is probable; so probabilities are compared by their ratio.
"""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt

from petseg_runtime.backends import open_backend
from petseg_runtime.manifest import read_model
from petseg_runtime.segmenter import BUNDLED_MODEL

EVERY = 4099  # a prime: the voxels that are kept lie all over the window


def window(shape: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    """Noise of a linear congruential generator between -0.5 and 0.5, and a hot ball in the middle."""
    state, noise = 1, np.empty(np.prod(shape), dtype=np.float32)
    for index in range(noise.size):
        state = (1664525 * state + 1013904223) % 2**32
        noise[index] = (state >> 24) / 256 - 0.5
    z, y, x = np.indices(shape) - np.array(shape)[:, None, None, None] // 2
    ball: npt.NDArray[np.float32] = (noise.reshape(shape) + 6 * (z**2 + y**2 + x**2 < 100)).astype(np.float32)
    return ball


def main() -> None:
    """Compute by ONNX Runtime on the CPU."""
    model = read_model(Path(str(files("petseg_runtime") / "models" / BUNDLED_MODEL)))
    backend, _ = open_backend(model.content, "onnxruntime", "cpu")
    (probabilities,) = backend.predict([window(model.manifest.patch_size)[None, None]])
    golden = {
        "model_sha256": model.sha256,
        "shape": model.manifest.patch_size,
        "every": EVERY,
        "probabilities": [float(f"{p:.5g}") for p in probabilities.ravel()[::EVERY]],
    }
    Path(__file__).with_name("golden.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
