"""The physician's page: whole in itself, opened by a browser, true to the quantities; and the list of a folder."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import body_array
from runtime.test_cli import SMALL, save

from petseg_runtime.cli import main
from petseg_runtime.outputs.preview import render_lesion
from petseg_runtime.volume import Geometry, Unit, Volume

LOADING = {"src", "href", "data", "poster", "srcset", "action", "background"}


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
        for field, decimals in (("mtv_ml", 1), ("suv_max", 2), ("suv_peak", 2), ("tlg_g", 1)):
            assert f"{lesion[field]:.{decimals}f}" in page.words
    record = json.loads(report.with_name("a<b>_run.json").read_text())
    assert record["model"]["sha256"] in page.words
    assert "research" in page.words
    assert page.tags.count("input") == 4  # accepted, with changes, rejected, and who


@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")
def test_a_browser_opens_it_and_prints_it(report: Path, tmp_path: Path) -> None:
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        f"--user-data-dir={tmp_path / 'c'}",
        *quiet,
    ]
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
    wide = [panel for panel in panels if panel.shape[1] > 20]
    assert len(wide) == 3
    for panel in wide:
        assert panel.min() == 0
        assert (panel == (220, 0, 30)).all(axis=2).any()


def test_help_names_the_page(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert re.search(r"--report\s+write a page for the physician", capsys.readouterr().out)
