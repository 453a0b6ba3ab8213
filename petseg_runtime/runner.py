"""One scan from its files to its results, as petseg-run does it. Prints nothing."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from petseg_runtime import __version__
from petseg_runtime.errors import InputError, PetsegError, UsageError
from petseg_runtime.io.identity import content_digest
from petseg_runtime.io.images import write_image
from petseg_runtime.io.plausible import MAX_VOXELS
from petseg_runtime.io.scans import Digests, Scan
from petseg_runtime.io.suv_attributes import NO_OVERRIDES, SuvOverrides
from petseg_runtime.manifest import ModelManifest
from petseg_runtime.memory import MemoryBudget
from petseg_runtime.outputs.files import (
    file_sha256,
    moving_record,
    prepare_folder,
    remove_leavings,
    staged,
    whole_file,
    write_json,
)
from petseg_runtime.outputs.preview import write_preview
from petseg_runtime.outputs.radiomics import (
    RadiomicsSettings,
    check_installed,
    radiomic_features,
    unmeasured,
    write_radiomics,
)
from petseg_runtime.outputs.records import run_record, statistics_from, statistics_record, summary_row, write_csv
from petseg_runtime.outputs.report import IndexedScan, write_index, write_report
from petseg_runtime.preprocessing import VERSION as PREPROCESSING_VERSION
from petseg_runtime.quantification import ScanStatistics
from petseg_runtime.segmentation import Segmentation
from petseg_runtime.segmenter import Segmenter, check_options
from petseg_runtime.sliding_window import Progress
from petseg_runtime.volume import Unit, Volume

if TYPE_CHECKING:
    from petseg_runtime.outputs.dicom_source import Source

OUTPUT_TYPES = ("nifti", "dicom-seg", "dicom-sr", "dicom-rtstruct")

# Said also where nothing else is.
REPLACED = "The results of another scan of this name, which lay in the output folder, were replaced."

# The hottest voxel of a patient: more than the mean of the body, less than the urine of a small one.
PLAUSIBLE_SUV_MAX = (1.0, 500.0)

# Says of the table and the page of a batch what a scan's record says of its results.
_SUMMARY_RECORD = ".petseg-summary.json"
# Bytes of a file's name on Linux.
_LONGEST_NAME = 255


@dataclass(frozen=True)
class RunSettings:
    """What a run is asked for beside the model.

    Attributes
    ----------
    output : folder of the results; beside each scan where None.
    unit : what the numbers of NIfTI, MHA and NRRD files mean.
    overrides : what the user says of one patient in place of the header.
    series : which PET series of a study, see `petseg_runtime.io.dicom.choose_pet_series`; empty where there is one.
    output_types : how the mask is written, of `OUTPUT_TYPES`; the probabilities follow it.
    statistics, preview, report, radiomics, save_probabilities : further outputs beside the mask and the record.
    threshold, overlap : in place of the model's.
    tta : average over mirrorings.
    identify : write who a DICOM scan is of to the records; else no identifier leaves the scan but in DICOM results.
    overwrite : also what no run before wrote, or somebody changed since; else such a file is left alone and the scan
        refused.
    """

    output: Path | None = None
    unit: Unit = Unit.UNKNOWN
    overrides: SuvOverrides = NO_OVERRIDES
    series: str = ""
    output_types: tuple[str, ...] = ("nifti",)
    statistics: bool = False
    preview: bool = False
    report: bool = False
    radiomics: bool = False
    save_probabilities: bool = False
    threshold: float | None = None
    overlap: float | None = None
    tta: bool = False
    identify: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_options(self.overlap, self.threshold)
        unknown = [kind for kind in self.output_types if kind not in OUTPUT_TYPES]
        if self.radiomics:
            check_installed()
        if unknown or not self.output_types:
            raise UsageError(f"Output type {unknown or 'none'} is unknown; there are {', '.join(OUTPUT_TYPES)}.")

    @property
    def wants_dicom(self) -> bool:
        return any(kind != "nifti" for kind in self.output_types)

    def folder_for(self, scan: Scan) -> Path:
        return scan.beside if self.output is None else self.output / scan.folder

    @property
    def suffixes(self) -> tuple[str, ...]:
        """What the names of a scan's results end with, in the order of the record, which is the last."""
        types, prob = self.output_types, self.save_probabilities
        wanted = {
            "_petseg.nii.gz": "nifti" in types,
            "_prob.nii.gz": prob and ("nifti" in types or "dicom-seg" not in types),
            "_seg.dcm": "dicom-seg" in types or "dicom-sr" in types,
            "_sr.dcm": "dicom-sr" in types,
            "_probseg.dcm": prob and "dicom-seg" in types,
            "_rtstruct.dcm": "dicom-rtstruct" in types,
            "_stats.json": self.statistics,
            "_radiomics.csv": self.radiomics,
            "_preview.png": self.preview,
            "_report.html": self.report,
            "_run.json": True,
        }
        return tuple(suffix for suffix, is_wanted in wanted.items() if is_wanted)

    def results_of(self, scan: Scan) -> list[Path]:
        """The files that a scan's results go to; the record of the run is the last."""
        return [self.folder_for(scan) / f"{scan.name}{suffix}" for suffix in self.suffixes]

    def inference(self, manifest: ModelManifest) -> dict[str, Any]:
        """What the network is run with: what was asked for, and the model's own for the rest."""
        return {
            "overlap": manifest.overlap if self.overlap is None else self.overlap,
            "threshold": manifest.threshold if self.threshold is None else self.threshold,
            "tta": self.tta,
        }


@dataclass(frozen=True)
class ScanResult:
    """What came out of one scan: its quantities, the files written, what was decided on the way, and what to mind.

    `name` is the stem of its files; `label` tells it from scans of the same name in other folders. `identity` is empty
    unless the run was asked to identify. `recalled` says that a run before wrote all of it, and nothing was done.
    """

    name: str
    label: str
    statistics: ScanStatistics
    files: tuple[Path, ...]
    timings_s: dict[str, float]
    decisions: tuple[str, ...]
    warnings: tuple[str, ...]
    identity: dict[str, str]
    recalled: bool = False

    @property
    def seconds(self) -> float:
        """That the scan itself took; the model loads once, and meanwhile."""
        return sum(seconds for stage, seconds in self.timings_s.items() if stage != "loading")


def run_scan(
    scan: Scan,
    segmenter: Segmenter,
    settings: RunSettings,
    resume: bool = False,
    progress: Progress | None = None,
) -> ScanResult:
    """Read, segment and write one scan. No file appears unless it is whole.

    Parameters
    ----------
    resume : what is `finished` is not done again.

    Raises
    ------
    PetsegError : if the scan is refused or its results cannot be written.
    """
    prepared = _read_or_recall(scan, lambda: segmenter, settings, resume, segmenter.budget)
    if isinstance(prepared, ScanResult):
        return prepared
    segmentation = _segment(prepared, segmenter, settings, progress)
    return _write(prepared, segmentation, segmenter, settings)


Report = Callable[[int, int, int], None]


def run_scans(
    scans: Sequence[Scan],
    loading: Future[Segmenter],
    settings: RunSettings,
    resume: bool = False,
    progress: Report | None = None,
    *,
    ahead: bool,
) -> Generator[tuple[Scan, ScanResult | Exception], None, None]:
    """Run scans one after the other, in their order.

    Parameters
    ----------
    loading : the model, which may still load while the first scan is read.
    resume : what is `finished` is not done again.
    progress : called with the number of the scan, its windows done and its windows in all.
    ahead : read the next scan and write the last while one is computed; not with a memory budget, which is for one.

    Yields
    ------
    Each scan with its result, or with the exception that it ended in; the scans after it are done all the same.

    Raises
    ------
    PetsegError : if the model cannot be loaded.
    """
    if not ahead:
        segmenter = loading.result()
        for number, scan in enumerate(scans):
            outcome: ScanResult | Exception
            try:
                outcome = run_scan(scan, segmenter, settings, resume, partial(progress, number) if progress else None)
            except Exception as error:  # whatever a scan does, the scans after it are done
                outcome = error
            yield scan, outcome
        return
    with ThreadPoolExecutor(1, "reading") as reader, ThreadPoolExecutor(1, "writing") as writer:
        reading: deque[Future[_Prepared | ScanResult]] = deque()
        writing: deque[tuple[Scan, Future[ScanResult]]] = deque()
        waiting = iter(scans)

        def read_next() -> None:
            for scan in islice(waiting, 1):
                reading.append(reader.submit(_read_or_recall, scan, loading.result, settings, resume))

        read_next()
        try:
            segmenter = loading.result()
            for number, scan in enumerate(scans):
                read = reading.popleft()
                read_next()  # one scan ahead
                writing.append((scan, _started(read, number, segmenter, settings, progress, writer)))
                while len(writing) > 1 or (writing and writing[0][1].done()):
                    yield _outcome(*writing.popleft())
            while writing:
                yield _outcome(*writing.popleft())
        finally:
            for future in reading:
                future.cancel()


def _started(
    read: Future[_Prepared | ScanResult],
    number: int,
    segmenter: Segmenter,
    settings: RunSettings,
    progress: Report | None,
    writer: ThreadPoolExecutor,
) -> Future[ScanResult]:
    """Segment what was read, and hand it to the writer; what goes wrong is in the future."""
    future: Future[ScanResult] = Future()
    try:
        prepared = read.result()
        if isinstance(prepared, ScanResult):
            future.set_result(prepared)
            return future
        segmentation = _segment(prepared, segmenter, settings, partial(progress, number) if progress else None)
    except Exception as error:  # whatever a scan does, the scans after it are done
        future.set_exception(error)
        return future
    return writer.submit(_write, prepared, segmentation, segmenter, settings)


def _outcome(scan: Scan, future: Future[ScanResult]) -> tuple[Scan, ScanResult | Exception]:
    try:
        return scan, future.result()
    except Exception as error:  # of reading, segmenting or writing, for the caller to tell apart
        return scan, error


@dataclass(frozen=True)
class _Prepared:
    """A scan in memory, ready to be segmented; `before` is the record of the run before, empty where there was none.

    `series_sha256` is that of the first slice, which tells the series that was taken from the others of its study.
    """

    scan: Scan
    digests: Digests
    series_sha256: str
    volume: Volume
    source: Source | None
    identity: dict[str, str]
    reading_s: float
    before: dict[str, Any]


def _read_or_recall(
    scan: Scan,
    loaded: Callable[[], Segmenter],
    settings: RunSettings,
    resume: bool,
    budget: MemoryBudget | None = None,
) -> _Prepared | ScanResult:
    """The model is only waited for where it is needed, to know what is done."""
    done = finished(scan, loaded(), settings) if resume else None
    return done or _read(scan, settings, budget)


def _read(scan: Scan, settings: RunSettings, budget: MemoryBudget | None) -> _Prepared:
    prepare_folder(settings.folder_for(scan))
    before = _check_results(scan, settings)
    digests = scan.digests()
    started = perf_counter()
    try:
        most_voxels = MAX_VOXELS if budget is None else budget.scan_voxels()
        volume = scan.read(settings.unit, settings.overrides, settings.series, most_voxels)
    except InputError as error:
        if before.get("input_sha256", digests.content) == digests.content:
            raise
        raise InputError(f"{error} The results of another scan of this name still lie in the output folder.") from error
    reading_s = perf_counter() - started
    source, identity = _source(scan, volume, settings), _identity(volume, settings)
    series_sha256 = content_digest(Path(volume.source[0])).hex() if volume.source else ""
    scan.check_unchanged()
    return _Prepared(scan, digests, series_sha256, volume, source, identity, reading_s, before)


def _check_results(scan: Scan, settings: RunSettings) -> dict[str, Any]:
    """Refuse to write over what is not ours; returns the record of the run before.

    Raises
    ------
    InputError : if a name is too long.
    UsageError : if a file of it was not written by a run before, or changed since.
    """
    results = settings.results_of(scan)
    longest = max((path.name for path in results), key=_bytes)
    if _bytes(longest) > _LONGEST_NAME:
        raise InputError(f"The name {longest[:32]}... of a result is too long for a file system. Rename the scan.")
    before = _run_before(results[-1])
    if settings.overwrite:
        return before
    own = {results[-1].with_name(name) for name in _outputs(before)}  # removed where this run does not write them
    _check_ours({*results, *own}, before)
    return before


def _check_ours(paths: Iterable[Path], before: dict[str, Any]) -> None:
    """Refuse to lose a file that the run of this record did not write, or that was changed since.

    Raises
    ------
    UsageError : if there is one.
    """
    own = _outputs(before)
    for path in sorted(paths):
        now = _digest(path)
        if now and path.name not in own:
            raise _would_lose(path, "was not written by a run before")
        if now and now != before.get("sha256", {}).get(path.name, now):
            raise _would_lose(path, "was changed since the run before")


def _is_of(record: dict[str, Any], prepared: _Prepared) -> bool:
    """Whether the run of this record was of this scan, and the same series of its study; True where there is none."""
    now = prepared.digests.content, prepared.series_sha256
    return (record.get("input_sha256", now[0]), record.get("series_sha256", now[1])) == now


def _outputs(record: dict[str, Any]) -> list[str]:
    """The files that a record names; a damaged one may name others than its neighbours."""
    return [name for name in record.get("outputs", ()) if Path(name).name == name]


def results_before(scan: Scan, settings: RunSettings) -> list[Path]:
    """The files that a run before wrote of the scan, or of another of its name."""
    record = settings.results_of(scan)[-1]
    return [record.with_name(name) for name in _outputs(_run_before(record))]


def _digest(path: Path) -> str:
    """See `file_sha256`.

    Raises
    ------
    UsageError : if the file is there and cannot be read.
    """
    try:
        return file_sha256(path)
    except OSError as error:
        raise UsageError(f"{path.name} cannot be read: {error.strerror}. Choose another --output.") from error


def _would_lose(path: Path, why: str) -> UsageError:
    return UsageError(f"{path.name} {why} and would be lost. Pass --overwrite if it may, or choose another --output.")


def _bytes(name: str) -> int:
    return len(os.fsencode(name))


def _segment(
    prepared: _Prepared, segmenter: Segmenter, settings: RunSettings, progress: Progress | None
) -> Segmentation:
    return segmenter.segment(prepared.volume, progress, **settings.inference(segmenter.manifest))


def _write(prepared: _Prepared, segmentation: Segmentation, segmenter: Segmenter, settings: RunSettings) -> ScanResult:
    scan, volume, source, identity = prepared.scan, prepared.volume, prepared.source, prepared.identity
    started = perf_counter()
    decisions = (*volume.notes, *(source.notes if source else ()))
    warnings = (*scan.warnings, *_warnings(volume, segmentation))
    used = {
        "unit": volume.unit.value,
        **settings.inference(segmenter.manifest),
        "given_by_user": list(settings.overrides.options),
        **({"series": settings.series} if settings.series else {}),
        **({"radiomics": asdict(RadiomicsSettings())} if settings.radiomics else {}),
    }
    record = settings.results_of(scan)[-1]
    before, digests = prepared.before, prepared.digests
    if not _is_of(before, prepared):
        warnings += (REPLACED,)

    def check() -> None:
        meanwhile = _check_results(scan, settings)
        if not _is_of(meanwhile, prepared) and meanwhile.get("run_key") != before.get("run_key"):
            raise UsageError("Another run wrote results of another scan of this name. Choose another --output.")

    with staged(record.parent, record.name, _outputs(before), check) as stage:
        features = None
        if settings.radiomics:
            features = radiomic_features(volume, segmentation.lesion_labels, stage)
            if sentence := unmeasured(features):
                warnings += (sentence,)
        files = {suffix: stage / f"{scan.name}{suffix}" for suffix in settings.suffixes}
        _write_outputs(files, volume, segmentation, segmenter, settings, source, warnings, features)
        timings_s = {
            "loading": round(segmenter.loading_s, 4),
            "reading": round(prepared.reading_s, 4),
            **segmentation.timings_s,
        }
        key, outputs = run_key(digests.scan, segmenter, settings), [file.name for file in files.values()]
        statistics = segmentation.statistics
        content = run_record(segmenter, key, digests.content, statistics, used, timings_s, outputs, decisions, warnings)
        if prepared.series_sha256:
            content["series_sha256"] = prepared.series_sha256
        if identity:
            content["identity"] = identity
        if settings.report:
            write_report(scan.label, volume, segmentation, segmenter.manifest, content, files["_report.html"])
        timings_s["writing"] = round(perf_counter() - started, 4)
        content["sha256"] = {file.name: file_sha256(file) for file in [*files.values()][:-1]}
        write_json(content, files["_run.json"])
    written = tuple(settings.results_of(scan))
    return ScanResult(scan.name, scan.label, statistics, written, timings_s, decisions, warnings, identity)


def finished(scan: Scan, segmenter: Segmenter, settings: RunSettings) -> ScanResult | None:
    """The result of a scan that is done already: same input, model and settings, and every file in its place.

    Raises
    ------
    InputError : if the input cannot be read.
    """
    folder = settings.folder_for(scan)
    record = _record(settings.results_of(scan)[-1])
    try:
        files = tuple(folder / name for name in record["outputs"])
        sha256 = {folder / name: str(digest) for name, digest in record["sha256"].items()}
        decisions = tuple(record["decisions"][1:])  # the first is the backend's, of that run
        statistics, timings_s = statistics_from(record["statistics"]), dict(record["timings_s"])
        key, warnings = record["run_key"], tuple(record["warnings"])
        identity = dict(record.get("identity", {}))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if key != run_key(scan.digests().scan, segmenter, settings) or not all(file.is_file() for file in files):
        return None
    if any(_digest(file) != digest for file, digest in sha256.items()):  # cut short by a power cut, or changed since
        return None
    return ScanResult(scan.name, scan.label, statistics, files, timings_s, decisions, warnings, identity, recalled=True)


def _run_before(record: Path) -> dict[str, Any]:
    """What a run before wrote of itself, also one that was killed while its results moved to their place."""
    return _record(record) or _record(moving_record(record))


def _record(path: Path) -> dict[str, Any]:
    """What a run before wrote of itself; empty where there was none, or nobody can read it."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        names = record["outputs"]
        sound = isinstance(names, list) and all(isinstance(name, str) for name in names)
        sound = sound and isinstance(record.get("sha256", {}), dict)
        return dict(record) if sound else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def run_key(scan_sha256: str, segmenter: Segmenter, settings: RunSettings) -> str:
    """Digest of all that a result depends on: the input, the model, what was asked for, and this software."""
    asked = {name: value for name, value in asdict(settings).items() if name not in ("output", "overwrite")}
    software = (__version__, str(PREPROCESSING_VERSION))
    made_by = (segmenter.model_sha256, segmenter.backend_name, *software)  # the backend's name tells its precision
    parts = (scan_sha256, *made_by, json.dumps(asked, sort_keys=True, default=str))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _identity(volume: Volume, settings: RunSettings) -> dict[str, str]:
    """Who a DICOM scan is of, where that is asked for."""
    if not settings.identify or not volume.source:
        return {}
    from petseg_runtime.outputs.dicom_source import identity_of

    return identity_of(Path(volume.source[0]))


def _source(scan: Scan, volume: Volume, settings: RunSettings) -> Source | None:
    """What DICOM results are to refer to, checked before any work is done for them."""
    if not settings.wants_dicom:
        return None
    if not volume.source:
        raise InputError(
            f"{scan.name} is not a DICOM series, so there is nothing that DICOM results could refer to. Leave out "
            f"--output-type {' and '.join(kind for kind in settings.output_types if kind != 'nifti')}."
        )
    from petseg_runtime.outputs.dicom_source import read_source

    return read_source(volume.source, volume.geometry)


def summary_files(folder: Path) -> tuple[Path, Path]:
    """The table and the page of a batch."""
    return folder / "petseg_results.csv", folder / "petseg_index.html"


def remove_summary(folder: Path, overwrite: bool) -> None:
    """Remove the table and the page of a run before, which speak of results that are about to be replaced.

    And what a run left of them that was killed while it wrote them.

    Raises
    ------
    UsageError : if they cannot be removed, or, unless `overwrite`, were not written by a run before, or changed since.
    """
    if not overwrite:
        _check_ours(summary_files(folder), _run_before(folder / _SUMMARY_RECORD))
    remove_leavings(folder)
    for file in summary_files(folder):
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise UsageError(f"{file.name} cannot be replaced: {error.strerror}. Choose another --output.") from error


def write_summary(
    results: Sequence[ScanResult], failures: Sequence[tuple[str, PetsegError]], folder: Path, with_index: bool
) -> tuple[Path, ...]:
    """Write one CSV of a folder of scans, a row for each, refused ones too; and, if asked for, a page that lists them.

    Parameters
    ----------
    folder : gets the files; the page links to the scans' own pages relative to it.
    """
    rows = [summary_row(result.label, result.identity, result.statistics, result.warnings) for result in results]
    scans = []
    for result in results:
        pages = [file for file in result.files if file.name.endswith("_report.html")]
        page = Path(os.path.relpath(pages[0], folder)).as_posix() if pages else None
        scans.append(IndexedScan(result.label, result.statistics, len(result.warnings), page))
    with staged(folder, _SUMMARY_RECORD) as stage:
        table, index = summary_files(stage)
        write_csv(rows, failures, table)
        if with_index:
            write_index(scans, [(name, str(error)) for name, error in failures], index)
        written = (table, index) if with_index else (table,)
        record = {
            "outputs": [file.name for file in written],
            "sha256": {file.name: file_sha256(file) for file in written},
        }
        write_json(record, stage / _SUMMARY_RECORD)
    return tuple(folder / file.name for file in written)


def _write_outputs(
    files: dict[str, Path],
    volume: Volume,
    segmentation: Segmentation,
    segmenter: Segmenter,
    settings: RunSettings,
    source: Source | None,
    warnings: Sequence[str],
    features: Sequence[dict[str, Any]] | None,
) -> None:
    """Write the results by their suffixes, but for the report and the record, which speak of the others."""
    for suffix, array in (("_petseg.nii.gz", segmentation.mask), ("_prob.nii.gz", segmentation.probabilities)):
        if suffix in files:
            with whole_file(files[suffix]) as temporary:
                write_image(array, segmentation.geometry, temporary)
    if source is not None:
        from petseg_runtime.outputs.dicom import write_dicom  # takes half a second to import
        from petseg_runtime.outputs.dicom_source import Equipment

        manifest, used = segmenter.manifest, settings.inference(segmenter.manifest)
        equipment = Equipment(
            manifest.name, manifest.version, segmenter.model_sha256, **used, backend=segmenter.backend_name
        )
        write_dicom(source, segmentation, equipment, warnings, files)
    if settings.statistics:
        write_json(statistics_record(segmentation.statistics), files["_stats.json"])
    if features is not None:
        write_radiomics(features, files["_radiomics.csv"])
    if settings.preview:
        write_preview(volume, segmentation.mask, files["_preview.png"])


def _warnings(volume: Volume, segmentation: Segmentation) -> tuple[str, ...]:
    """What to mind: what the reader warns of, numbers without a unit, SUVs that no patient has, a tumour cut off."""
    highest = float(volume.array.max())
    low, high = PLAUSIBLE_SUV_MAX
    own: tuple[str, ...] = ()
    if volume.unit is Unit.BQML:
        own = ("The scan is in Bq/ml: SUV quantities are left out. Pass the patient's weight and dose for them.",)
    elif volume.unit is Unit.UNKNOWN:
        own = ("The file does not say its unit: SUV quantities are left out. Pass --unit suvbw if it holds SUVbw.",)
    elif not low <= highest <= high:
        own = (f"The highest SUVbw of the scan is {highest:.3g}, expected {low:g} to {high:g}. Check its unit.",)
    if segmentation.statistics.lesions and segmentation.statistics.tumour.intensity_peak is None:
        own += ("The voxels are too large for a sphere of 1 ml: SUVpeak is left out.",)
    own += _peaks_beside(segmentation.statistics)
    if segmentation.statistics.tumour.edge_mm == 0:
        own += ("A lesion reaches the edge of the scan and may go on beyond: its quantities are of what was scanned.",)
    return (*volume.warnings, *segmentation.warnings, *own)


def _peaks_beside(statistics: ScanStatistics) -> tuple[str, ...]:
    """Of lesions whose SUVpeak may be a neighbour's, as the bladder's."""
    higher = [
        str(lesion.label)
        for lesion in statistics.lesions
        if lesion.suv_peak is not None and lesion.suv_max is not None and lesion.suv_peak > lesion.suv_max
    ]
    if not higher:
        return ()
    which = f"lesion{'s' if len(higher) > 1 else ''} {', '.join(higher)}"
    return (f"SUVpeak is above SUVmax in {which}: the sphere of 1 ml holds higher uptake from beside.",)
