"""The study: its statistics by hand, its report, and the whole chain on ten simulated patients."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import wilcoxon

from petseg_runtime import Segmenter
from petseg_runtime.errors import InputError, UsageError
from petseg_runtime.io.images import write_image
from petseg_runtime.volume import Geometry, Volume
from petseg_train import cross_validation
from petseg_train.cli import study as study_command
from petseg_train.cohort import Case, check_study_cohort, cohort_digest, load_training_cases, read_cohort
from petseg_train.config import PREPROCESSING, TrainingConfig, load_config
from petseg_train.cross_validation import cross_validate
from petseg_train.evaluation import evaluate
from petseg_train.figures import box_plots, projections
from petseg_train.report import PAPER, write_report
from petseg_train.simulation.cohort import simulation_of
from petseg_train.statistics import (
    by_bladder,
    by_decile,
    by_stage,
    holm,
    leaks,
    outliers,
    paired_tests,
    rank_biserial,
    study_summary,
)
from petseg_train.study import run_study
from petseg_train.training import load_module

Spoil = Callable[[list[dict[str, str]]], object]


def scores(**columns: Any) -> pd.DataFrame:
    """A table of scores; what is not given is the same for all."""
    plain = {
        "case": [f"c{n}" for n in range(len(columns["dsc"]))],
        "centre": "x",
        "model": "m",
        "precision": 0.5,
        "recall": 0.5,
    }
    return pd.DataFrame(plain | columns)


def test_the_rank_biserial_effect_by_hand() -> None:
    # Ranks of |d| are 1, 2, 3; W+ = 1 + 3, W- = 2.
    assert rank_biserial(np.array([0.1, -0.2, 0.3, 0.0])) == pytest.approx((4 - 2) / 6)
    assert rank_biserial(np.zeros(3)) == 0.0


def test_holms_correction_by_hand() -> None:
    # Sorted 0.01, 0.03, 0.04 times 3, 2, 1, and never falling.
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, 0.03])), [0.06, 0.03, 0.06])
    assert holm(np.array([0.9, 0.8])).max() == 1.0


def test_the_tests_are_paired_by_case_and_made_in_each_centre() -> None:
    rng = np.random.default_rng(0)
    better = rng.uniform(0.5, 0.9, 20)
    one = scores(dsc=better, model="new", centre=["a"] * 10 + ["b"] * 10)
    other = scores(dsc=better - 0.05, model="old", centre=["a"] * 10 + ["b"] * 10).sample(frac=1, random_state=1)
    tests = paired_tests(pd.concat([one, other]), "new", "old")
    row = tests[(tests["centre"] == "a") & (tests["metric"] == "dsc")].iloc[0]
    assert row["cases"] == 10
    assert row["difference"] == pytest.approx(0.05)
    assert row["effect"] == pytest.approx(1.0)
    assert row["wilcoxon_p"] == pytest.approx(wilcoxon(np.full(10, 0.05) + np.arange(10) * 1e-9).pvalue, rel=0.01)
    same = tests[tests["metric"] == "recall"]
    assert (same["wilcoxon_p"] == 1.0).all()
    assert (same["effect"] == 0.0).all()
    assert (tests["wilcoxon_p_holm"] >= tests["wilcoxon_p"]).all()


def test_the_papers_criterion_and_the_corrected_one_are_told_apart() -> None:
    """Better in all of six cases: p = 0.03 of the Wilcoxon test, which is no longer small after correction."""
    low = np.linspace(0.30, 0.31, 6)
    apart = pd.concat([scores(dsc=low + 0.4, model="new"), scores(dsc=low, model="old")])
    tests = paired_tests(apart, "new", "old").set_index("metric")
    assert tests.loc["dsc", "paper"]
    assert not tests.loc["dsc", "corrected"]
    # Better in all of thirty cases, but by less than they differ: not by the paper's, which asks the KS test as well.
    wide = np.linspace(0.1, 0.9, 30)
    near = pd.concat([scores(dsc=wide + np.linspace(0.01, 0.02, 30), model="new"), scores(dsc=wide, model="old")])
    tests = paired_tests(near, "new", "old").set_index("metric")
    assert not tests.loc["dsc", "paper"]
    assert tests.loc["dsc", "corrected"]


def test_an_outlier_is_below_q1_less_one_and_a_half_times_the_spread_of_its_fold() -> None:
    # Quartiles of 0.5, 0.7, 0.72, 0.74, 0.76: 0.70 and 0.74, so the limit is 0.64. The other fold is lower.
    table = scores(dsc=[0.5, 0.7, 0.72, 0.74, 0.76, 0.3, 0.3, 0.3], centre=["a"] * 5 + ["b"] * 3)
    assert outliers(table)["case"].tolist() == ["c0"]


def test_deciles_hold_a_tenth_each_in_rising_order() -> None:
    table = scores(dsc=np.arange(40) / 40, truth_ml=np.arange(40)[::-1].astype(float))
    deciles = by_decile(table, "truth_ml")
    assert deciles["cases"].tolist() == [4] * 10
    assert deciles["truth_ml_mean"].iloc[0] == pytest.approx(1.5)
    assert deciles["dsc_mean"].iloc[0] == pytest.approx(np.mean([39, 38, 37, 36]) / 40)


def test_stages_and_leaks() -> None:
    table = scores(
        dsc=[0.2, 0.4, 0.9], stage=["IIB", "IIB", "IB1"], truth_ml=[1.0, 3.0, 5.0], bladder_leakage=[0.0, 0.01, 0.02]
    )
    assert by_stage(table).set_index("stage").loc["IIB", "dsc_mean"] == pytest.approx(0.3)
    assert leaks(table)["case"].tolist() == ["c2"]


def test_scores_by_how_the_bladder_outshines_the_tumour() -> None:
    table = scores(dsc=[0.9, 0.7, 0.5, 0.3, 0.2], bladder_uptake=[0.4, 1.0, 3.0, 0.5, np.nan])
    grouped = by_bladder(table).set_index("bladder / tumour")
    assert grouped["cases"].to_dict() == {"to 0.5": 2, "to 1": 1, "above 2": 1}
    assert grouped.loc["to 0.5", "dsc_mean"] == pytest.approx(0.6)


def paper_like_results() -> pd.DataFrame:
    rng = np.random.default_rng(3)
    tables = []
    for model in ("residual_scse_unet", "standard_unet", "t40"):
        for centre in ("Brest", "Nantes", "Montreal", "Barcelona", "Liege"):
            tables.append(
                scores(
                    case=[f"{centre}-{n}" for n in range(6)],
                    centre=centre,
                    model=model,
                    dsc=rng.uniform(0.4, 0.9, 6),
                    hd95_mm=[5.0] * 5 + [np.inf],
                    surface_dice=0.8,
                    volume_error=0.1,
                    truth_ml=rng.uniform(2, 90, 6),
                    contrast=rng.uniform(2, 9, 6),
                    stage="IIB",
                    bladder_leakage=[0.0] * 5 + [0.3],
                    dsc_exact=0.7,
                )
            )
    return pd.concat(tables, ignore_index=True)


def test_the_report_holds_every_number_beside_the_papers() -> None:
    results = paper_like_results()
    text = write_report(results, None, {"Cohort": "of the test"}, ["scores.png"])
    ours = results[results["model"] == "t40"].groupby("centre")["dsc"].mean()["Brest"]
    assert f"| T40 | {ours:.2f} ±" in text
    for row in PAPER.values():
        assert f"| (paper) | {' | '.join(row.split('|'))} |" in text
    assert "Brest-5 (30 %)" in text
    assert "![scores.png](scores.png)" in text


def test_leakage_is_told_of_the_cases_that_have_a_bladder() -> None:
    results = paper_like_results()
    results.loc[results["centre"] != "Nantes", "bladder_leakage"] = np.nan
    text = write_report(results, None, {}, [])
    assert "**Bladder**: in 1 of 6 cases with a mask of the bladder (24 have none) more than 1 % of the mask" in text


def test_a_centres_name_is_no_formula(tmp_path: Path) -> None:
    results = paper_like_results().replace({"centre": {"Brest": r"CHU $\frac$ Nord"}})
    box_plots(results, tmp_path / "scores.png")
    assert (tmp_path / "scores.png").stat().st_size


@pytest.mark.parametrize("name", ["t40", "ellipsoid"])
def test_a_model_is_not_called_as_a_method_beside_it(name: str, known_model: Path) -> None:
    with pytest.raises(UsageError, match=f"The model is called {name}, as a method beside it is"):
        evaluate(Segmenter(known_model), [], name)


def test_own_patients_make_a_cohort_that_is_not_simulated(tmp_path: Path) -> None:
    # Noise is measured only in organs that the scan holds.
    row = {"case": "a", "touches_bladder": True, "truth": "flab", "noise_muscle": 0.2, "noise_liver": None}
    (tmp_path / "simulation.json").write_text('{"seed": 7}')
    for rows, seed in (([row], 7), ([row, {"case": "own"}], None), ([{"case": "own"}], None)):
        pd.DataFrame(rows).to_csv(tmp_path / "cohort.csv", index=False)
        assert simulation_of(tmp_path / "cohort.csv") == seed


def test_an_infinite_distance_is_said_in_the_report_and_null_in_json() -> None:
    results = paper_like_results()
    missed = results["model"] == "t40"
    results.loc[missed, "hd95_mm"] = np.inf
    results.loc[results["model"] == "standard_unet", "hd95_mm"] = np.nan
    text = write_report(results, None, {}, [])
    assert "| T40 | inf | 0.8 |" in text
    assert "| standard U-Net |  | 0.8 |" in text
    assert study_summary(results, ["t40"])["t40"]["hd95_mm_median"] is None


def test_a_study_in_pieces_has_a_report_that_says_which_folds_are_missing(tmp_path: Path) -> None:
    results = paper_like_results()
    half = results[(results["model"] != "standard_unet") | results["centre"].isin(["Brest", "Nantes"])]
    text = write_report(half, None, {}, [])
    assert "(2 of 5 folds)" in text
    box_plots(half, tmp_path / "scores.png")
    assert set(paired_tests(half, "residual_scse_unet", "standard_unet")["centre"]) == {"Brest", "Nantes"}
    one = results[results["model"] != "standard_unet"]
    assert paired_tests(one, "residual_scse_unet", "standard_unet").empty
    assert "Proposed against standard" not in write_report(one, None, {}, [])


def test_pictures_are_upright_and_any_field_of_view_will_do(tmp_path: Path) -> None:
    """The same scan, stored feet first and facing the other way, gives the same picture; so does a scan of 60 mm."""
    array = np.random.default_rng(0).random((20, 12, 15)).astype(np.float32)
    mask = (array > 0.9).astype(np.uint8)
    axial = Volume(array, Geometry(array.shape, (4.0, 4.0, 4.0)))
    flip = ((0.0, 0.0, -1.0), (0.0, -1.0, 0.0), (-1.0, 0.0, 0.0))
    turned = Volume(array[::-1, ::-1, ::-1].copy(), Geometry(array.shape, (4.0, 4.0, 4.0), direction_lps=flip))
    projections([("one", axial, mask)], tmp_path / "axial.png")
    projections([("one", turned, mask[::-1, ::-1, ::-1].copy())], tmp_path / "turned.png")
    assert (tmp_path / "axial.png").read_bytes() == (tmp_path / "turned.png").read_bytes()


def test_scores_of_other_patients_are_not_taken_for_these(cohort_csv: Path, tiny_config: Path, tmp_path: Path) -> None:
    cases = read_cohort(cohort_csv)
    config = load_config(str(tiny_config))
    (tmp_path / "splits.json").write_text("{}")
    with pytest.raises(UsageError, match="other settings or other cases"):
        cross_validate(cases, config, ["residual_scse_unet"], tmp_path)
    changed = [replace(case, mask=cases[0].mask) for case in cases]
    assert cohort_digest(cases) == cohort_digest(read_cohort(cohort_csv)) != cohort_digest(changed)


@pytest.fixture
def folds_done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The centres of the folds that were done, of which the training and the scores are made up."""
    done: list[str] = []

    def run_fold(cases: list[Case], centre: str, config: TrainingConfig, *rest: Any) -> pd.DataFrame:
        window_invariance = rest[2]
        done.append(centre)
        names = [case.name for case in cases if case.centre == centre]
        table = scores(case=names, centre=centre, model=config.network, dsc=[0.5] * len(names))
        return table.assign(window_invariance=0.9) if window_invariance else table

    monkeypatch.setattr(cross_validation, "_run_fold", run_fold)
    return done


NETWORK = ["residual_scse_unet"]


def test_cases_and_centres_called_na_keep_their_scores(
    cohort_csv: Path, tiny_config: Path, tmp_path: Path, folds_done: list[str]
) -> None:
    names = {"case0": "nan", "case1": "None", "case2": "case2", "case3": "null"}
    centres = {"north": "NA", "south": "None"}
    cases = [replace(case, name=names[case.name], centre=centres[case.centre]) for case in read_cohort(cohort_csv)]
    results = cross_validate(cases, load_config(str(tiny_config)), NETWORK, tmp_path)
    assert folds_done == results["centre"].unique().tolist() == ["NA", "None"]
    assert results["case"].tolist() == ["nan", "None", "case2", "null"]
    summary = (tmp_path / "summary.csv").read_text()
    assert "residual_scse_unet,NA,2" in summary
    assert "residual_scse_unet,average,4" in summary


def test_a_refused_cohort_may_be_repaired(
    cohort_csv: Path, tiny_config: Path, tmp_path: Path, folds_done: list[str]
) -> None:
    cases, config = read_cohort(cohort_csv), load_config(str(tiny_config))
    spoilt = [replace(case, mask=cases[2].mask) if case.name == "case1" else case for case in cases]
    with pytest.raises(InputError, match=r"Case case1: the mask .* does not lie on"):
        cross_validate(spoilt, config, NETWORK, tmp_path)
    assert not folds_done
    cross_validate(cases, config, NETWORK, tmp_path)
    assert folds_done == ["north", "south"]


def test_a_fold_without_the_columns_that_are_asked_is_not_finished(
    cohort_csv: Path, tiny_config: Path, tmp_path: Path, folds_done: list[str]
) -> None:
    cases, config = read_cohort(cohort_csv), load_config(str(tiny_config))
    plain = cross_validate(cases, config, NETWORK, tmp_path, window_invariance=False)
    assert "window_invariance" not in plain
    assert (cross_validate(cases, config, NETWORK, tmp_path)["window_invariance"] == 0.9).all()
    assert folds_done == ["north", "south"] * 2
    for asked in (True, False):
        cross_validate(cases, config, NETWORK, tmp_path, window_invariance=asked)
    assert folds_done == ["north", "south"] * 2


def test_scores_that_a_power_cut_left_empty_are_made_again(
    cohort_csv: Path, tiny_config: Path, tmp_path: Path, folds_done: list[str]
) -> None:
    cases, config = read_cohort(cohort_csv), load_config(str(tiny_config))
    for window_invariance in (True, False):
        cross_validate(cases, config, NETWORK, tmp_path, window_invariance=window_invariance)
        (tmp_path / "folds/residual_scse_unet/north.csv").write_bytes(b"")
    cross_validate(cases, config, NETWORK, tmp_path, window_invariance=False)
    assert folds_done == ["north", "south", "north", "north"]


def test_a_changed_bladder_or_stage_is_another_study(
    cohort_csv: Path, tiny_config: Path, tmp_path: Path, folds_done: list[str]
) -> None:
    config, study, splits = load_config(str(tiny_config)), tmp_path / "study", tmp_path / "study" / "splits.json"
    bladder = tmp_path / "bladder.nii.gz"
    cases = [replace(case, masks={"bladder": case.mask}) for case in read_cohort(cohort_csv)]
    cross_validate(cases, config, NETWORK, study)
    cross_validate(cases, config, NETWORK, study)
    volume, mask = cases[0].read()
    write_image(1 - mask, volume.geometry, bladder)
    corrected = [replace(cases[0], masks={"bladder": bladder}), *cases[1:]]
    staged = [replace(cases[0], extra={"stage": "IVA"}), *cases[1:]]
    for changed in (corrected, staged):
        with pytest.raises(UsageError, match="other settings or other cases"):
            cross_validate(changed, config, NETWORK, study)
    # The training knows none of these, so its own claim stays; and a study from before these were kept goes on.
    assert cohort_digest(cases) == cohort_digest(corrected) == cohort_digest(staged)
    content = json.loads(splits.read_text())
    del content["further"]
    splits.write_text(json.dumps(content))
    cross_validate(corrected, config, NETWORK, study)
    assert folds_done == ["north", "south"]
    # Nor is a study that had none the one with them: half of its folds would have been scored against them.
    cross_validate([replace(case, masks={}, extra={}) for case in cases], config, NETWORK, tmp_path / "without")
    with pytest.raises(UsageError, match=r"Stages or further masks differ\. Choose another --output: --work is kept"):
        cross_validate(cases, config, NETWORK, tmp_path / "without")
    # A simulated cohort is known by its seed alone.
    cross_validate(cases, config, NETWORK, tmp_path / "simulated", cohort="simulated, seed 1")
    content = json.loads((tmp_path / "simulated" / "splits.json").read_text())
    assert content.keys() == {"config", "cohort", "folds"}


def test_settings_that_fit_no_network_are_refused_before_patients_are_simulated(
    tiny_config: Path, tmp_path: Path
) -> None:
    config = load_config(str(tiny_config), patch_size=(20, 20, 20))
    with pytest.raises(UsageError, match="patch_size is"):
        run_study(tmp_path / "study", tmp_path / "work", config, NETWORK, patients=10)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", [{"patients": 50}, {"seed": 0}, {"jobs": 2}], ids=str)
def test_options_of_a_simulated_cohort_are_refused_with_one_of_patients(
    option: dict[str, int], cohort_csv: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"are of the simulated cohort, and cohort.csv was given"):
        study_command(tmp_path / "study", cohort_csv, **option)
    assert not list(tmp_path.iterdir())


def test_the_summary_is_the_mean_over_the_centres_means() -> None:
    results = paper_like_results()
    summary = study_summary(results, ["t40"])["t40"]
    means = [rows["dsc"].mean() for _, rows in results[results["model"] == "t40"].groupby("centre")]
    assert summary["dsc_mean"] == pytest.approx(np.mean(means))
    assert summary["dsc_std"] == pytest.approx(np.std(means, ddof=1))
    assert summary["cases_leaking_into_the_bladder"] == 5
    assert summary["hd95_mm_median"] == 5.0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: rows[1].__setitem__("image", "gone.nii.gz"), "line 3, case case1: gone.nii.gz does not exist"),
        (lambda rows: rows[1].__setitem__("mask", "case2_mask.nii.gz"), "Case case1: the mask .* does not lie on"),
        (lambda rows: rows[1].__setitem__("mask", "empty.nii.gz"), "Case case1: the mask empty.nii.gz is empty"),
        (lambda rows: rows[1].__setitem__("centre", "east"), "is the only one of centre"),
        (lambda rows: [row.__setitem__("centre", "east") for row in rows], "two centres or more"),
        (
            lambda rows: rows[1].__setitem__("bladder", "case2_mask.nii.gz"),
            "Case case1: the bladder mask has a grid",
        ),
    ],
)
def test_a_bad_row_is_named_before_any_work(cohort_csv: Path, tmp_path: Path, spoil: Spoil, message: str) -> None:
    table = pd.read_csv(cohort_csv, dtype=object)
    case = read_cohort(cohort_csv)[1]
    volume, mask = case.read()
    write_image(0 * mask, volume.geometry, tmp_path / "empty.nii.gz")
    rows = table.to_dict("records")
    spoil(rows)
    for row in rows:
        for key in ("image", "mask", "bladder"):
            if key in row and row[key] != "empty.nii.gz":
                row[key] = str(cohort_csv.parent / row[key])
    pd.DataFrame(rows).to_csv(tmp_path / "cohort.csv", index=False)
    with pytest.raises(InputError, match=message):
        check_study_cohort(read_cohort(tmp_path / "cohort.csv"), PREPROCESSING)


def test_preprocessed_cases_are_kept_and_a_changed_file_is_not_mistaken(
    cohort_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = read_cohort(cohort_csv)[:1]
    first = load_training_cases(cases, PREPROCESSING, tmp_path / "cache")[0]
    kept = list((tmp_path / "cache").iterdir())
    again = load_training_cases(cases, PREPROCESSING, tmp_path / "cache")[0]
    np.testing.assert_array_equal(first.image, again.image)
    assert (first.air, first.body_level, first.name) == (again.air, again.body_level, again.name)
    assert list((tmp_path / "cache").iterdir()) == kept
    volume, mask = cases[0].read()
    changed = tmp_path / "changed.nii.gz"
    write_image(np.roll(mask, 1, axis=0), volume.geometry, changed)
    other = load_training_cases(
        [cases[0].__class__("x", "y", cases[0].image, changed)], PREPROCESSING, tmp_path / "cache"
    )
    assert not np.array_equal(other[0].mask, first.mask)
    kept[0].write_bytes(b"damaged")
    np.testing.assert_array_equal(load_training_cases(cases, PREPROCESSING, tmp_path / "cache")[0].image, first.image)
    before = set((tmp_path / "cache").iterdir())
    monkeypatch.setattr("petseg_train.cohort.PREPROCESSING_VERSION", 99)
    load_training_cases(cases, PREPROCESSING, tmp_path / "cache")
    assert len(set((tmp_path / "cache").iterdir()) - before) == 1


def test_scores_hold_leakage_and_the_exact_truth_where_the_cohort_has_them(
    trained: Path, cohort_csv: Path, tmp_path: Path
) -> None:
    from petseg_train.inference import torch_segmenter

    table = pd.read_csv(cohort_csv).head(1)
    table[["image", "mask"]] = table[["image", "mask"]].map(lambda name: str(cohort_csv.parent / name))
    table["bladder"] = table["exact"] = table["mask"]
    table.to_csv(tmp_path / "cohort.csv", index=False)
    cases = read_cohort(tmp_path / "cohort.csv")
    results = evaluate(torch_segmenter(load_module(trained)), cases, "tiny", masks=tmp_path / "masks").set_index(
        "model"
    )
    assert results.loc["t40", "bladder_leakage"] == 1.0  # T40 is the mask, which stands for the bladder here
    assert results.loc["t40", "dsc_exact"] == 1.0
    volume, mask = cases[0].read()
    tumour = volume.array[mask > 0]
    assert results.loc["t40", "bladder_uptake"] == pytest.approx(tumour.mean() / tumour.max(), rel=1e-5)
    assert results.loc["t40", "hd95_mm"] == 0.0
    assert (tmp_path / "masks" / "case0.nii.gz").exists()


def test_the_whole_study_on_ten_patients(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "petseg_train.cli", "study", "-o", tmp_path / "docs", "--work", tmp_path / "work",
        "--patients", "10", "--config", "smoke",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    results = pd.read_csv(tmp_path / "docs" / "results.csv")
    assert results.groupby("model").size().to_dict() == dict.fromkeys(
        ("residual_scse_unet", "standard_unet", "t40", "ellipsoid"), 10
    )
    summary = json.loads((tmp_path / "docs" / "summary.json").read_text())
    models = ["residual_scse_unet", "standard_unet", "t40"]
    assert summary == {"cases": 10, "models": study_summary(results, models)}
    report = (tmp_path / "docs" / "report.md").read_text()
    assert "- Cohort: 10 simulated patients (seed 2021)" in report
    # 2 epochs of 4 patches of 32³, and 400 of 6.4 (four fifths of four of five centres) of 128 x 128 x 64
    assert "8 patches a network and fold; 0.0098 % of the voxels" in report
    assert simulation_of(tmp_path / "work" / "cohort" / "cohort.csv") == 2021  # also where it is given as a CSV
    assert simulation_of(tmp_path / "work" / "cohort" / "other.csv") is None
    for name in ("cohort", "scores", "deciles", "typical", "lowest"):
        assert f"({name}.png)" in report
        assert (tmp_path / "docs" / f"{name}.png").stat().st_size > 5000
    # Done in pieces: without checkpoints and cohort caches, the finished folds are not done again.
    for network in models[:2]:
        subprocess.run(["rm", "-r", tmp_path / "work" / network], check=True)
    subprocess.run(command, check=True, capture_output=True, timeout=90)
    assert (tmp_path / "docs" / "report.md").read_text() == report
