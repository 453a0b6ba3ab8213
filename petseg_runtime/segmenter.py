"""Segmenter: Volume in, Segmentation out. Composes preprocessing, sliding window, backend and quantities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import Self

import numpy as np

from petseg_runtime.backends import Backend, open_backend
from petseg_runtime.backends.base import PlansMemory
from petseg_runtime.commissioning import Record, kept, precision_of, user_folder
from petseg_runtime.engine import ENGINE_SUFFIX, EngineFile, check_origin, read_engine
from petseg_runtime.errors import BackendError, CancelledError, ModelError, PetsegError, UsageError
from petseg_runtime.io.suv_attributes import DOSE, OPTIONS, WEIGHT
from petseg_runtime.manifest import MAX_OVERLAP, THRESHOLD_RANGE, ModelFile, ModelManifest, is_threshold, read_model
from petseg_runtime.memory import MemoryBudget
from petseg_runtime.postprocessing import label_lesions, threshold_mask
from petseg_runtime.preprocessing import MAX_BODY_SUV, MAX_NETWORK_VOXELS, NetworkInput, preprocess, restore
from petseg_runtime.quantification import ScanStatistics, quantify
from petseg_runtime.segmentation import Segmentation
from petseg_runtime.signature import check_signature
from petseg_runtime.sliding_window import Progress, fitted_window, sliding_window_probabilities
from petseg_runtime.volume import FloatArray, Shape, Unit, Volume

# More than any machine has; one that is asked for a million does not answer.
MAX_THREADS = 512
PRECISIONS = ("auto", "f32", "bf16")

BUNDLED_MODEL = "petseg-cpu.onnx"

# How far a probability may leave [0, 1] by rounding.
_ROUNDING = 1e-3

# How much longer than what the model is for a body may be without a warning.
_LONGER = 1.1
# How much of a side of the scan may be body: an arm that lies beyond it, not a body that was cropped.
_CUT_OFF = 0.25

# A tumour is brighter than this many medians of the body (the palest of 232 simulated: 2.4, of 38 sarcomas: 1.6), and
# in whole scans less than this share of the body (of the 232: 1.4 % at most).
_AS_PALE_AS_NONE = 1.5
_AS_LARGE_AS_NONE = 0.1

# Axes (z, y, x) mirrored by test-time augmentation: the paper's mirroring in the axial plane.
_NO_MIRRORING: tuple[tuple[int, ...], ...] = ((),)
_MIRRORINGS: tuple[tuple[int, ...], ...] = ((), (1,), (2,), (1, 2))


class Segmenter:
    """A model, loaded once, that segments any number of scans, from any number of threads.

    It prints nothing, changes no global state, and raises only `PetsegError` on bad input. A process that was forked
    off needs one of its own: the threads of the backends do not go with it.

    Parameters
    ----------
    model : an .onnx file with a manifest, or an .engine built from one; the bundled model by default. An engine of
        the same name beside an .onnx file is used where it fits.
    device : "auto", "cpu", "gpu" or "gpu:N"; an explicit device never falls back.
    backend : "auto", "openvino", "onnxruntime" or "tensorrt"; likewise.
    threads : CPU threads of the inference; by default the backend decides.
    precision : on the CPU "f32", or "bf16" where this machine passed the model's self-test with it; "auto" takes bf16
        there and f32 elsewhere.
    key : public key (PEM) that the model must be signed by; None asks for no signature.
    max_memory_gb : refuse a scan that would make the process take more; for one scan at a time, on the CPU.
    cache : folder that keeps the compiled network for the next start, such as `user_cache()`; None writes nothing.

    Raises
    ------
    ModelError : if the model is unreadable, damaged, has no manifest, or is not signed by the key.
    MemoryBudgetError : if the model alone does not fit the budget.
    BackendError : if the backend or device is unknown or does not work, or failed the self-test on this machine.
    UsageError : if `threads` is not 1 to 512, or the precision unknown.

    Examples
    --------
    >>> segmenter = Segmenter()
    >>> segmentation = segmenter.segment(read_volume("scan.nii.gz"))
    >>> segmentation.statistics.tumour.mtv_ml
    """

    manifest: ModelManifest
    model_sha256: str
    choice: str  # which backend and device were taken, and why
    loading_s: float = 0.0
    budget: MemoryBudget | None = None

    def __init__(
        self,
        model: Path | str | None = None,
        device: str = "auto",
        backend: str = "auto",
        threads: int | None = None,
        precision: str = "auto",
        cache: Path | str | None = None,
        max_memory_gb: float | None = None,
        key: Path | str | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise UsageError(f"precision is {precision!r}, expected {', '.join(PRECISIONS)}.")
        check_threads(threads)
        cache, key = (None if path is None else Path(path) for path in (cache, key))
        started = perf_counter()
        if model is not None:
            self._open(Path(model), backend, device, threads, precision, cache, key)
        else:
            with as_file(files("petseg_runtime") / "models" / BUNDLED_MODEL) as path:
                self._open(path, backend, device, threads, precision, cache, key)
        if max_memory_gb is not None:
            if not isinstance(self._backend, PlansMemory):
                raise UsageError(f"{self.backend_name} keeps no memory budget. Use --backend openvino.")
            self.budget = MemoryBudget(max_memory_gb, self._backend.working_bytes(self.manifest.patch_size))
        self.loading_s = perf_counter() - started

    def _open(
        self,
        path: Path,
        backend: str,
        device: str,
        threads: int | None,
        precision: str,
        cache: Path | None,
        key: Path | None,
    ) -> None:
        if key is not None:
            check_signature(path, key)
        if path.suffix == ENGINE_SUFFIX:
            engine = read_engine(path)
            _check_precision(engine, precision)
            self.manifest, self.model_sha256 = engine.manifest, engine.sha256
            self._backend, self.choice = open_backend(None, backend, device, threads, engine, cache=cache)
            self._check_commissioned(kept(engine.info.onnx_sha256))
            return
        model = read_model(path)
        self.manifest, self.model_sha256 = model.manifest, model.sha256
        record = kept(model.sha256)
        reduced = precision == "bf16" or (precision == "auto" and _passed_bf16(record))

        def open_with(engine: EngineFile | None) -> None:
            self._backend, self.choice = open_backend(
                model.content,
                backend,
                device,
                threads,
                engine,
                precision="bf16" if reduced else "f32",
                cache=cache,
                window=None if self.manifest.fit_multiple else self.manifest.patch_size,
            )
            if precision == "bf16" and precision_of(self.backend_name) != "bf16":
                raise BackendError(f"{self.backend_name} does not run in bf16. Use --backend openvino.")
            self._check_commissioned(record)

        beside = path.with_suffix(ENGINE_SUFFIX)
        if device == "cpu" or backend not in ("auto", "tensorrt") or not beside.is_file():
            open_with(None)
            return
        try:
            open_with(_engine_beside(beside, model, precision, key))
        except PetsegError as error:
            if backend != "auto":
                raise
            self.__dict__.pop("_backend", None)  # its memory goes back before another backend takes some
            open_with(None)  # which ends the same way where it was not for the engine
            self.choice += f" The engine beside the model is left alone: {error}"

    def _check_commissioned(self, record: Record | None) -> None:
        """Refuse what failed the self-test here, and a reduced precision that did not pass it."""
        passed = None if record is None else record.passed(self.backend_name)
        if passed is False or (passed is None and precision_of(self.backend_name) != "f32"):
            how = "failed" if passed is False else "has not passed"
            raise BackendError(
                f"{self.backend_name} {how} this model's self-test on this machine. Choose another --backend or "
                "--precision f32, or run petseg-run --self-test."
            )

    @classmethod
    def from_backend(cls, manifest: ModelManifest, backend: Backend) -> Self:
        """A segmenter around a network that is not a file, such as one in training."""
        segmenter = cls.__new__(cls)
        segmenter.manifest, segmenter.model_sha256 = manifest, ""
        segmenter._backend, segmenter.choice = backend, f"Runs on {backend.name}."
        return segmenter

    @property
    def backend_name(self) -> str:
        return self._backend.name

    @property
    def device(self) -> str:
        return self._backend.device

    def segment(
        self,
        volume: Volume,
        progress: Progress | None = None,
        *,
        overlap: float | None = None,
        threshold: float | None = None,
        tta: bool = False,
        cancel: Event | None = None,
    ) -> Segmentation:
        """Segment one scan.

        Parameters
        ----------
        progress : called with windows done and windows in all.
        cancel : set it, from any thread, and the call ends with the window in hand.
        overlap, threshold : in place of the manifest's.
        tta : average over mirrorings in the axial plane; four times the work.

        Raises
        ------
        InputError : if the volume holds no body.
        MemoryBudgetError : if the scan does not fit the budget.
        CancelledError : if `cancel` was set.
        UsageError : if `overlap` or `threshold` is out of range.
        """
        overlap = self.manifest.overlap if overlap is None else overlap
        threshold = self.manifest.threshold if threshold is None else threshold
        check_options(overlap, threshold)
        clock = _Clock()
        room = MAX_NETWORK_VOXELS if self.budget is None else self.budget.network_voxels(volume.array.size)
        network_input = preprocess(volume, self.manifest.preprocessing, room)
        clock.stop("preprocessing")
        on_network_grid = self.probabilities(network_input, overlap, tta, _cancellable(progress, cancel))
        clock.stop("inference")
        frame, warnings = network_input.frame, _warnings(network_input, volume.unit, self.manifest)
        body_median, cut_off = network_input.body_median, network_input.cut_off
        del network_input  # a volume less in memory from here on
        probabilities = restore(on_network_grid, frame)
        del on_network_grid
        mask = threshold_mask(probabilities, threshold)
        lesion_labels = label_lesions(mask)
        clock.stop("postprocessing")
        statistics = quantify(volume, lesion_labels, probabilities)
        warnings += _pale(statistics, body_median)
        if cut_off <= _CUT_OFF:  # around a tumour that fills the image it is no wonder, and that is warned of
            body_level = self.manifest.preprocessing.body_threshold * body_median
            warnings += _large(volume, statistics, body_level)
        clock.stop("quantification")
        return Segmentation(mask, lesion_labels, probabilities, volume.geometry, statistics, clock.seconds, warnings)

    def probabilities(
        self, network_input: NetworkInput, overlap: float, tta: bool = False, progress: Progress | None = None
    ) -> FloatArray:
        """Probabilities `(z, y, x)` on the network's grid."""
        mirrorings = _MIRRORINGS if tta else _NO_MIRRORING
        window = fitted_window(self.manifest.patch_size, self.manifest.fit_multiple, network_input.array.shape)

        def mirrored(turn: int) -> FloatArray:
            def report(done: int, windows: int) -> None:
                if progress:
                    progress(turn * windows + done, len(mirrorings) * windows)

            axes = mirrorings[turn]
            probabilities = sliding_window_probabilities(
                np.flip(network_input.array, axes),
                window,
                overlap,
                network_input.air,
                partial(self._predict, window=window),
                report,
                network_input.body_level,
            )
            return np.flip(probabilities, axes)

        total = mirrored(0)
        for turn in range(1, len(mirrorings)):
            total += mirrored(turn)
        total /= np.float32(len(mirrorings))
        # Probabilities that are not numbers would fall below every threshold, and a tumour vanish in silence.
        if not (total.min() >= -_ROUNDING and total.max() <= 1 + _ROUNDING):
            raise ModelError(
                f"The model gave values from {total.min()} to {total.max()}, expected probabilities. Do not use it."
            )
        np.clip(total, 0.0, 1.0, out=total)
        return total

    def _predict(self, windows: Iterable[FloatArray], window: Shape) -> Iterator[FloatArray]:
        for probabilities in self._backend.predict(windows):
            if probabilities.shape != (1, 1, *window):
                raise ModelError(
                    f"The model made {probabilities.shape} of a window {(1, 1, *window)}, expected the same shape. "
                    "Export it again."
                )
            yield probabilities


def _warnings(network_input: NetworkInput, unit: Unit, manifest: ModelManifest) -> tuple[str, ...]:
    """What the model does not know of such a scan: all that it may get wrong in silence."""
    length_mm = network_input.frame.shape[0] * manifest.preprocessing.spacing_mm[0]
    longest_mm = manifest.longest_body_mm
    found = []
    if longest_mm and length_mm > _LONGER * longest_mm:
        found.append(
            f"The body in the scan is {length_mm:.0f} mm long, and the model is for {longest_mm:.0f} mm at most: it "
            "does not know all of these organs, and may mark them. Cut the scan, across the body only, to the region "
            "that it is for."
        )
    cut_off = network_input.cut_off
    if cut_off > _CUT_OFF:
        found.append(
            f"The scan cuts the body off at its side, of which {100 * cut_off:.0f} % are body: the model is "
            "for whole bodies, and may mark much that is no tumour, or miss it. Pass the scan at its full width."
        )
    if network_input.doubtful:
        found.append(_doubt(unit, network_input.body_median))
    return tuple(found)


def _pale(statistics: ScanStatistics, body_median: float) -> tuple[str, ...]:
    """A warning of a mask as pale as the body; both in the scan's unit."""
    mean = statistics.tumour.intensity_mean
    if mean is None or mean >= _AS_PALE_AS_NONE * body_median:
        return ()
    return (
        f"What is marked has {mean / body_median:.1f} times the uptake of the body (median), less than tumours have: "
        "it may be none. Look at the mask.",
    )


def _large(volume: Volume, statistics: ScanStatistics, body_level: float) -> tuple[str, ...]:
    """A warning of a mask that is much of the body, which is what lies above `body_level` of a whole scan."""
    tumour_ml = statistics.tumour.mtv_ml
    if not tumour_ml:
        return ()
    share = tumour_ml / (np.count_nonzero(volume.array > body_level) * volume.geometry.voxel_volume_ml)
    if share <= _AS_LARGE_AS_NONE:
        return ()
    return (
        f"What is marked is {100 * share:.0f} % of the body in the scan, more than tumours are of a whole one: it may "
        "be an organ, such as the brain. Look at the mask.",
    )


def _doubt(unit: Unit, body_median: float) -> str:
    """Why what was taken for the body may be something else, and what to do."""
    if unit is Unit.SUVBW:
        return (
            f"What passes for the body has an SUV of {body_median:.1f} in the median, expected {MAX_BODY_SUV:g} at "
            "most: something very hot hides it, or the numbers are no SUV, and the mask may be wrong. Check them, or "
            "pass the whole scan."
        )
    to_do = (
        f"Pass {OPTIONS[WEIGHT]} and {OPTIONS[DOSE]}, which make SUV of it"
        if unit is Unit.BQML
        else "Pass --unit where you know it"
    )
    return (
        "The body in the scan is small, and without SUV something very hot, or air, may pass for it: the mask may be "
        f"wrong. {to_do}, or pass the whole scan."
    )


def check_options(overlap: float | None, threshold: float | None) -> None:
    """Refuse what no model can be run with; None stands for the model's own.

    Raises
    ------
    UsageError : if `overlap` is not 0 to 0.9, or `threshold` not in `manifest.THRESHOLD_RANGE`.
    """
    if overlap is not None and not 0 <= overlap <= MAX_OVERLAP:
        raise UsageError(f"overlap is {overlap}, expected 0 to {MAX_OVERLAP}.")
    if threshold is not None and not is_threshold(threshold):
        low, high = THRESHOLD_RANGE
        raise UsageError(f"threshold is {threshold}, expected {low:g} to {high:g}.")


def model_digest(model: Path | None) -> str:
    """The digest that a `Segmenter` of this model has, without loading it.

    Raises
    ------
    ModelError : as `Segmenter`.
    """
    if model is not None and model.suffix == ENGINE_SUFFIX:
        return read_engine(model).sha256
    with as_file(files("petseg_runtime") / "models" / BUNDLED_MODEL) as bundled:
        return read_model(model or bundled).sha256


def check_threads(threads: int | None) -> None:
    """Refuse a number of threads that no machine has; None is the backend's own.

    Raises
    ------
    UsageError : if it is not 1 to 512.
    """
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise UsageError(f"threads is {threads}, expected 1 to {MAX_THREADS}.")


def user_cache() -> Path | None:
    """Where compiled networks are kept for a user, by the XDG base directory specification; None without a home."""
    folder = user_folder("XDG_CACHE_HOME", ".cache")
    return None if folder is None else folder / "petseg"


def _cancellable(progress: Progress | None, cancel: Event | None) -> Progress | None:
    """Progress that raises once it is not to go on."""
    if cancel is None:
        return progress

    def report(done: int, windows: int) -> None:
        if cancel.is_set():
            raise CancelledError("The scan was cancelled.")
        if progress:
            progress(done, windows)

    return report


def _engine_beside(path: Path, model: ModelFile, precision: str, key: Path | None) -> EngineFile:
    if key is not None:
        check_signature(path, key)
    engine = read_engine(path)
    check_origin(engine, model)
    _check_precision(engine, precision)
    return engine


def _check_precision(engine: EngineFile, wanted: str) -> None:
    if wanted not in ("auto", engine.info.precision):
        raise BackendError(
            f"The engine computes in {engine.info.precision}, not {wanted}. Leave out --precision, or pass the .onnx "
            "file with --device cpu."
        )


def _passed_bf16(record: Record | None) -> bool:
    if record is None or not any(outcome.precision == "bf16" for outcome in record.outcomes):
        return False  # without the import
    from petseg_runtime.backends.openvino import backend_name, has_bf16

    return record.passed(backend_name("bf16")) is True and has_bf16()


class _Clock:
    """Wall time of consecutive stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started = perf_counter()

    def stop(self, stage: str) -> None:
        now = perf_counter()
        self.seconds[stage] = round(now - self._started, 4)
        self._started = now
