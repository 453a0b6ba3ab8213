"""The paper's truth for a simulated patient: an expert's volume of interest, FLAB in it, and the expert's review."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt

from petseg_runtime.errors import InputError
from petseg_runtime.volume import MaskArray
from petseg_train.ground_truth.flab import flab
from petseg_train.metrics import dice
from petseg_train.simulation.lesion import largest_part
from petseg_train.simulation.patient import Patient

# The expert sees whether a mask shows the tumour; here the exact mask stands in for the eye. The second run is with
# three classes, where the paper's expert tried other starting values; the edit is by hand: fewer than 5 % of the cases
# in the paper, 0.9 % here.
SATISFACTORY, _ACCEPTABLE = 0.75, 0.5


@dataclass(frozen=True)
class Truth:
    """The mask `(z, y, x)`, and how it came about.

    Attributes
    ----------
    method : "flab", "flab, 3 classes" (the expert ran it again) or "edited" (by hand: the exact mask).
    flab_dsc : DSC with the exact mask of FLAB's first run, before any review; nan where FLAB refused the VOI.
    """

    mask: MaskArray
    method: str
    flab_dsc: float


def expert_voi(patient: Patient, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """A loose outline round the tumour `(z, y, x)` that leaves out the bladder and other hot organs."""
    spacing = patient.volume.geometry.spacing_mm
    tumour, other = patient.tumour > 0, patient.other_uptake > 0
    margin = rng.uniform(7, 13)
    beyond_other = distance_transform_edt(~other, sampling=spacing) if other.any() else np.full(other.shape, np.inf)
    near = distance_transform_edt(~tumour, sampling=spacing) <= margin
    return near & ((beyond_other > 3.0) | tumour) & ~other


def paper_truth(patient: Patient, rng: np.random.Generator) -> Truth:
    """FLAB in the expert's VOI; run again with three classes, and at last edited, where it does not satisfy."""
    voi, exact = expert_voi(patient, rng), patient.tumour > 0
    first, found = float("nan"), []
    for classes, method in ((2, "flab"), (3, "flab, 3 classes")):
        try:
            mask = largest_part(flab(patient.volume.array, voi, rng, classes), neighbours=3)
        except InputError:  # a VOI of a few voxels
            continue
        found.append((dice(mask, exact), method, mask))
        first = found[0][0] if classes == 2 else first
        if found[-1][0] >= SATISFACTORY:
            break
    dsc, method, mask = max(found, key=lambda run: run[0], default=(0.0, "", exact))
    if dsc < _ACCEPTABLE:
        return Truth(patient.tumour, "edited", first)
    return Truth(mask.astype(np.uint8), method, first)
