"""How near the simulated cohort comes to the paper's: printed, so that a reader can judge, and never asserted."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich.progress import track

from petseg_train.cohort import Case, read_cohort
from petseg_train.evaluation import contrast
from petseg_train.ground_truth.thresholds import t40
from petseg_train.metrics import dice
from petseg_train.simulation.truth import SATISFACTORY


def calibration(csv: Path) -> pd.DataFrame:
    """A row a centre: patients, tumour volume, contrast, share touching the bladder, FLAB, noise, T40.

    `contrast` is the mean intensity of the tumour over that of the body, as in the paper; `flab` the DSC of FLAB's
    first run with the exact mask, `again` and `edited` the share of masks that the expert ran again or edited;
    `muscle` and `liver` the noise, standard deviation / mean.
    """
    rows = [_row(case) for case in track(read_cohort(csv), "Calibrating", transient=True)]
    cases = pd.DataFrame(rows)
    table = []
    for centre, group in cases.groupby("centre", sort=False):
        table.append(
            {
                "centre": str(centre),
                "cases": len(group),
                "ml": f"{group['ml'].mean():.0f} ± {group['ml'].std():.0f}",
                "contrast": f"{group['contrast'].mean():.1f} ± {group['contrast'].std():.1f}",
                "touch": f"{100 * group['touches'].mean():.0f} %",
                "flab": f"{group['flab'].mean():.2f} ± {group['flab'].std():.2f}",
                "again": f"{100 * (~(group['flab'] >= SATISFACTORY)).mean():.0f} %",
                "edited": f"{100 * (group['truth'] == 'edited').mean():.0f} %",
                "muscle": f"{group['muscle'].mean():.2f}",
                "liver": f"{group['liver'].mean():.2f}",
                "T40": f"{group['t40'].mean():.2f} ± {group['t40'].std():.2f}",
            }
        )
    return pd.DataFrame(table)


def _row(case: Case) -> dict[str, object]:
    volume, mask = case.read()
    return {
        "centre": case.centre,
        "ml": float(mask.sum()) * volume.geometry.voxel_volume_ml,
        "contrast": contrast(volume, mask > 0),
        "touches": bool(case.extra["touches_bladder"]),
        "flab": case.extra["flab_dsc"],
        "truth": case.extra["truth"],
        "muscle": case.extra["noise_muscle"],
        "liver": case.extra["noise_liver"],
        "t40": dice(t40(volume) > 0, mask > 0),
    }
