"""The physician's page: whole in itself, opened by a browser, true to the quantities; and the list of a folder."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import body_array
from PIL import Image
from runtime.dicom_factory import pet_series, write
from runtime.test_cli import SMALL, save

from petseg_runtime.cli import main
from petseg_runtime.manifest import ModelManifest
from petseg_runtime.outputs.numbers import amount
from petseg_runtime.outputs.preview import render_lesion
from petseg_runtime.outputs.records import statistics_from, write_csv
from petseg_runtime.outputs.report import IndexedScan, write_index, write_report
from petseg_runtime.quantification import quantify
from petseg_runtime.segmentation import Segmentation
from petseg_runtime.volume import Geometry, Unit, Volume

LOADING = {"src", "href", "data", "poster", "srcset", "action", "background"}
QUIET_BROWSER = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Page(HTMLParser):
    """Text, and everything that a browser would load."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.words: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in LOADING]

    def handle_data(self, data: str) -> None:
        self.words += data.split()


@pytest.fixture
def report(known_model: Path, tmp_path: Path) -> Path:
    scan = save(body_array(SMALL), tmp_path / "in/a<b>.nii.gz")
    out = tmp_path / "out"
    assert main([str(scan), "-m", str(known_model), "-o", str(out), "--report", "-s", "-q", "--unit", "suvbw"]) == 0
    return out / "a<b>_report.html"


def test_nothing_is_loaded_from_elsewhere(report: Path) -> None:
    page = Page(report)
    assert page.loads
    assert all(load.startswith("data:image/png;base64,") for load in page.loads)
    assert "script" not in page.tags
    assert "url(" not in page.source
    assert "@import" not in page.source
    assert "default-src 'none'" in page.source


def test_a_name_is_shown_and_not_obeyed(report: Path) -> None:
    page = Page(report)
    assert "a<b>" in page.words
    assert "b" not in page.tags[: page.tags.index("h1") + 2]


def test_the_page_says_what_the_statistics_say(report: Path) -> None:
    statistics = json.loads(report.with_name("a<b>_stats.json").read_text())
    page = Page(report)
    for lesion in [*statistics["lesions"], statistics["tumour"]]:
        for field, decimals in (("mtv_ml", 1), ("suv_max", 2), ("suv_peak", 2), ("tlg_g", 1)):  # none is below 1
            assert f"{lesion[field]:.{decimals}f}" in page.words
    record = json.loads(report.with_name("a<b>_run.json").read_text())
    words = " ".join(page.words)
    assert f"model SHA-256 {record['model']['sha256']} input SHA-256 {record['input_sha256']}" in words
    assert "Maximum-intensity projections: white 0, black SUVbw 10." in words
    assert "hottest voxel, white 0, black SUVbw 10." in words
    assert "research" in page.words


def test_a_scan_is_accepted_or_rejected_and_not_both(report: Path) -> None:
    page = Page(report)
    assert page.tags.count("input") == 4  # accepted, with changes, rejected, and who
    assert page.source.count('<input type="radio" name="verdict">') == 3


def test_pages_of_scans_of_one_name_tell_them_apart_also_on_the_sheet_that_is_signed(known_model, tmp_path) -> None:
    for patient in ("patient_009", "patient_042"):
        save(body_array(SMALL), tmp_path / "in" / patient / "PET_image.nii.gz")
    assert main([str(tmp_path / "in"), "-m", str(known_model), "-o", str(tmp_path / "out"), "--report", "-q"]) == 0
    for patient in ("patient_009", "patient_042"):
        source = Page(tmp_path / "out" / patient / "PET_image_report.html").source
        assert f"<title>PETSeg: {patient}/PET_image</title>" in source
        assert f"<h1>{patient}/PET_image</h1>" in source
        assert f"<h2>Review of {patient}/PET_image</h2>" in source


@pytest.mark.parametrize("options", [["--identify"], []])
def test_the_page_says_who_a_scan_is_of_where_that_is_asked_for(options, known_model: Path, tmp_path: Path) -> None:
    series = pet_series((body_array(SMALL) * 1000).astype(np.int16), spacing_mm=(4.0, 5.0, 5.0))
    for dataset in series:
        dataset.PatientID, dataset.AccessionNumber = "4711", ""
    write(series, tmp_path / "in")
    out = tmp_path / "out"
    assert main([str(tmp_path / "in"), "-m", str(known_model), "-o", str(out), "--report", "-q", *options]) == 0
    source = Page(out / "in_report.html").source
    assert ("<dt>PatientID</dt><dd>4711</dd>" in source) is bool(options)
    assert "AccessionNumber" not in source


@pytest.mark.parametrize(
    ("value", "written"),
    [(0.0, "0.0"), (0.0499, "0.050"), (0.064, "0.064"), (0.949, "0.95"), (0.996, "1.0"), (1.26, "1.3"), (None, "–")],
)
def test_an_amount_is_never_rounded_to_nothing(value: float | None, written: str) -> None:
    assert amount(value) == written


def page_of(lesions: int, report: Path, manifest: ModelManifest) -> Page:
    """The page of a scan with lesions of one voxel of 4 x 4 x 4 mm, 0.064 ml, and SUV 5."""
    geometry = Geometry((20, 20, 40), (4.0, 4.0, 4.0))
    labels = np.zeros(geometry.shape, np.uint32)
    labels[10, 10, 2 : 2 + 4 * lesions : 4] = np.arange(1, lesions + 1)
    volume = Volume(np.where(labels > 0, 5.0, 0.5).astype(np.float32), geometry, Unit.SUVBW)
    mask, probabilities = (labels > 0).astype(np.uint8), (labels > 0).astype(np.float32)
    segmentation = Segmentation(mask, labels, probabilities, geometry, quantify(volume, labels), {})
    record = json.loads(report.with_name("a<b>_run.json").read_text())
    write_report("many", volume, segmentation, manifest, record, report.with_name("many.html"))
    return Page(report.with_name("many.html"))


def test_small_lesions_have_their_volumes(report: Path, manifest: ModelManifest) -> None:
    page = page_of(2, report, manifest)
    assert "<b>0.13</b><span>MTV, ml</span>" in page.source
    assert "<b>0.64</b><span>TLG, g</span>" in page.source  # 5 g/ml in 0.128 ml
    assert page.source.count("<td>0.064</td>") == 2 * 3  # MTV, 41 % and SUV 2.5 volume
    statistics = statistics_from(json.loads(report.with_name("a<b>_stats.json").read_text()))
    small = replace(statistics, tumour=replace(statistics.tumour, mtv_ml=0.064, tlg_g=0.32))
    index = report.with_name("index.html")
    write_index([IndexedScan("small", small, 0, None)], [], index)
    assert "0.064" in Page(index).words
    assert "0.32" in Page(index).words


def test_the_histograms_volume_is_not_cut_off(report: Path, manifest: ModelManifest) -> None:
    """It ends at x, and a letter of 13 pixels is at most 9 wide."""
    ends, volume = re.search(
        r'<text x="(\d+)"[^>]*text-anchor="end">([^<]*)</text>', page_of(2, report, manifest).source
    ).groups()
    assert volume == "0.128 ml"
    assert int(ends) >= 9 * len(volume)


@pytest.mark.parametrize(("lesions", "said"), [(6, False), (7, True)])
def test_that_lesions_are_not_pictured_is_said(lesions: int, said: bool, report: Path, manifest: ModelManifest) -> None:
    page = page_of(lesions, report, manifest)
    assert page.tags.count("img") == 1 + 6
    assert (f"Pictured are the 6 largest of {lesions} lesions." in " ".join(page.words)) is said


@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")
def test_a_long_name_hides_no_number(report: Path, tmp_path: Path) -> None:
    """As wide as the window, the index stays within it: right of its table is nothing but white."""
    index = report.with_name("index.html")
    statistics = statistics_from(json.loads(report.with_name("a<b>_stats.json").read_text()))
    write_index([IndexedScan("n" * 225, statistics, 0, None)], [("m" * 225, "no image")], index)
    picture = tmp_path / "index.png"
    options = [*QUIET_BROWSER, f"--user-data-dir={tmp_path / 'c'}", "--hide-scrollbars", "--window-size=900,600"]
    command = ["chromium", *options, f"--screenshot={picture}", index.as_uri()]
    subprocess.run(command, capture_output=True, check=True, timeout=120)
    assert (np.asarray(Image.open(picture).convert("L"))[:, -10:] == 255).all()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")
def test_a_browser_opens_it_and_prints_it(report: Path, tmp_path: Path) -> None:
    options = [*QUIET_BROWSER, f"--user-data-dir={tmp_path / 'c'}"]
    target = report.as_uri()
    shown = subprocess.run(
        ["chromium", *options, "--dump-dom", target], capture_output=True, text=True, check=True, timeout=120
    )
    assert "Maximum-intensity projections" in shown.stdout
    paper = tmp_path / "page.pdf"
    subprocess.run(
        ["chromium", *options, f"--print-to-pdf={paper}", target], capture_output=True, check=True, timeout=120
    )
    assert paper.read_bytes().startswith(b"%PDF")


def test_no_tumour_makes_a_page_too(known_model: Path, tmp_path: Path) -> None:
    even = np.clip(body_array(SMALL), 0.0, 0.8)  # the model outlines what stands out by two standard deviations
    scan = save(even, tmp_path / "in/scan.nii.gz")
    out = tmp_path / "out"
    assert main([str(scan), "-m", str(known_model), "-o", str(out), "--report", "-q"]) == 0
    words = " ".join(Page(out / "scan_report.html").words)
    assert "No tumour was found." in words


def test_a_folder_gets_one_table_and_one_index(known_model: Path, tmp_path: Path, capsys) -> None:
    for name in ("one", "deep/two"):
        save(body_array(SMALL), tmp_path / f"in/{name}.nii.gz")
    (tmp_path / "in/broken.nii.gz").write_bytes(b"no image")
    out = tmp_path / "out"
    arguments = [str(tmp_path / "in"), "-m", str(known_model), "-o", str(out), "--report", "-s", "--unit", "suvbw"]
    assert main(arguments) == 7
    assert "petseg_results.csv" in capsys.readouterr().out.replace("\n", "")
    with (out / "petseg_results.csv").open(newline="") as stream:
        rows = {row["scan"]: row for row in csv.DictReader(stream)}
    assert set(rows) == {"one", "deep/two", "broken"}
    statistics = json.loads((out / "one_stats.json").read_text())
    assert float(rows["one"]["mtv_ml"]) == statistics["tumour"]["mtv_ml"]
    assert rows["one"]["error"] == ""
    assert "cannot be read" in rows["broken"]["error"] or "broken.nii.gz" in rows["broken"]["error"]
    page = Page(out / "petseg_index.html")
    assert sorted(page.loads) == ["deep/two_report.html", "one_report.html"]
    assert all((out / load).is_file() for load in page.loads)
    assert "broken" in page.words


def test_a_single_scan_has_no_index(report: Path) -> None:
    assert not list(report.parent.glob("petseg_*"))


def test_the_table_holds_no_formula(known_model: Path, tmp_path: Path) -> None:
    for name in ("=1+1", "two"):
        save(body_array(SMALL), tmp_path / f"in/{name}.nii.gz")
    assert main([str(tmp_path / "in"), "-m", str(known_model), "-o", str(tmp_path / "out"), "-s", "-q"]) == 0
    with (tmp_path / "out/petseg_results.csv").open(newline="") as stream:
        assert sorted(row["scan"] for row in csv.DictReader(stream)) == ["'=1+1", "two"]


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_begins_as_a_formula_does(first: str, tmp_path: Path) -> None:
    write_csv([], [(f"{first}1+1", ValueError("no image"))], tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(newline="") as stream:
        assert [row["scan"] for row in csv.DictReader(stream)] == [f"'{first}1+1"]


def test_lesion_slices_run_through_the_hottest_voxel() -> None:
    """The hottest voxel lies in one corner of a lesion; each of the three slices shows it black, and the outline."""
    geometry = Geometry((20, 24, 28), (4.0, 3.0, 3.0))
    array = np.full(geometry.shape, 0.5, np.float32)
    labels = np.zeros(geometry.shape, np.uint32)
    labels[5:12, 6:14, 8:18] = 1
    labels[0, 0, 0] = 2
    array[labels == 1] = 4.0
    array[6, 7, 9], array[0, 0, 0] = 10.0, 90.0
    page = render_lesion(Volume(array, geometry, Unit.SUVBW), labels, 1)
    panels = np.split(page, np.flatnonzero((page == 255).all(axis=(0, 2))), axis=1)
    wide = [panel for panel in panels if panel.shape[1] > 60]  # letters and text are not
    assert len(wide) == 3
    for panel in wide:
        assert panel.min() == 0
        assert (panel == (220, 0, 30)).all(axis=2).any()


def test_help_names_the_page(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert re.search(r"--report\s+write a page for the physician", capsys.readouterr().out)
