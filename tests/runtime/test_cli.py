"""petseg-run as users meet it: outputs, one clear line for bad input, exit codes, and nothing half-written."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import GEOMETRIES, body_array, onnx_model
from pydicom.filereader import dcmread
from runtime.dicom_factory import ct_series, pet_series, write

import petseg_runtime.runner
from petseg_runtime.cli import main
from petseg_runtime.commissioning import new_record
from petseg_runtime.console import complain, print_notes, print_table
from petseg_runtime.errors import UsageError
from petseg_runtime.io.images import read_image, read_mask, write_image
from petseg_runtime.io.scans import find_scans
from petseg_runtime.outputs.files import scratch_folder
from petseg_runtime.quantification import quantify
from petseg_runtime.runner import OUTPUT_TYPES, RunSettings, ScanResult, _warnings, run_scan
from petseg_runtime.segmentation import Segmentation
from petseg_runtime.segmenter import Segmenter
from petseg_runtime.self_test import keep
from petseg_runtime.volume import Geometry, Unit, Volume

SMALL = (20, 22, 24)


def save(array: np.ndarray, path: Path) -> Path:
    """Write an array as an image of 4 x 5 x 5 mm voxels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(array, Geometry(array.shape, (4.0, 5.0, 5.0)), path)  # type: ignore[arg-type]
    return path


def save_dicom(folder: Path) -> list[Path]:
    """Write a PET series of a body as DICOM."""
    stored = (body_array(SMALL) * 1000).astype(np.int16)
    return write(pet_series(stored, spacing_mm=(4.0, 5.0, 5.0)), folder)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "scan.nii.gz"
    path.parent.mkdir()
    geometry = GEOMETRIES["oblique"]
    write_image(body_array(geometry.shape), geometry, path)
    return path


@pytest.fixture
def run(known_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Run petseg-run with the known model into tmp_path/out; returns exit code, standard output and error lines."""

    def call(*arguments: object, output: bool = True) -> tuple[int, str, list[str]]:
        extra = [] if "--model" in arguments else ["--model", known_model]
        extra += ["-o", tmp_path / "out"] if output else []
        code = main([str(argument) for argument in (*arguments, *extra)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err.splitlines()

    return call


def files_in(folder: Path) -> list[str]:
    """All but the digests of a batch's table and page."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".petseg-summary.json")
    return sorted(str(path.relative_to(folder)) for path in files)


def test_everything_a_run_can_leave(run, scan: Path, tmp_path: Path) -> None:
    code, out, _ = run(scan, "-s", "-p", "--save-probabilities", "--unit", "suvbw")
    assert code == 0
    assert files_in(tmp_path / "out") == [
        "scan_petseg.nii.gz",
        "scan_preview.png",
        "scan_prob.nii.gz",
        "scan_run.json",
        "scan_stats.json",
    ]
    for name in files_in(tmp_path / "out"):
        assert name in out
    mask, geometry = read_mask(tmp_path / "out" / "scan_petseg.nii.gz")
    image = sitk.ReadImage(str(scan))
    np.testing.assert_allclose(geometry.to_lps_mm([0, 0, 0]), image.GetOrigin(), atol=1e-5)
    assert mask.shape == image.GetSize()[::-1]
    statistics = json.loads((tmp_path / "out" / "scan_stats.json").read_text())
    assert statistics["unit"] == "suvbw"
    assert statistics["lesion_count"] == 1
    assert statistics["tumour"]["suv_max"] == 12.0
    voxel_ml = 4.0 * 5.0 * 4.5 / 1000
    assert statistics["tumour"]["mtv_ml"] == pytest.approx(int(mask.sum()) * voxel_ml, rel=1e-5)
    record = json.loads((tmp_path / "out" / "scan_run.json").read_text())
    assert len(record["model"]["sha256"]) == 64
    assert set(record["timings_s"]) >= {"reading", "inference", "writing"}


def test_only_what_was_asked_for(run, scan: Path, tmp_path: Path) -> None:
    run(scan)
    assert files_in(tmp_path / "out") == ["scan_petseg.nii.gz", "scan_run.json"]


def test_results_go_beside_the_scan_by_default(run, scan: Path) -> None:
    assert run(scan, output=False)[0] == 0
    assert (scan.parent / "scan_petseg.nii.gz").exists()


def test_without_a_unit_no_suv_is_claimed(run, scan: Path, tmp_path: Path) -> None:
    _, out, err = run(scan, "-s")
    assert "unit unknown" in out
    assert any("does not say its unit" in line for line in err)
    tumour = json.loads((tmp_path / "out" / "scan_stats.json").read_text())["tumour"]
    assert tumour["suv_max"] is None
    assert tumour["intensity_max"] == 12.0
    without = read_mask(tmp_path / "out" / "scan_petseg.nii.gz")[0]
    run(scan, "--unit", "suvbw")
    np.testing.assert_array_equal(read_mask(tmp_path / "out" / "scan_petseg.nii.gz")[0], without)


def test_json_is_one_record_a_scan_and_nothing_else(run, scan: Path) -> None:
    _, out, _ = run(scan, "--json")
    (line,) = out.splitlines()
    record = json.loads(line)
    assert record["scan"] == "scan"
    assert record["statistics"]["lesion_count"] == 1


def test_quiet_is_quiet(run, scan: Path) -> None:
    assert run(scan, "-q") == (0, "", [])


def test_what_pydicom_finds_odd_and_mends_is_no_message(run, known_model: Path, tmp_path: Path) -> None:
    """A header in explicit VR under the name of the implicit one: as warnings, two lines for a scan that is good."""
    save_dicom(tmp_path / "study")
    for file in (tmp_path / "study").iterdir():
        explicit, implicit = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0"
        content = file.read_bytes()
        assert explicit in content
        file.write_bytes(content.replace(explicit, implicit, 1))
    program = [sys.executable, "-m", "petseg_runtime.cli", tmp_path / "study", "-m", known_model]
    done = subprocess.run([*program, "-o", tmp_path / "out", "--quiet"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_json_tells_of_a_refusal_too(run, tmp_path: Path) -> None:
    code, out, _ = run(tmp_path / "absent.nii.gz", "--json")
    assert code == 3
    assert json.loads(out)["exit_code"] == 3


def test_two_scans_of_one_name_do_not_overwrite_each_other(run, tmp_path: Path) -> None:
    for folder, shape in (("a", SMALL), ("b", (22, 24, 26))):
        save(body_array(shape), tmp_path / folder / "scan.nii.gz")
    assert run(tmp_path / "a" / "scan.nii.gz", tmp_path / "b" / "scan.nii.gz", tmp_path / "a" / "scan.nii.gz")[0] == 0
    masks = {
        name: read_mask(tmp_path / "out" / name)[0].shape for name in files_in(tmp_path / "out") if "petseg.nii" in name
    }
    assert masks == {"a_scan_petseg.nii.gz": SMALL, "b_scan_petseg.nii.gz": (22, 24, 26)}


def test_names_of_one_scan_do_not_hang_on_the_others_that_were_given(run, tmp_path: Path) -> None:
    """A number would be another patient's as soon as one input is gone."""
    for patient in "abc":
        save(body_array(SMALL), tmp_path / patient / "PET" / "scan.nii.gz")
    inputs = [tmp_path / patient / "PET" / "scan.nii.gz" for patient in "abc"]
    inputs[0].unlink()
    code, _, err = run(*inputs)
    assert code == 7
    assert str(inputs[0]) in "".join(err)
    assert [name for name in files_in(tmp_path / "out") if "petseg.nii" in name] == [
        "b_PET_scan_petseg.nii.gz",
        "c_PET_scan_petseg.nii.gz",
    ]


def test_that_results_of_another_scan_were_replaced_is_said_even_where_quiet(run, tmp_path: Path) -> None:
    for folder, shape in (("a", SMALL), ("b", (22, 24, 26))):
        save(body_array(shape), tmp_path / folder / "scan.nii.gz")
    assert run(tmp_path / "a" / "scan.nii.gz", "-q")[2] == []
    assert "were replaced" in "".join(run(tmp_path / "b" / "scan.nii.gz", "-q")[2])


def test_a_folder_of_one_image_has_its_table_too(run, scan: Path, tmp_path: Path) -> None:
    assert run(scan.parent)[0] == 0
    assert (tmp_path / "out" / "petseg_results.csv").is_file()


@pytest.mark.parametrize(
    "option",
    [
        ("--backend", "tensorrt"),
        ("-d", "gpu"),
        ("--precision", "bf16"),
        ("--threshold", "0.9"),
        ("--watch",),
        ("--model-key", "key.pem"),
    ],
    ids=str,
)
def test_the_self_test_is_of_all_backends(option: tuple[str, ...], capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--self-test", *option])
    assert ended.value.code == 2
    assert "tries every backend" in capsys.readouterr().err


def test_radiomics_keeps_no_memory_budget(capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["scan.nii.gz", "--radiomics", "--max-memory-gb", "2"])
    assert "leave out --max-memory-gb" in capsys.readouterr().err


def test_a_fault_that_nobody_foresaw_has_its_json_too(run, scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: object, **__: object) -> Segmentation:
        raise MemoryError

    monkeypatch.setattr(Segmenter, "segment", out_of_memory)
    code, out, _ = run(scan, "--json")
    assert json.loads(out)["exit_code"] == code == 6


def test_a_moment_that_is_none_says_what_is_expected(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["scan.nii.gz", "--injection-time", "14:05"])
    assert "is not a local date and time such as" in capsys.readouterr().err


def test_numbered_names_avoid_names_that_are_taken(run, tmp_path: Path) -> None:
    for name in ("a.nii", "a.mha", "a-1.nrrd"):
        save(body_array(SMALL), tmp_path / "in" / name)
    assert run(tmp_path / "in")[0] == 0
    assert [name for name in files_in(tmp_path / "out") if "petseg.nii" in name] == [
        "a-1_petseg.nii.gz",
        "a-2_petseg.nii.gz",
        "a-3_petseg.nii.gz",
    ]


def test_names_are_shown_as_they_are(run, tmp_path: Path) -> None:
    save(body_array(SMALL), tmp_path / "in" / "PET [bold] :bone:.nii.gz")
    _, out, _ = run(tmp_path / "in" / "PET [bold] :bone:.nii.gz")
    assert out.count("PET [bold] :bone:") >= 2


def lesions_of_one_voxel(count: int, label: str = "scan") -> ScanResult:
    """Of 4 x 4 x 4 mm, 0.064 ml, and SUV 5."""
    geometry = Geometry((8, 8, 60), (4.0, 4.0, 4.0))
    labels = np.zeros(geometry.shape, np.uint32)
    labels[4, 4, : 2 * count : 2] = np.arange(1, count + 1)
    volume = Volume(np.where(labels > 0, 5.0, 0.5).astype(np.float32), geometry, Unit.SUVBW)
    return ScanResult("scan", label, quantify(volume, labels), (Path("out", label),), {}, ("Decided.",), (), {})


def test_the_table_shows_small_lesions_and_says_which_it_leaves_out(capsys) -> None:
    print_table([lesions_of_one_voxel(20)], [])
    whole = capsys.readouterr().out
    assert whole.count("0.064") == 20
    assert whole.count("0.32") == 20  # TLG of each
    assert "largest" not in whole
    print_table([lesions_of_one_voxel(21)], [])
    cut = capsys.readouterr().out
    assert cut.count("0.064") == 20
    assert "scan: listed are the 20 largest of 21 lesions." in cut
    print_table([lesions_of_one_voxel(0)], [])
    assert "0.0 " in capsys.readouterr().out


def test_a_name_does_not_command_the_terminal(capsys) -> None:
    result = lesions_of_one_voxel(21, "a\n\x1b[2J\x9bb")
    print_table([result], [Path("out/\x1b[1mpetseg_results.csv")])
    print_notes(result, True, False)
    complain("\x1b[2Jno image")
    captured = capsys.readouterr()
    for text in (captured.out, captured.err):
        assert not {"\x1b", "\x9b"} & set(text)
    assert "wrote out/a\ufffd\ufffd[2J\ufffdb" in captured.out.splitlines()
    assert "a\ufffd\ufffd[2J\ufffdb: Decided." in captured.err.splitlines()


@pytest.mark.parametrize(("beside", "said"), [(9.0, True), (3.0, False)])
def test_a_peak_that_is_a_neighbours_is_warned_of(beside: float, said: bool) -> None:
    """Two lesions of SUV 5, of which the second touches a bladder; of its sphere of 1 ml, 5 of 19 voxels are
    the bladder's: (5 x 9 + 14 x 5) / 19 = 6.1.
    """
    geometry = Geometry((9, 9, 20), (4.0, 4.0, 4.0))
    array, labels = np.full(geometry.shape, 5.0, np.float32), np.zeros(geometry.shape, np.uint32)
    labels[4, 4, 3:5], labels[4, 4, 15] = 1, 2
    array[:, :, 16:] = beside
    volume = Volume(array, geometry, Unit.SUVBW)
    statistics = quantify(volume, labels)
    mask, probabilities = (labels > 0).astype(np.uint8), (labels > 0).astype(np.float32)
    warnings = _warnings(volume, Segmentation(mask, labels, probabilities, geometry, statistics, {}))
    expected = "SUVpeak is above SUVmax in lesion 2: the sphere of 1 ml holds higher uptake from beside."
    assert (expected in warnings) is said
    assert len(warnings) == said


def test_locks_hidden_files_and_pipes_in_a_folder_are_passed_over(run, tmp_path: Path) -> None:
    save_dicom(tmp_path / "in")
    save(body_array(SMALL), tmp_path / "in" / "._scan.nii")
    (tmp_path / "in" / ".#lock").symlink_to("nowhere")
    os.mkfifo(tmp_path / "in" / "pipe")
    assert run(tmp_path / "in")[0] == 0


def test_links_are_followed_and_one_that_leads_nowhere_is_said(run, scan: Path, tmp_path: Path) -> None:
    elsewhere = save(body_array(SMALL), tmp_path / "elsewhere/other.nii.gz")
    (scan.parent / "linked").symlink_to(elsewhere.parent)
    (scan.parent / "loop").symlink_to(scan.parent)
    (scan.parent / "gone.nii.gz").symlink_to(tmp_path / "nowhere.nii.gz")
    code, _, errors = run(scan.parent)
    assert code == 7
    assert any("gone.nii.gz cannot be read: No such file" in line for line in errors)
    assert (tmp_path / "out/scan_petseg.nii.gz").is_file()
    assert (tmp_path / "out/linked/other_petseg.nii.gz").is_file()


@pytest.mark.parametrize("arguments", [("",), ("in", "-o", ""), ("in", "--model", "")], ids=str)
def test_an_empty_path_is_not_the_current_folder(arguments: tuple[str, ...], scan: Path, capsys) -> None:
    """As a script has it whose variable is not set."""
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 2
    assert "the path is empty" in capsys.readouterr().err
    assert list(scan.parent.iterdir()) == [scan]


def test_a_user_without_a_home_is_served(run, scan: Path, monkeypatch) -> None:
    """As in a container that is run under any user's number."""
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)  # of no entry among the users
    with pytest.raises(RuntimeError):
        Path.home()
    assert run(scan)[0] == 0
    with pytest.raises(UsageError, match="Set HOME or XDG_STATE_HOME"):
        keep(new_record("0" * 64, ()))


def test_an_input_that_is_missing_does_not_stop_the_others(run, scan: Path, tmp_path: Path) -> None:
    code, _, err = run(scan, tmp_path / "absent.nii.gz")
    assert code == 7
    assert "1 of 2 scans failed; the others are done" in err[-1]
    assert "scan_petseg.nii.gz" in files_in(tmp_path / "out")


def test_the_table_lies_beside_the_first_input_that_exists(run, scan: Path, tmp_path: Path) -> None:
    code, _, err = run(tmp_path / "gone/x.nii.gz", scan, output=False)
    assert code == 7
    assert "1 of 2 scans failed; the others are done" in err[-1]
    assert (scan.parent / "petseg_results.csv").read_text().count("\n") == 3


def test_an_input_is_never_written_over(run, scan: Path) -> None:
    other = scan.with_name("scan_petseg.nii.gz")
    shutil.copy(scan, other)
    before = other.read_bytes()
    for again in ((), ("--overwrite",)):
        code, _, err = run(scan, other, *again, output=False)
        assert code == 2
        assert "scan_petseg.nii.gz is an input and would be overwritten" in err[-1]
        assert other.read_bytes() == before
    assert files_in(scan.parent) == ["scan.nii.gz", "scan_petseg.nii.gz"]


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_an_input_by_another_name_is_not_written_over(link, run, scan: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    link(scan, tmp_path / "out/scan_petseg.nii.gz")
    code, _, err = run(scan, "--overwrite")
    assert code == 2
    assert "scan_petseg.nii.gz is an input and would be overwritten" in err[-1]
    assert files_in(tmp_path / "out") == ["scan_petseg.nii.gz"]


def test_an_input_that_a_run_before_wrote_is_not_removed(run, scan: Path) -> None:
    run(scan, "--save-probabilities", output=False)
    probabilities = scan.with_name("scan_prob.nii.gz")
    code, _, err = run(scan, probabilities, output=False)
    assert code == 2
    assert "scan_prob.nii.gz is an input and would be overwritten" in err[-1]
    assert probabilities.exists()


def test_the_record_holds_the_digest_of_the_file(run, scan: Path, tmp_path: Path) -> None:
    run(scan)
    record = json.loads((tmp_path / "out/scan_run.json").read_text())
    assert record["input_sha256"] == hashlib.sha256(scan.read_bytes()).hexdigest()
    mask = (tmp_path / "out/scan_petseg.nii.gz").read_bytes()
    assert record["sha256"]["scan_petseg.nii.gz"] == hashlib.sha256(mask).hexdigest()


def test_a_scan_that_is_given_by_two_paths_is_one(run, scan: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(scan.parent)
    assert run(scan, scan.name, scan.parent)[0] == 0
    assert files_in(tmp_path / "out") == ["petseg_results.csv", "scan_petseg.nii.gz", "scan_run.json"]


def test_the_only_scan_of_a_folder_that_is_refused_has_its_row(run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/broken.nii.gz").write_bytes(b"no image")
    code, _, err = run(tmp_path / "in")
    assert (code, len(err)) == (3, 1)
    assert 'broken,"broken.nii.gz cannot be read' in (tmp_path / "out/petseg_results.csv").read_text()


@pytest.mark.parametrize("name", ["petseg_results.csv", "petseg_index.html"])
def test_a_table_or_page_that_is_not_ours_is_not_written_over(name: str, run, scan: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "out" / name
    theirs.parent.mkdir()
    theirs.write_text("of somebody else")
    code, _, err = run(scan.parent)
    assert code == 2
    assert f"{name} was not written by a run before and would be lost" in err[-1]
    assert files_in(tmp_path / "out") == [name]
    assert run(scan.parent, "--overwrite", "--report")[0] == 0
    assert run(scan.parent, "--report")[0] == 0
    theirs.write_text(theirs.read_text() + "a comment")
    assert run(scan.parent, "--resume")[0] == 2


def test_a_run_that_another_overtook_does_not_replace_its_results(run, scan: Path, tmp_path: Path, monkeypatch) -> None:
    """As with a command for each of many scans, some of one name."""
    other, segment = save(body_array(SMALL), tmp_path / "other/scan.nii.gz"), Segmenter.segment
    known = {"other": True}

    def overtaken(*arguments: object, **further: object) -> object:
        if known.pop("other", False):
            assert run(other)[0] == 0
        return segment(*arguments, **further)

    monkeypatch.setattr(Segmenter, "segment", overtaken)
    code, _, err = run(scan)
    assert code == 2
    assert "Another run wrote results of another scan of this name" in err[-1]
    assert read_mask(tmp_path / "out/scan_petseg.nii.gz")[0].shape == SMALL
    assert files_in(tmp_path / "out") == ["scan_petseg.nii.gz", "scan_run.json"]


def test_sigterm_ends_a_run_as_ctrl_c_does(run, scan: Path, tmp_path: Path, monkeypatch) -> None:
    shutil.copy(scan, scan.with_name("then.nii.gz"))

    def killed(*_: object, **further: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    assert run(scan.parent, "--threshold", "0.4")[0] == 0
    monkeypatch.setattr(Segmenter, "segment", killed)
    code, _, err = run(scan.parent)
    assert code == 128 + signal.SIGTERM
    assert "Interrupted; finished scans are kept." in err[-1]
    assert not [name for name in files_in(tmp_path / "out") if ".petseg-" in name]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_a_killed_run_left_is_removed_by_the_next(run, scan: Path, tmp_path: Path) -> None:
    with scratch_folder(tmp_path) as mine:
        left = tmp_path / "out" / mine.name.replace(str(os.getpid()), "999999999")
    left.mkdir(parents=True)
    (left / "scan_petseg.nii.gz").write_bytes(b"half")
    assert run(scan)[0] == 0
    assert files_in(tmp_path / "out") == ["scan_petseg.nii.gz", "scan_run.json"]


def test_names_are_as_long_as_the_file_system_takes_them(run, scan: Path, tmp_path: Path) -> None:
    longest = "n" * (255 - len("_petseg.nii.gz"))
    code, _, err = run(shutil.copy(scan, tmp_path / f"{longest}.nii.gz"))
    assert code == 0, err
    assert files_in(tmp_path / "out") == [f"{longest}_petseg.nii.gz", f"{longest}_run.json"]
    code, _, err = run(shutil.copy(scan, tmp_path / f"{longest}n.nii.gz"))
    assert code == 3
    assert "too long for a file system. Rename the scan." in err[-1]


@pytest.mark.parametrize("kinds", [("nifti",), ("dicom-seg",), ("dicom-sr",), ("dicom-rtstruct",), OUTPUT_TYPES])
@pytest.mark.parametrize("further", [False, True])
def test_a_run_writes_what_its_settings_name(
    kinds: tuple[str, ...], further: bool, known_model: Path, tmp_path: Path
) -> None:
    """Only so is it known before any work what would be written over."""
    save_dicom(tmp_path / "in")
    (scan,) = find_scans(tmp_path / "in")
    asked = dict.fromkeys(("statistics", "preview", "report", "save_probabilities"), further)
    settings = RunSettings(output=tmp_path / "out", output_types=kinds, **asked)
    result = run_scan(scan, Segmenter(known_model), settings)
    assert sorted(settings.results_of(scan)) == sorted(result.files)
    assert [str(file.relative_to(tmp_path / "out")) for file in sorted(result.files)] == files_in(tmp_path / "out")


def test_a_folder_whose_name_is_no_utf8_is_refused_and_the_others_are_done(run, tmp_path: Path) -> None:
    save_dicom(Path(os.fsdecode(os.fsencode(tmp_path) + b"/in/st\xe4")))
    save(body_array(SMALL), tmp_path / "in" / "scan.nii.gz")
    code, _, err = run(tmp_path / "in", "--report")
    assert code == 7
    assert any("UTF-8" in line for line in err)
    assert "UTF-8" in (tmp_path / "out" / "petseg_results.csv").read_text()
    assert "scan_petseg.nii.gz" in files_in(tmp_path / "out")


def test_an_unexpected_error_costs_one_scan_not_the_batch(run, scan: Path, monkeypatch, tmp_path: Path) -> None:
    save(body_array(SMALL), scan.parent / "other.nii.gz")
    original = petseg_runtime.runner.write_image
    calls: list[int] = []

    def fail_once(*arguments: object) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise IndexError("a bug")
        original(*arguments)

    monkeypatch.setattr(petseg_runtime.runner, "write_image", fail_once)
    code, _, err = run(scan.parent)
    assert code == 7
    assert any("Unexpected IndexError" in line for line in err)
    assert len([name for name in files_in(tmp_path / "out") if name.endswith("_petseg.nii.gz")]) == 1


def test_nothing_is_written_or_sent_beside_the_results(scan: Path, known_model: Path, tmp_path: Path) -> None:
    """OpenVINO and ONNX Runtime both report home by default; they leave files in the user's home as they do."""
    home = tmp_path / "home"
    home.mkdir()
    refuse = (
        "import socket, sys\n"
        "def no(*a, **k): raise SystemExit('network!')\n"
        "socket.socket.connect = socket.getaddrinfo = no\n"
    )
    for backend in ("openvino", "onnxruntime"):
        command = f"{refuse}from petseg_runtime.cli import main\nsys.exit(main(sys.argv[1:]))"
        done = subprocess.run(
            [sys.executable, "-c", command, scan, "-o", tmp_path / backend, "-m", known_model, "--backend", backend],
            env={"HOME": str(home), "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        left = [Path(name) for name in files_in(home)]
        assert all(name.parent == Path(".cache/petseg") and name.suffix == ".compiled" for name in left)
        assert len(left) == 1  # OpenVINO's compiled network, for the next start


def test_the_choice_of_series_and_backend_is_said(run, tmp_path: Path) -> None:
    save_dicom(tmp_path / "study")
    _, _, err = run(tmp_path / "study")
    text = " ".join(err)
    assert "Took PET series" in text
    assert "Runs on OpenVINO" in text


def test_a_preview_shows_the_outline(run, scan: Path, tmp_path: Path) -> None:
    run(scan, "-p", "--unit", "suvbw")
    picture = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "scan_preview.png")))
    assert picture.shape[2] == 3
    red = (picture[..., 0] > 180) & (picture[..., 1] < 60)
    assert 30 < red.sum() < picture.size / 50


def test_a_folder_keeps_its_structure(run, tmp_path: Path) -> None:
    for name in ("a/one.nii.gz", "b/one.mha", "b/two.nrrd"):
        save(body_array(SMALL), tmp_path / "in" / name)
    save_dicom(tmp_path / "in" / "c" / "PET")
    assert run(tmp_path / "in")[0] == 0
    masks = [name for name in files_in(tmp_path / "out") if name.endswith("_petseg.nii.gz")]
    assert masks == [
        "a/one_petseg.nii.gz",
        "b/one_petseg.nii.gz",
        "b/two_petseg.nii.gz",
        "c/PET_petseg.nii.gz",
    ]


def test_a_bad_scan_of_a_batch_is_passed_over_and_said(run, scan: Path, tmp_path: Path) -> None:
    (scan.parent / "broken.nii.gz").write_bytes(b"no image")
    code, _, err = run(scan.parent)
    assert code == 7
    assert any("broken" in line for line in err)
    assert "1 of 2 scans failed" in err[-1]
    assert files_in(tmp_path / "out") == ["petseg_results.csv", "scan_petseg.nii.gz", "scan_run.json"]


def test_a_second_run_does_not_segment_its_own_results(run, scan: Path) -> None:
    run(scan.parent, "--save-probabilities", output=False)
    before = files_in(scan.parent)
    assert run(scan.parent, "--save-probabilities", output=False)[0] == 0
    assert files_in(scan.parent) == before


def truncated(folder: Path) -> Path:
    path = save(body_array(SMALL), folder / "scan.nii.gz")
    path.write_bytes(path.read_bytes()[:-500])
    return path


def flat(folder: Path) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(body_array(SMALL)[5]), str(folder / "scan.nii.gz"))
    return folder / "scan.nii.gz"


def time_series(folder: Path) -> Path:
    array = np.stack([body_array(SMALL), body_array(SMALL)])
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=False), str(folder / "scan.nii.gz"))
    return folder / "scan.nii.gz"


def not_a_number(folder: Path) -> Path:
    array = body_array(SMALL)
    array[3, 4, 5] = np.nan
    return save(array, folder / "scan.nii.gz")


def ct_only(folder: Path) -> Path:
    write(ct_series(5), folder / "study")
    return folder / "study"


def missing_slice(folder: Path) -> Path:
    series = pet_series((body_array(SMALL) * 1000).astype(np.int16))
    write([*series[:4], *series[5:]], folder / "study")
    return folder / "study"


def empty_folder(folder: Path) -> Path:
    (folder / "study").mkdir()
    return folder / "study"


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda folder: folder / "absent.nii.gz", "does not exist"),
        (truncated, "truncated"),
        (flat, "three-dimensional"),
        (time_series, "three-dimensional"),
        (not_a_number, "NaN"),
        (lambda folder: save(np.zeros(SMALL, np.float32), folder / "scan.nii.gz"), "no uptake"),
        (ct_only, "no PET series"),
        (missing_slice, "1 slice is missing"),
        (empty_folder, "no scan"),
        (lambda folder: Path(__file__), "is not a"),
    ],
    ids=["missing", "truncated", "2-D", "4-D", "NaN", "zeros", "CT", "missing slice", "empty folder", "other file"],
)
def test_bad_input_gets_one_line_exit_code_3_and_no_file(make, word: str, run, tmp_path: Path) -> None:
    path = make(tmp_path)
    code, out, err = run(path, "-s", "-p")
    assert code == 3
    assert out == ""
    assert len(err) == 1
    assert word in err[0]
    assert str(tmp_path) not in err[0]
    assert not (tmp_path / "out").exists() or files_in(tmp_path / "out") == []


@pytest.mark.parametrize("kind", ["absent", "unreadable", "without a manifest"])
def test_a_bad_model_gets_exit_code_4(kind: str, run, scan: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    if kind == "unreadable":
        model.write_bytes(b"\x08\x0a" + os.urandom(200))
    if kind == "without a manifest":
        model.write_bytes(onnx_model(None))
    code, _, err = run(scan, "--model", model)
    assert code == 4
    assert len(err) == 1
    assert files_in(tmp_path / "out") == []


@pytest.mark.parametrize("arguments", [("-d", "tpu"), ("-d", "gpu"), ("--backend", "abacus")], ids=str)
def test_a_bad_device_gets_exit_code_5(arguments: tuple[str, str], run, scan: Path) -> None:
    code, _, err = run(scan, *arguments)
    assert code == 5
    assert len(err) == 1


@pytest.mark.parametrize("arguments", [("--threshold", "2"), ("--overlap", "1"), ("--threads", "0")], ids=str)
def test_impossible_options_get_exit_code_2(arguments: tuple[str, str], run, scan: Path) -> None:
    code, _, err = run(scan, *arguments)
    assert code == 2
    assert len(err) == 1


def test_the_patient_of_a_dicom_scan_may_be_told(run, tmp_path: Path) -> None:
    files = save_dicom(tmp_path / "in")
    for file in files:
        dataset = dcmread(file)
        del dataset.PatientWeight
        dataset.save_as(file)
    code, _, err = run(tmp_path / "in")
    assert code == 3
    assert "--patient-weight-kg" in err[0]
    code, _, err = run(tmp_path / "in", "--patient-weight-kg", "70")
    assert code == 0
    record = json.loads((tmp_path / "out/in_run.json").read_text())
    assert record["settings"]["given_by_user"] == ["--patient-weight-kg"]
    assert any("70 kg / 350 MBq" in decision for decision in record["decisions"])


def test_a_study_with_two_reconstructions_is_done_once_one_is_chosen(run, tmp_path: Path) -> None:
    save_dicom(tmp_path / "in" / "first")
    for file in save_dicom(tmp_path / "in" / "second"):
        dataset = dcmread(file)
        dataset.SeriesInstanceUID, dataset.SeriesNumber = "1.2.3.99", 5
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{dataset.SOPInstanceUID}.5"
        dataset.SeriesDescription = "Doe Jane EARL"
        dataset.save_as(file)
    code, _, err = run(tmp_path / "in")
    assert code == 3
    assert "or choose with --series" in err[0]
    code, _, err = run(tmp_path / "in", "--series", "earl", "--output-type", "dicom-seg")
    assert code == 0
    text = (tmp_path / "out/in_run.json").read_text()
    record = json.loads(text)
    assert record["settings"]["series"] == "earl"
    assert any("Took PET series 5" in decision for decision in record["decisions"])
    assert "Doe" not in text
    assert dcmread(tmp_path / "out/in_seg.dcm").ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.3.99"
    # By another name of the same series nothing is replaced; what was done for one is not there for the other.
    code, _, err = run(tmp_path / "in", "--series", "5", "--output-type", "dicom-seg")
    assert (code, "were replaced" in " ".join(err)) == (0, False)
    code, _, err = run(tmp_path / "in", "--series", "1", "--output-type", "dicom-seg", "--resume")
    assert code == 0
    assert "another scan of this name, which lay in the output folder, were replaced" in " ".join(err)
    assert json.loads((tmp_path / "out/in_run.json").read_text())["settings"]["series"] == "1"


def test_a_file_that_is_no_dicom_has_no_series(run, scan: Path) -> None:
    code, _, err = run(scan, "--series", "4")
    assert code == 3
    assert err == ["petseg-run: --series came with scan.nii.gz, which is not DICOM. Leave it out."]


def test_windows_itself_is_refused(
    scan: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit) as stopped:
        main([str(scan)])
    assert stopped.value.code == 2
    assert "PETSeg runs on Linux" in capsys.readouterr().err


def test_a_series_is_named(scan: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(scan), "--series", " "])
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    "given",
    [("bqml", "--patient-weight-kg", "1", "--injected-dose-mbq", "1"), ("suvbw",)],
    ids=["of a dose", "Bq/ml called SUV"],
)
def test_more_activity_than_a_patient_gets_is_refused(given: tuple[str, ...], run, tmp_path: Path) -> None:
    """Half a litre of 15 000 Bq/ml is nine times 1 MBq, and as SUVbw 23 times what a patient of 400 kg can have."""
    array = body_array(SMALL) * np.float32(15_000)
    code, _, err = run(save(array, tmp_path / "in" / "scan.nii.gz"), "--unit", *given)
    assert code == 3
    assert "times the activity that was injected" in err[0]
    assert not list((tmp_path / "out").glob("*.nii.gz"))


def test_a_file_in_bqml_becomes_suv_with_weight_and_dose(run, scan: Path, tmp_path: Path) -> None:
    code, _, err = run(scan, "-s", "--unit", "bqml", "--patient-weight-kg", "70", "--injected-dose-mbq", "350")
    assert code == 0
    statistics = json.loads((tmp_path / "out/scan_stats.json").read_text())
    assert statistics["unit"] == "suvbw"
    # 70 000 g / 350e6 Bq = 2e-4 g/Bq.
    assert statistics["scan_max"] == pytest.approx(2e-4 * read_image(scan).array.max(), rel=1e-5)
    assert any("as of the moment that the Bq/ml are corrected to" in line for line in err)
    assert any("Check its unit" in line for line in err)  # no scan of a patient is that cold


@pytest.mark.parametrize(
    "arguments",
    [
        ("--unit", "bqml", "--patient-weight-kg", "70"),
        ("--unit", "suvbw", "--patient-weight-kg", "70", "--injected-dose-mbq", "350"),
        ("--patient-weight-kg", "70", "--injected-dose-mbq", "350"),
        ("--unit", "bqml", "--patient-weight-kg", "70", "--injected-dose-mbq", "350", "--half-life-s", "6586"),
    ],
    ids=" ".join,
)
def test_a_file_that_is_no_dicom_takes_weight_and_dose_together(arguments: tuple[str, ...], run, scan: Path) -> None:
    code, _, err = run(scan, *arguments)
    assert code == 3
    assert len(err) == 1
    assert "--unit bqml" in err[0]


def test_what_is_said_of_one_patient_is_not_used_for_two(run, scan: Path) -> None:
    other = scan.with_name("other.nii.gz")
    shutil.copy(scan, other)
    code, _, err = run(scan.parent, "--patient-weight-kg", "70")
    assert code == 2
    assert "is of one patient, but 2 scans were given" in err[0]


@pytest.mark.parametrize("when", ["14:05", "2026-01-31", "soon", "2026-01-31T14:05:00+01:00"])
def test_an_injection_time_is_a_local_date_and_time(when: str, scan: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(scan), "--injection-time", when])
    assert stopped.value.code == 2


def test_unknown_options_get_exit_code_2(scan: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(scan), "--magic"])
    assert stop.value.code == 2


def test_an_output_folder_that_cannot_be_written_gets_exit_code_2(run, scan: Path, tmp_path: Path) -> None:
    # A file in the way stops root too, whom no permission stops.
    (tmp_path / "out").write_text("in the way")
    code, _, err = run(scan)
    assert code == 2
    assert len(err) == 1
    assert "cannot be written" in err[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root; the test above stands in")
def test_a_read_only_output_folder_gets_exit_code_2(run, scan: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    assert run(scan)[0] == 2


def test_the_installed_command_works_and_says_its_version() -> None:
    version = subprocess.run(
        [Path(sys.executable).with_name("petseg-run"), "--version"], capture_output=True, text=True, check=True
    )
    assert version.stdout.startswith("petseg 0.")


def test_dicom_results_need_a_dicom_scan(run, scan: Path, tmp_path: Path) -> None:
    code, _, err = run(scan, "--output-type", "dicom-seg", "--output-type", "dicom-sr")
    assert code == 3
    assert "is not a DICOM series" in err[0]
    assert "--output-type dicom-seg and dicom-sr" in err[0]
    assert files_in(tmp_path / "out") == []


def test_dicom_results_of_a_dicom_scan(run, tmp_path: Path) -> None:
    save_dicom(tmp_path / "in")
    code, _, err = run(tmp_path / "in", "--output-type", "dicom-sr", "--output-type", "dicom-rtstruct")
    assert code == 0, err
    assert files_in(tmp_path / "out") == ["in_rtstruct.dcm", "in_run.json", "in_seg.dcm", "in_sr.dcm"]
    assert "Doe" not in " ".join(err)


def test_a_second_run_leaves_dicom_results_alone(run, tmp_path: Path) -> None:
    folder = tmp_path / "in/p1/PET"
    save_dicom(folder)
    for _ in range(2):
        code, _, _ = run(tmp_path / "in", "--output-type", "dicom-seg", "--output-type", "dicom-rtstruct", output=False)
        assert code == 0
    assert [name for name in files_in(tmp_path / "in") if "/IM" not in name] == [
        "p1/PET_rtstruct.dcm",
        "p1/PET_run.json",
        "p1/PET_seg.dcm",
    ]


def test_scans_of_one_name_are_told_apart(run, tmp_path: Path, capsys) -> None:
    for patient in ("p1", "p2"):
        save(body_array(SMALL), tmp_path / f"in/{patient}/PET.nii.gz")
    code, out, _ = run(tmp_path / "in", "-s", "--report")
    assert code == 0
    assert "p1/PET" in out
    assert "p2/PET" in out
    table = (tmp_path / "out/petseg_results.csv").read_text()
    assert "\np1/PET," in table
    assert "\np2/PET," in table
    assert ">p2/PET</a>" in (tmp_path / "out/petseg_index.html").read_text()


def test_a_result_that_fails_leaves_nothing(run, scan: Path, tmp_path: Path, monkeypatch) -> None:
    """The last output of a scan cannot be written: the ones before it do not stay."""

    def broken(*_: object) -> None:
        raise OSError(71, "Protocol error")

    monkeypatch.setattr(petseg_runtime.runner, "write_report", broken)
    code, _, err = run(scan, "-s", "-p", "--report")
    assert code == 1
    assert err == ["petseg-run: Unexpected OSError: please report it, with what --verbose prints."]
    assert "Traceback" in "\n".join(run(scan, "-s", "-p", "--report", "-v")[2])
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
@pytest.mark.parametrize("batch", [False, True])
def test_a_full_disk_behind_standard_output_is_called_that(
    scan: Path, known_model: Path, tmp_path: Path, batch: bool
) -> None:
    if batch:
        save(body_array(SMALL), tmp_path / "scan2.nii.gz")
    petseg_run = Path(sys.executable).with_name("petseg-run")
    command = [petseg_run, scan.parent if batch else scan, "-m", known_model, "-d", "cpu", "--json", "-q"]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr == "petseg-run: The disk that results or messages go to is full. Make room, and run again.\n"


def test_who_reads_no_further_ends_the_run_with_the_code_for_it(scan: Path, known_model: Path, tmp_path: Path) -> None:
    """Not with 1, which is for our faults. The table is Rich's, which has a code of its own."""
    command = [sys.executable, "-m", "petseg_runtime.cli", scan, "-m", known_model, "-o", tmp_path / "out", "-d", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 141, said
    assert "Traceback" not in said
    assert "scan_run.json" in files_in(tmp_path / "out")


def test_no_thread_of_a_refused_scan_waits_for_the_garbage_collector(known_model: Path, tmp_path: Path) -> None:
    (tmp_path / "scan.nii.gz").write_bytes(b"no image")
    gc.disable()
    try:
        assert main([str(tmp_path / "scan.nii.gz"), "-m", str(known_model), "-d", "cpu", "-q"]) == 3
        assert not [thread for thread in threading.enumerate() if thread.name.startswith(("reading", "writing"))]
    finally:
        gc.enable()
