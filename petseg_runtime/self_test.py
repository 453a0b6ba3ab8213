"""The self-test: every backend and precision of this machine on the windows whose results the model carries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path

from petseg_runtime import __version__
from petseg_runtime.backends import Backend, has_gpu_build
from petseg_runtime.commissioning import Outcome, Record, examine, new_record, record_path, unpack
from petseg_runtime.engine import ENGINE_SUFFIX, check_origin, read_engine
from petseg_runtime.errors import BackendError, ModelError, UsageError
from petseg_runtime.manifest import ModelFile, read_model
from petseg_runtime.outputs.files import prepare_folder, write_json
from petseg_runtime.segmenter import BUNDLED_MODEL, check_threads


def self_test(model: Path | None = None, threads: int | None = None) -> tuple[Record, tuple[str, ...]]:
    """Run the self-test of a model; nothing is kept (see `keep`).

    Parameters
    ----------
    model : .onnx file, the bundled model by default; an engine of the same name beside it is tested too.

    Returns
    -------
    The record, and a sentence for each backend that could not be opened.

    Raises
    ------
    ModelError : if the model carries no results to compare with.
    UsageError : if `threads` is not 1 to 512.
    BackendError : if no backend could be opened.
    """
    check_threads(threads)
    with ExitStack() as stack:
        path = model or stack.enter_context(as_file(files("petseg_runtime") / "models" / BUNDLED_MODEL))
        model_file = read_model(path)
        if not model_file.results:
            raise ModelError(f"{path.name} carries no results to test against. Export it with petseg-export onnx.")
        expected = unpack(model_file.results, model_file.manifest.patch_size)
        outcomes: list[Outcome] = []
        passed_over = []
        for opened in candidates(model_file, path, threads):
            try:
                backend = opened()
                outcomes.append(examine(backend.name, backend.predict, expected, model_file.manifest))
            except (BackendError, ModelError) as error:
                passed_over.append(str(error))
    if not outcomes:
        raise BackendError(f"No backend of this machine could be tested: {' '.join(passed_over)}")
    return new_record(model_file.sha256, outcomes), tuple(passed_over)


def keep(record: Record) -> Path:
    """Keep the record where `commissioning.kept` finds it; returns the file.

    Raises
    ------
    UsageError : if it cannot be written.
    """
    path = record_path(record.model_sha256)
    if path is None:
        raise UsageError("There is no home folder to keep the record in. Set HOME or XDG_STATE_HOME.")
    try:
        prepare_folder(path.parent)
    except UsageError as error:
        raise UsageError("The record cannot be written below the home folder. Set XDG_STATE_HOME.") from error
    write_record(record, path)
    return path


def write_record(record: Record, path: Path) -> None:
    """Write the record as JSON, with the version that made it."""
    write_json({"petseg_version": __version__, **record.to_json()}, path)


def candidates(model: ModelFile, path: Path, threads: int | None) -> Iterator[Callable[[], Backend]]:
    """How to open each backend and precision that could run the model here, ONNX Runtime first; opening may fail."""
    from petseg_runtime.backends.openvino import OpenVinoBackend, has_bf16

    if find_spec("onnxruntime") is not None:
        yield partial(_onnxruntime, model, None, threads)
        if has_gpu_build():
            yield partial(_onnxruntime, model, 0, threads)
    yield lambda: OpenVinoBackend(model.content, threads)
    if has_bf16():
        yield lambda: OpenVinoBackend(model.content, threads, "bf16")
    beside = path.with_suffix(ENGINE_SUFFIX)
    if beside.is_file():
        yield partial(_tensorrt, model, beside)


def _onnxruntime(model: ModelFile, gpu: int | None, threads: int | None) -> Backend:
    from petseg_runtime.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(model.content, gpu, threads, varying=bool(model.manifest.fit_multiple))


def _tensorrt(model: ModelFile, beside: Path) -> Backend:
    from petseg_runtime.backends.tensorrt import TensorRtBackend

    engine = read_engine(beside)
    check_origin(engine, model)
    return TensorRtBackend(engine)
