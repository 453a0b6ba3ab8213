"""A cohort is a CSV; what is wrong with it is said before anything is computed."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from petseg_runtime import Volume
from petseg_runtime.errors import InputError, UsageError
from petseg_runtime.io.images import read_image, write_image
from petseg_runtime.preprocessing import preprocess
from petseg_runtime.volume import Geometry
from petseg_train.cohort import (
    check_cases,
    check_study_cohort,
    cohort_digest,
    load_training_cases,
    read_cohort,
    read_cohorts,
)
from petseg_train.config import PREPROCESSING, PRESETS, TrainingConfig, load_config
from petseg_train.training import fit


def test_rows_become_cases_with_their_other_columns(cohort_csv: Path) -> None:
    cases = read_cohort(cohort_csv)
    assert [case.name for case in cases] == ["case0", "case1", "case2", "case3"]
    assert [case.centre for case in cases] == ["north", "north", "south", "south"]
    assert cases[0].extra == {"stage": "II"}


def test_training_sees_what_the_runtime_sees(cohort_csv: Path) -> None:
    case = read_cohort(cohort_csv)[2]
    (loaded,) = load_training_cases([case], PREPROCESSING)
    expected = preprocess(read_image(case.image), PREPROCESSING)
    np.testing.assert_array_equal(loaded.image, expected.array)
    assert loaded.air == expected.air
    assert loaded.mask.shape == loaded.image.shape
    assert loaded.image[loaded.mask > 0].mean() > 2


def changed(csv: Path, edit, name: str) -> Path:
    table = edit(pd.read_csv(csv))
    table.to_csv(csv.parent / name, index=False)
    return csv.parent / name


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda table: table.drop(columns="mask"), "lacks the columns mask"),
        (lambda table: table.assign(image="absent.nii.gz"), "does not exist"),
        (lambda table: table.assign(case="same"), "twice"),
        (lambda table: table.iloc[:0], "no rows"),
        (lambda table: table.assign(mask=None), "empty cell"),
        (lambda table: table.assign(centre="  "), "empty cell"),
        (lambda table: table.assign(centre=".."), "cannot name a file"),
        (lambda table: table.assign(centre="average"), "as a column of the tables is"),
        (lambda table: table.assign(case=["case0", "case0 ", "b", "c"]), "twice"),
        (lambda table: table.assign(image=300 * "i"), "does not exist"),
        (lambda table: table.assign(bladder=5), "5 does not exist"),
    ],
    ids=["column", "file", "twice", "empty", "cell", "blank", "dots", "average", "space", "long", "number"],
)
def test_a_cohort_that_cannot_be_used_is_refused(edit, reason: str, cohort_csv: Path) -> None:
    with pytest.raises(InputError, match=reason):
        read_cohort(changed(cohort_csv, edit, "changed.csv"))


def test_spaces_make_no_other_centre_and_na_is_a_name(cohort_csv: Path) -> None:
    lines = cohort_csv.read_text().replace("case1,north,", "case1, north ,").replace("south", "NA").splitlines()
    lines[0] = "case, centre,image ,mask,stage"
    (cohort_csv.parent / "spaced.csv").write_text("\n".join(lines))
    assert [case.centre for case in read_cohort(cohort_csv.parent / "spaced.csv")] == ["north", "north", "NA", "NA"]


def test_numbers_stay_names_and_na_elsewhere_is_nothing(cohort_csv: Path) -> None:
    table = pd.read_csv(cohort_csv, dtype=str)
    table["case"], table["bladder"], table["stage"] = ["001", "2", "3", "4"], "NA", ["NA", "II", "II", "II"]
    table = table.rename(columns={"case": "case ", "centre": " centre"}).assign(dose=["1.5", "NA", "2", "3"])
    table.to_csv(cohort_csv.parent / "numbers.csv", index=False)
    cases = read_cohort(cohort_csv.parent / "numbers.csv")
    assert [case.name for case in cases] == ["001", "2", "3", "4"]
    assert not any(case.masks for case in cases)
    assert pd.isna(cases[0].extra["stage"])
    assert cases[0].extra["dose"] == 1.5


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        ("case1,north,case1.nii.gz,,II", "line 5, case case1: an empty cell in mask"),
        (",, case1.nii.gz,case1_mask.nii.gz,II", "line 5: an empty cell in case, centre"),
        ("case1,north,gone.nii.gz,case1_mask.nii.gz,II", "line 5, case case1: gone.nii.gz does not exist"),
        ("case1,no/rth,case1.nii.gz,case1_mask.nii.gz,II", "line 5: 'no/rth' cannot name a file"),
    ],
    ids=["cell", "name", "file", "slash"],
)
def test_a_refusal_names_the_line_as_an_editor_counts_it(cohort_csv: Path, spoilt: str, message: str) -> None:
    heading, first, _, *others = cohort_csv.read_text().splitlines()
    csv = cohort_csv.with_name("blank.csv")
    csv.write_text("\n".join([heading, "", first, "  ", spoilt, *others]))
    with pytest.raises(InputError, match=message):
        read_cohort(csv)


def test_a_file_that_is_no_text_is_refused(cohort_csv: Path) -> None:
    with pytest.raises(InputError, match="cannot be read as CSV"):
        read_cohort(read_cohort(cohort_csv)[0].image)


@pytest.mark.parametrize("name", ["case ", "case", "mask"])
def test_a_column_named_twice_is_refused(name: str, cohort_csv: Path) -> None:
    lines = [f"{line},x" for line in cohort_csv.read_text().splitlines()]
    lines[0] = lines[0].removesuffix("x") + name
    (cohort_csv.parent / "doubled.csv").write_text("\n".join(lines))
    with pytest.raises(InputError, match=f"has the column {name.strip()} twice"):
        read_cohort(cohort_csv.parent / "doubled.csv")


def test_one_image_under_two_names_is_refused(cohort_csv: Path, tmp_path: Path) -> None:
    """It might be trained on, and tested on as well."""
    one, other, *_ = read_cohort(cohort_csv)
    copy = tmp_path / "copy.nii.gz"
    copy.write_bytes(one.image.read_bytes())
    with pytest.raises(InputError, match="Cases case0 and case1 have the same image"):
        cohort_digest([one, replace(other, image=copy)])


def test_one_image_in_two_files_is_refused(cohort_csv: Path, tiny_config: Path, tmp_path: Path) -> None:
    """As compressed anew, or exported to another format."""
    one, other, *rest = read_cohort(cohort_csv)
    copy = tmp_path / "copy.nii.gz"
    copy.write_bytes(gzip.compress(gzip.decompress(one.image.read_bytes()), 1))
    cases = [one, replace(other, image=copy), *rest]
    cohort_digest(cases)
    for check in (check_cases, check_study_cohort):
        with pytest.raises(InputError, match="Cases case0 and case1 have the same image"):
            check(cases, PREPROCESSING)
    with pytest.raises(InputError, match=r"Cases case\d and case\d have the same image"):
        fit(cases, load_config(str(tiny_config)), tmp_path / "run")


def test_cases_without_any_tumour_train_nothing(cohort_csv: Path, tiny_config: Path, tmp_path: Path) -> None:
    cases = []
    for case in read_cohort(cohort_csv):
        volume, mask = case.read()
        write_image(np.zeros_like(mask), volume.geometry, tmp_path / case.mask.name)
        cases.append(replace(case, mask=tmp_path / case.mask.name))
    with pytest.raises(InputError, match="No training case has a tumour"):
        fit(cases, load_config(str(tiny_config)), tmp_path / "run")


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_spreadsheets_csv_is_read(separator: str, cohort_csv: Path) -> None:
    lines = cohort_csv.read_text().replace(",", separator).splitlines()
    csv = cohort_csv.with_name("sheet.csv")
    empty = separator * 4
    csv.write_bytes("\r\n".join([*lines, empty, empty, ""]).encode("utf-8-sig"))
    assert read_cohort(csv) == read_cohort(cohort_csv)
    csv.write_text("\n".join([lines[0], *(line + separator for line in lines[1:])]))
    assert read_cohort(csv) == read_cohort(cohort_csv)


def test_a_separator_in_a_line_of_its_own_and_headings_in_capitals_are_read(cohort_csv: Path) -> None:
    heading, *lines = cohort_csv.read_text().replace(",", ";").splitlines()
    csv = cohort_csv.with_name("sheet.csv")
    for said in ("sep=;", '"sep=;"'):
        csv.write_text("\n".join([said, heading.title(), *lines]))
        assert read_cohort(csv) == read_cohort(cohort_csv)
    csv.write_text("\n".join([f"{heading};N;n", *(f"{line};1;2" for line in lines)]))  # which are others, of TNM
    assert {"N": 1, "n": 2}.items() <= read_cohort(csv)[0].extra.items()


@pytest.mark.parametrize("row", [1, 2])
def test_a_row_with_more_cells_than_the_header_is_refused(row: int, cohort_csv: Path) -> None:
    """As a decimal comma makes: the cells after it would be taken for others."""
    lines = cohort_csv.read_text().splitlines()
    lines[row] += ",5"
    csv = cohort_csv.with_name("comma.csv")
    csv.write_text("\n".join(lines))
    with pytest.raises(InputError, match=rf"line {row + 1}: 6 cells, expected 5 as in the header"):
        read_cohort(csv)


def test_a_folder_as_a_mask_is_refused(cohort_csv: Path) -> None:
    (cohort_csv.parent / "contours").mkdir(exist_ok=True)
    with pytest.raises(InputError, match="contours is a folder, expected the file of a mask"):
        read_cohort(changed(cohort_csv, lambda table: table.assign(mask="contours"), "contours.csv"))


def test_one_image_stored_from_the_other_end_is_refused(cohort_csv: Path, tmp_path: Path) -> None:
    one, other, *rest = read_cohort(cohort_csv)
    for name, kind in (("image", one.image), ("mask", one.mask)):
        image = sitk.Flip(sitk.ReadImage(str(kind)), (True, True, False))  # ITK keeps what lies where
        sitk.WriteImage(image, str(tmp_path / f"{name}.nii.gz"))
    flipped = replace(other, image=tmp_path / "image.nii.gz", mask=tmp_path / "mask.nii.gz")
    assert (flipped.read()[0].array != one.read()[0].array).any()
    with pytest.raises(InputError, match="Cases case0 and case1 have the same image"):
        check_cases([one, flipped, *rest], PREPROCESSING)


def test_a_scan_without_a_body_is_refused_by_its_name_before_any_work(cohort_csv: Path, tmp_path: Path) -> None:
    case, *rest = read_cohort(cohort_csv)
    volume, mask = case.read()
    tiny = replace(volume.geometry, spacing_mm=(0.2, 0.2, 0.2))  # read by itself, it is a scan like others
    for array, name in ((volume.array, "image"), (mask, "mask")):
        write_image(array, tiny, tmp_path / f"{name}.nii.gz")
    small = replace(case, image=tmp_path / "image.nii.gz", mask=tmp_path / "mask.nii.gz")
    for refuse in (
        lambda: check_cases([small, *rest], PREPROCESSING),
        lambda: load_training_cases([small], PREPROCESSING),
    ):
        with pytest.raises(InputError, match="Case case0: The scan holds no body"):
            refuse()


@pytest.mark.parametrize(
    ("one", "other"), [("CHU Lyon", "CHU\u00a0Lyon"), ("CHU Lyon", "CHU  Lyon"), ("Brest", "Bre\u200bst")]
)
def test_spaces_that_nobody_sees_make_no_other_centre(one: str, other: str, cohort_csv: Path) -> None:
    spelt = changed(cohort_csv, lambda table: table.assign(centre=[one, other, "x", "x"]), "spelt.csv")
    with pytest.raises(InputError, match=r"differ in what nobody sees.*, in case case1"):
        read_cohort(spelt)


@pytest.mark.parametrize(("one", "other"), [("Liege", "liege"), ("STRASSE", "straße")])
def test_one_centre_in_two_spellings_is_refused(one: str, other: str, cohort_csv: Path) -> None:
    spelt = changed(cohort_csv, lambda table: table.assign(centre=[one, other, "x", "x"]), "spelt.csv")
    with pytest.raises(InputError, match=f"Centre {one} is written {other} too, in case case1"):
        read_cohort(spelt)
    first = changed(cohort_csv, lambda table: table.assign(centre=one), "first.csv")
    names = ["a", "b", "c", "d"]
    second = changed(cohort_csv, lambda table: table.assign(centre=other, case=names), "second.csv")
    with pytest.raises(InputError, match=f"Centre {one} is written {other} too"):
        read_cohorts([first, second])


def test_an_accent_makes_no_other_centre(cohort_csv: Path) -> None:
    centres = ["Lie\u0300ge", "Li\u00e8ge", "x", "x"]
    cases = read_cohort(changed(cohort_csv, lambda table: table.assign(centre=centres), "accent.csv"))
    assert {case.centre for case in cases} == {"Li\u00e8ge", "x"}


def test_stages_are_texts(cohort_csv: Path) -> None:
    cases = read_cohort(changed(cohort_csv, lambda table: table.assign(stage=["2", "1", "2", "1"]), "stages.csv"))
    assert [case.extra["stage"] for case in cases] == ["2", "1", "2", "1"]


def test_a_missing_csv_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_cohort(tmp_path / "absent.csv")


def test_a_mask_on_another_grid_is_refused(cohort_csv: Path, tmp_path: Path) -> None:
    case = read_cohort(cohort_csv)[0]
    shifted = Geometry((20, 24, 26), (4.0, 4.0, 4.0), origin_lps_mm=(10.0, 0.0, 0.0))
    write_image(np.ones((20, 24, 26), np.uint8), shifted, tmp_path / "mask.nii.gz")
    with pytest.raises(InputError, match="does not lie on"):
        case.__class__(case.name, case.centre, case.image, tmp_path / "mask.nii.gz", {}).read()


def test_the_paper_preset_is_the_paper() -> None:
    paper = PRESETS["paper"]
    assert paper.preprocessing.spacing_mm == (2.0, 4.0, 4.0)
    assert paper.patch_size == (64, 128, 128)  # z, y, x of the paper's 128 x 128 x 64
    assert (paper.batch_size, paper.epochs, paper.restart_epochs) == (2, 400, 25)
    assert paper.learning_rate == (1e-4, 1e-6)
    assert paper.adam_betas == (0.9, 0.99)
    assert paper.augmentation.probability == 0.2
    assert paper.network_settings == {"base_filters": 24}
    assert paper.cross_entropy_weight == 0.0
    assert paper.weight_averaging == 0.0


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_config_survives_the_checkpoint(preset: str) -> None:
    assert TrainingConfig.from_dict(PRESETS[preset].to_dict()) == PRESETS[preset]


def test_a_json_file_changes_a_preset(tiny_config: Path) -> None:
    config = load_config(str(tiny_config))
    assert config.patch_size == (16, 16, 16)
    assert config.learning_rate == PRESETS["cpu"].learning_rate
    assert load_config("cpu", network="standard_unet").network == "standard_unet"


@pytest.mark.parametrize(
    "text",
    [
        '{"overlap": 1.0}',
        '{"overlap": 0.95}',
        '{"patch_size": [528, 128, 128]}',
        '{"patch_size": [72, 128, 128]}',
        '{"fit_multiple": -16}',
        '{"network_settings": {"in_channels": 2}}',
        '{"epochs": 1.5}',
        '{"epochs": true}',
        '{"fit_multiple": 8.0}',
        '{"centres_take_turns": "no"}',
        '{"learning_rate": [1e999, 1e-5]}',
        '{"cross_entropy_weight": NaN}',
        '{"patch_size": ["64", 64, 64]}',
        '{"seed": -1}',
        '{"seed": "x"}',
        '{"adam_betas": [0.9, 1.5]}',
        '{"adam_betas": [0.9]}',
        '{"crop_share": 0.6, "stretch_share": 0.6}',
        '{"tumour_share": 0.6, "bright_share": 0.6}',
        '{"augmentation": null}',
        '{"augmentation": {"probability": 2}}',
        '{"augmentation": {"scale": "large"}}',
        '{"preprocessing": "none"}',
        '{"preprocessing": {"body_threshold": 7}}',
        '{"network_settings": {"base_filters": "many"}}',
        '{"threshold": 5}',
        '{"patch_size": [16, 16]}',
        '{"tuning_share": 2}',
        '{"precision": "half"}',
        '{"learning_rate": 0.001}',
        '{"weight_averaging": 1}',
        '{"patches_per_epoch": 0}',
        "[1]",
        '{"preset": ["cpu"]}',
        '{"epoch": 3}',
        '{"network": "vnet"}',
        '{"epochs": 0}',
        '{"preset": "gpu"}',
        "not json",
        "[" * 100_000,
        '{"learning_rate": [1' + 400 * "0" + ", 1]}",
    ],
    ids=str,
)
def test_a_config_that_cannot_be_used_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UsageError):
        load_config(str(tmp_path / "config.json"))


def test_nested_settings_keep_what_is_not_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"preset": "cpu", "network_settings": {"levels": 3}}')
    assert load_config(str(tmp_path / "config.json")).network_settings == {"base_filters": 12, "levels": 3}


def test_a_transposed_mask_is_refused(tmp_path: Path) -> None:
    geometry = Geometry((6, 8, 8), (4.0, 4.0, 4.0))
    swapped = Geometry((6, 8, 8), (4.0, 4.0, 4.0), direction_lps=((0, 1, 0), (0, 0, 1), (1, 0, 0)))
    write_image(np.random.default_rng(0).random((6, 8, 8), np.float32), geometry, tmp_path / "image.nii.gz")
    write_image(np.ones((6, 8, 8), np.uint8), swapped, tmp_path / "mask.nii.gz")
    (tmp_path / "cohort.csv").write_text("case,centre,image,mask\n1,a,image.nii.gz,mask.nii.gz\n")
    with pytest.raises(InputError, match="does not lie on"):
        read_cohort(tmp_path / "cohort.csv")[0].read()


def test_a_volume_of_the_wrong_kind_never_reaches_training(cohort_csv: Path, tmp_path: Path) -> None:
    mask_as_image = read_cohort(cohort_csv)[0].mask
    with pytest.raises(InputError, match="label map"):
        read_image(mask_as_image)
    assert isinstance(read_cohort(cohort_csv)[0].read()[0], Volume)


def test_cohorts_are_joined_and_a_case_named_in_two_is_refused(cohort_csv: Path, tmp_path: Path) -> None:
    cases = read_cohort(cohort_csv)
    table = pd.read_csv(cohort_csv, dtype=str)
    table["case"] = "other-" + table["case"]
    other = cohort_csv.with_name("other.csv")
    table.to_csv(other, index=False)
    assert [case.name for case in read_cohorts([cohort_csv, other])] == [
        *(case.name for case in cases),
        *(f"other-{case.name}" for case in cases),
    ]
    with pytest.raises(InputError, match="name cases twice"):
        read_cohorts([cohort_csv, other, cohort_csv])
