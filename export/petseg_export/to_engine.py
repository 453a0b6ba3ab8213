"""ONNX to a TensorRT engine. TensorRT for RTX builds without a GPU; classic TensorRT on the machine that will run it.

One piece of code drives both, as their modules have the same shape. Networks are strongly typed: the precision is
that of the ONNX graph (see `precision`), which is all that TensorRT 11 knows.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from threading import Event, current_thread, main_thread
from typing import Any

from petseg_runtime.backends.gpu import compute_capability, gpu_name
from petseg_runtime.backends.tensorrt import new_logger
from petseg_runtime.engine import (
    ENGINE_SUFFIX,
    FLAVOURS,
    PORTABLE,
    PRECISIONS,
    TURING,
    EngineInfo,
    engine_content,
    read_engine,
)
from petseg_runtime.errors import BackendError, ModelError, UsageError
from petseg_runtime.manifest import ModelFile, read_model
from petseg_runtime.outputs.files import whole_file

Progress = Callable[[str, int, int], None]

# Windows of one scan, more or less; the builder plans memory for as many as it is told.
MAX_BATCH = 256


def build_engine(
    model: Path,
    output: Path,
    flavour: str = FLAVOURS[0],
    precision: str = "f32",
    compute_capabilities: Sequence[str] = (),
    max_batch: int = 1,
    progress: Progress | None = None,
) -> EngineInfo:
    """Build the engine of an ONNX model and write it with its manifest.

    Parameters
    ----------
    flavour : "tensorrt_rtx", ahead of time and without a GPU; or "tensorrt", for the GPU of this machine.
    precision : "f32" or "fp16" (norms, global means and the head stay in f32).
    compute_capabilities : of the GPUs to serve; none means `PORTABLE` for tensorrt_rtx, this machine's for tensorrt.
    max_batch : windows at once, at most; petseg-run computes one, and each more takes the GPU's memory for it.
    progress : called with a phase of the builder, its steps done and its steps in all.

    Raises
    ------
    UsageError : if `output` is not an .engine file or cannot be written, or precision, capabilities or batch cannot be
        combined.
    BackendError : if the flavour is not installed, or has no GPU where it needs one.
    ModelError : if the model cannot be read, parsed or built.
    """
    if output.suffix != ENGINE_SUFFIX:
        raise UsageError(f"{output.name} does not end in {ENGINE_SUFFIX}. Choose a name that does.")
    if flavour not in FLAVOURS or precision not in PRECISIONS or not 1 <= max_batch <= MAX_BATCH:
        raise UsageError(
            f"Flavour {flavour}, precision {precision}, batch {max_batch}: expected {' or '.join(FLAVOURS)}, "
            f"{' or '.join(PRECISIONS)}, 1 to {MAX_BATCH}."
        )
    trt = _module(flavour)
    capabilities = _capabilities(trt, flavour, precision, compute_capabilities)
    model_file = read_model(model)
    content = model_file.content
    if precision == "fp16":
        from petseg_export.precision import to_mixed_fp16

        content = to_mixed_fp16(content, turing=TURING in capabilities)
    engine = _build(trt, content, model_file, capabilities if flavour == "tensorrt_rtx" else (), max_batch, progress)
    info = EngineInfo(
        flavour=flavour,
        version=trt.__version__,
        precision=precision,
        compute_capabilities=tuple(capabilities),
        max_batch=max_batch,
        onnx_sha256=model_file.sha256,
        gpu=gpu_name(0) if flavour == "tensorrt" else "",
    )
    with whole_file(output) as temporary:
        temporary.write_bytes(engine_content(engine, info, model_file.manifest))
    return read_engine(output).info  # with its digest


def _module(flavour: str) -> Any:
    try:
        return import_module(flavour)
    except ImportError as error:  # also where its bindings are there without the libraries
        package = "petseg[engine]" if flavour == "tensorrt_rtx" else "tensorrt (beside an NVIDIA driver)"
        raise BackendError(f"{flavour} is not installed, or not whole: {error}. Install {package}.") from error


def _capabilities(trt: Any, flavour: str, precision: str, wanted: Sequence[str]) -> tuple[str, ...]:
    if flavour == "tensorrt":
        here = compute_capability(0)
        if wanted and list(wanted) != [here]:
            raise UsageError(f"Classic TensorRT builds for the GPU of this machine, which is {here}.")
        return (here,)
    wanted = tuple(dict.fromkeys(wanted)) or PORTABLE
    known = {f"{name[2:-1]}.{name[-1]}" for name in trt.ComputeCapability.__members__ if name.startswith("SM")}
    unknown = [capability for capability in wanted if capability not in known]
    if unknown:
        raise UsageError(
            f"Compute capability {', '.join(unknown)} has no engine of TensorRT for RTX {trt.__version__}; there are "
            f"{', '.join(sorted(known, key=float))}. Data-centre GPUs take --flavour tensorrt."
        )
    if TURING in wanted and (len(wanted) > 1 or precision != "fp16"):
        raise UsageError("Turing (7.5) takes an engine of its own, with --precision fp16 and no other capability.")
    return wanted


def _build(
    trt: Any, content: bytes, model: ModelFile, capabilities: Sequence[str], max_batch: int, progress: Progress | None
) -> bytes:
    logger = new_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)  # kept until the build is done: the network refers to its weights
    if not parser.parse(content):
        errors = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise ModelError(f"TensorRT cannot parse the model: {_line(errors)}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # rounds to ten bits what is called f32
    name, patch = network.get_input(0).name, model.manifest.patch_size
    profile = builder.create_optimization_profile()
    smallest = [2 * model.manifest.fit_multiple] * 3 if model.manifest.fit_multiple else patch
    profile.set_shape(name, (1, 1, *smallest), (1, 1, *patch), (max_batch, 1, *patch))
    sizes = f"build for windows of {smallest} to {patch}"
    _taken(config.add_optimization_profile(profile) >= 0, logger, sizes)
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            member = getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}")
            _taken(config.set_compute_capability(member, index), logger, f"build for GPUs of {capability}")
    failures: list[Exception] = []
    with _interrupts() as interrupted:
        config.progress_monitor = _monitor(trt, progress, interrupted, failures)
        engine = builder.build_serialized_network(network, config)
    if failures:
        raise failures[0]
    if interrupted.is_set():
        signal.raise_signal(signal.SIGINT)  # to whom it was for
        raise KeyboardInterrupt
    _taken(engine is not None, logger, "build the model")
    return bytes(engine)


def _taken(taken: bool, logger: Any, what: str) -> None:
    if not taken:
        raise ModelError(f"TensorRT cannot {what}: {_line('; '.join(logger.errors)) or 'no reason given'}")


@contextmanager
def _interrupts() -> Iterator[Event]:
    """Keep Ctrl-C for after the block: an exception in one of the builder's callbacks is swallowed there."""
    interrupted, before = Event(), signal.getsignal(signal.SIGINT)
    if current_thread() is not main_thread() or before in (signal.SIG_IGN, None):
        yield interrupted
        return

    def note(*_: object) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, before)  # a second one is as ever

    signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _monitor(trt: Any, progress: Progress | None, interrupted: Event, failures: list[Exception]) -> Any:
    """Stops the build at Ctrl-C, and where `progress` fails; what it raises is kept, as the builder swallows it."""
    steps: dict[str, int] = {}

    def show(phase: str, done: int) -> None:
        if progress is None or failures:
            return
        try:
            progress(phase, done, steps[phase])
        except Exception as error:
            failures.append(error)

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, _: str | None, count: int) -> None:
            steps[phase] = count
            show(phase, 0)

        def step_complete(self, phase: str, step: int) -> bool:
            show(phase, step + 1)
            return not (interrupted.is_set() or failures)  # whether to go on

        def phase_finish(self, phase: str) -> None:
            show(phase, steps[phase])

    return Monitor()


def _line(text: str) -> str:
    return " ".join(text.split())[:400]
