"""TensorRT on an NVIDIA GPU: beside `gpu` the only module that touches CUDA, through cuda-core and TensorRT itself.

A scan borrows two slots, each with a stream, an execution context and its buffers. While one slot computes a window,
the other takes the next one's copy, so copies hide behind the compute. Every call's failure is an error here: cuda-core
raises by itself, and what TensorRT returns is looked at.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from petseg_runtime.backends.base import one_line
from petseg_runtime.backends.compiled import CompiledNetworks
from petseg_runtime.backends.gpu import compute_capability, current, gpu_name
from petseg_runtime.engine import FLAVOURS, EngineFile
from petseg_runtime.errors import BackendError, ModelError, PetsegError
from petseg_runtime.volume import FloatArray

_SLOTS = 2
_OF_CUDA = re.compile(r"cuda ?(error|driver|runtime)|out ?of ?memory", re.IGNORECASE)


class TensorRtBackend:
    """An engine on one GPU, for any number of threads; a context manager, and `close` gives the GPU's memory back.

    Parameters
    ----------
    engine : from `petseg_runtime.engine.read_engine`, which has checked its digest.
    gpu : index of the GPU.
    cache : folder that keeps what TensorRT for RTX compiles for this GPU at the first window of a size; None keeps it
        in memory only.

    Raises
    ------
    BackendError : if the flavour of TensorRT, the driver or the GPU is absent, or the GPU has no room.
    ModelError : if the engine does not fit this version of TensorRT or this GPU, with the command that rebuilds it.
    """

    def __init__(self, engine: EngineFile, gpu: int = 0, cache: Path | None = None) -> None:
        info, capability = engine.info, compute_capability(gpu)
        self._trt = _module(info.flavour)
        check_fit(engine, self._trt.__version__, capability, gpu_name(gpu))
        self._gpu, self._shape = gpu, (1, 1, *engine.manifest.patch_size)
        self._lock = threading.Lock()
        self._logger = new_logger(self._trt)
        with _as_backend_error(f"TensorRT does not work on GPU {gpu}"):
            with current(gpu) as device:
                self._runtime = self._trt.Runtime(self._logger)
                self._engine = self._runtime.deserialize_cuda_engine(engine.engine)
                if self._engine is None:
                    raise _refusal(f"TensorRT refuses the engine on GPU {gpu}", self._logger, info.rebuild(capability))
                self._input, self._output = _tensor_names(self._trt, self._engine)
                self._kept = None if cache is None else CompiledNetworks(cache, repr((engine.sha256, device.name)))
                self._config, self._cache = self._runtime_config()
            self._compiled_shapes: set[tuple[int, ...]] = set()
            # At once, so that a GPU without room is passed over before it is chosen.
            self._idle = [self._new_slots()]
        self.device = f"gpu:{gpu}"
        # Another build of the same model may choose other kernels, and is another backend to the self-test's record.
        self.name = f"{info.flavour} {info.version}, {device.name}, engine {engine.sha256[:12]}, {info.precision}"

    def __enter__(self) -> TensorRtBackend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free what no scan is using, and the rest as soon as its scan ends."""
        with self._lock, current(self._gpu):
            while self._idle:
                _close(self._idle.pop())
            self._config = self._cache = self._engine = self._runtime = None

    def predict(self, windows: Iterable[FloatArray]) -> Iterator[FloatArray]:
        """Probabilities `(1, 1, z, y, x)` of each window, in order; one window is on its way while another computes."""
        with _as_backend_error(f"TensorRT cannot run the model on GPU {self._gpu}"), self._borrowed() as slots:
            waiting: list[_Slot] = []
            shapes = set()
            for count, window in enumerate(windows):
                if len(waiting) == len(slots):
                    yield waiting.pop(0).result()
                slot = slots[count % len(slots)]
                slot.start(window)
                waiting.append(slot)
                shapes.add(window.shape)
            while waiting:
                yield waiting.pop(0).result()
            self._keep_compiled(shapes)

    @contextmanager
    def _borrowed(self) -> Iterator[list[_Slot]]:
        """Slots that nobody else uses. They come back unless something failed: then they are not to be trusted."""
        with self._lock:
            slots = self._idle.pop() if self._idle else None
        slots = slots or self._new_slots()
        try:
            yield slots
        except GeneratorExit:  # the consumer stopped early
            self._give_back(slots)
            raise
        except BaseException:
            _close(slots)
            raise
        self._give_back(slots)

    def _give_back(self, slots: list[_Slot]) -> None:
        try:
            for slot in slots:
                slot.wait()  # nothing may still write into the buffers
        except Exception:
            _close(slots)
            return
        with self._lock:
            if self._engine is not None:
                self._idle.append(slots)
                return
        _close(slots)

    def _new_slots(self) -> list[_Slot]:
        slots: list[_Slot] = []
        with _as_backend_error(f"GPU {self._gpu} has no room for the model"), current(self._gpu) as device:
            try:
                for _ in range(_SLOTS):
                    slots.append(_Slot(device, self._context(), self._logger, self._input, self._output, self._shape))
            except Exception:  # here: cuda-core cannot free them while an exception of its own is on the way
                _close(slots)
                raise
        return slots

    def _context(self) -> Any:
        with self._lock:
            if self._engine is None:
                raise BackendError("The TensorRT backend was closed. Open the model again.")
            if self._config is None:
                context = self._engine.create_execution_context()
            else:
                context = self._engine.create_execution_context(self._config)
        if context is None:
            raise BackendError(
                f"TensorRT has no execution context on GPU {self._gpu}: "
                f"{_last_error(self._logger) or 'out of GPU memory?'}"
            )
        return context

    def _runtime_config(self) -> tuple[Any, Any]:
        """TensorRT for RTX compiles for the GPU at first use; the cache keeps that for all contexts and on the disk.

        It compiles for a window's size before it computes that, and not while it already does with other kernels:
        results do not change between two windows, or two runs.
        """
        if not hasattr(self._engine, "create_runtime_config"):
            return None, None
        config = self._engine.create_runtime_config()
        if hasattr(self._trt, "DynamicShapesKernelSpecializationStrategy"):
            config.dynamic_shapes_kernel_specialization_strategy = (
                self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
            )
        if not hasattr(config, "create_runtime_cache"):
            return config, None
        cache = config.create_runtime_cache()
        self._on_disk = None if self._kept is None else self._kept.read(self._shape)
        if self._on_disk is not None:
            cache.deserialize(self._on_disk)
        config.set_runtime_cache(cache)
        return config, cache

    def _keep_compiled(self, shapes: set[tuple[int, ...]]) -> None:
        """Keep what was compiled for windows of these sizes, if any of them is new."""
        with suppress(Exception):  # costs seconds at the next start, no more
            with self._lock:
                if self._cache is None or self._kept is None or shapes <= self._compiled_shapes:
                    return
                self._compiled_shapes |= shapes
                compiled = bytes(self._cache.serialize())
            if compiled != self._on_disk:  # other scans need not wait for the disk
                self._kept.write(self._shape, compiled)
                self._on_disk = compiled


def check_fit(engine: EngineFile, version: str, capability: str, gpu: str) -> None:
    """Refuse an engine of another version of TensorRT, or for other GPUs than the one of this capability and name.

    Raises
    ------
    ModelError : naming what the engine is for, what is here, and the command that rebuilds it.
    """
    info = engine.info
    if info.version != version:
        raise ModelError(f"The engine is for {info.flavour} {info.version}, here is {version}. {info.rebuild()}")
    if capability not in info.compute_capabilities:
        raise ModelError(
            f"The engine is for GPUs of compute capability {', '.join(info.compute_capabilities)}, here is "
            f"{capability}. {info.rebuild(capability)}"
        )
    if info.gpu and info.gpu != gpu:
        raise ModelError(f"The engine is for {info.gpu}, here is {gpu}. {info.rebuild()}")


class _Slot:
    """A stream, an execution context, and the buffers of one window on both sides.

    Made where its GPU is the current one. That belongs to the thread, and scans of several GPUs may take turns in one,
    so whatever is done with a slot makes it that again.
    """

    def __init__(
        self, device: Any, context: Any, logger: Any, input_name: str, output_name: str, shape: tuple[int, ...]
    ) -> None:
        from cuda.core import LegacyPinnedMemoryResource

        self._gpu, self._logger = device.device_id, logger
        self._context, self._stream = context, device.create_stream()
        size = 4 * int(np.prod(shape))
        pinned = LegacyPinnedMemoryResource()
        self._host_in, self._host_out = pinned.allocate(size), pinned.allocate(size)
        self._device_in = device.allocate(size, stream=self._stream)
        self._device_out = device.allocate(size, stream=self._stream)
        self._in = np.from_dlpack(self._host_in).view(np.float32).reshape(-1)
        self._out = np.from_dlpack(self._host_out).view(np.float32).reshape(-1)
        self._input, self._shape = input_name, shape
        if not context.set_input_shape(input_name, shape):
            raise BackendError(f"The engine does not take windows of {shape}.")
        if tuple(context.get_tensor_shape(output_name)) != shape:
            given = tuple(context.get_tensor_shape(output_name))
            raise ModelError(
                f"The engine makes {given} of windows of {shape}, expected the same. Export the model again."
            )
        for name, buffer in ((input_name, self._device_in), (output_name, self._device_out)):
            if not context.set_tensor_address(name, int(buffer.handle)):
                raise BackendError(f"The engine has no tensor {name}.")

    def start(self, window: FloatArray) -> None:
        """Copy a window to the GPU, compute it, and copy the result back; returns at once."""
        with current(self._gpu):
            if window.shape != self._shape:
                if window.size > self._in.size or not self._context.set_input_shape(self._input, window.shape):
                    raise BackendError(f"The engine does not take windows of {window.shape}.")
                self._shape = window.shape
            np.copyto(self._in[: window.size], window.ravel())
            self._host_in.copy_to(self._device_in, stream=self._stream)
            if not self._context.execute_async_v3(int(self._stream.handle)):
                raise BackendError(
                    f"TensorRT did not start the network: {_last_error(self._logger) or 'no reason given'}"
                )
            self._device_out.copy_to(self._host_out, stream=self._stream)

    def wait(self) -> None:
        """Until nothing is on its way."""
        with current(self._gpu):
            self._stream.sync()

    def result(self) -> FloatArray:
        """Wait for the window that was started."""
        self.wait()
        return self._out[: int(np.prod(self._shape))].reshape(self._shape).copy()

    def close(self) -> None:
        with current(self._gpu):
            with suppress(Exception):  # of a stream that failed; what is freed must not be in use
                self._stream.sync()
            del self._in, self._out, self._context
            for buffer in (self._device_in, self._device_out):
                buffer.close(self._stream)
            for buffer in (self._host_in, self._host_out):
                buffer.close()
            self._stream.close()


def _close(slots: Sequence[_Slot]) -> None:
    for slot in slots:
        with suppress(Exception):  # a GPU that failed may not let go; whoever closes has a better reason to tell
            slot.close()


def new_logger(trt: Any) -> Any:
    """A logger that keeps TensorRT's last errors, in `errors`, for our messages; its own prints them to stdout."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors = deque[str](maxlen=10)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(" ".join(message.split())[:300])

    return Logger()


def _last_error(logger: Any) -> str:
    """What TensorRT said last, if anything; the next failure has a reason of its own."""
    last = str(logger.errors[-1]) if logger.errors else ""
    logger.errors.clear()
    return last


def _refusal(what: str, logger: Any, remedy: str) -> PetsegError:
    """A `ModelError` with the remedy, but for what is CUDA's fault and not the engine's."""
    reason = _last_error(logger)
    if _OF_CUDA.search(reason):
        return BackendError(f"{what}: {reason}. Check the GPU and its driver with nvidia-smi.")
    return ModelError(f"{what}: {reason or 'no reason given'}. {remedy}")


@contextmanager
def _as_backend_error(what: str) -> Iterator[None]:
    """Any failure as a `BackendError`: those of cuda-core and TensorRT share no base class."""
    try:
        yield
    except PetsegError:
        raise
    except Exception as error:
        raise BackendError(f"{what}: {one_line(error)}.") from error


def _module(flavour: str) -> Any:
    try:
        return import_module(flavour)
    except ImportError as error:
        package = "petseg[gpu]" if flavour == FLAVOURS[0] else f"{flavour}, which petseg[gpu] does not bring"
        raise BackendError(f"{flavour} is not installed. Install {package}, or pass the .onnx file.") from error


def _tensor_names(trt: Any, engine: Any) -> tuple[str, str]:
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    outputs = [name for name in names if name not in inputs]
    if (len(inputs), len(outputs)) != (1, 1):
        raise ModelError(f"The engine has {len(inputs)} inputs and {len(outputs)} outputs, expected one of each.")
    odd = [name for name in names if engine.get_tensor_dtype(name) != trt.float32]
    if odd:  # its buffers are float32, and other bytes would be read as that
        raise ModelError(
            f"The engine's {', '.join(odd)} is not float32. Export the model again, and rebuild the engine."
        )
    return inputs[0], outputs[0]
