"""TensorRT on an NVIDIA GPU: the only module that touches CUDA, through cuda-core and TensorRT itself.

A scan borrows two slots, each with a stream, an execution context and its buffers. While one slot computes a window,
the other takes the next one's copy, so copies hide behind the compute. Every call's failure is an error here: cuda-core
raises by itself, and what TensorRT returns is looked at.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from petseg_runtime.backends.compiled import CompiledNetworks
from petseg_runtime.engine import FLAVOURS, EngineFile
from petseg_runtime.errors import BackendError, ModelError, PetsegError
from petseg_runtime.volume import FloatArray

_SLOTS = 2


def compute_capability(gpu: int) -> str:
    """Compute capability of a GPU, such as "8.6".

    Raises
    ------
    BackendError : if there is no NVIDIA driver, or no such GPU.
    """
    capability = _device(gpu).compute_capability
    return f"{capability.major}.{capability.minor}"


def gpu_name(gpu: int) -> str:
    """The GPU's model, such as "NVIDIA RTX A4000".

    Raises
    ------
    BackendError : as for `compute_capability`.
    """
    return str(_device(gpu).name)


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
        info = engine.info
        self._trt = _module(info.flavour)
        check_fit(engine, self._trt.__version__, compute_capability(gpu), gpu_name(gpu))
        self._gpu, self._shape = gpu, (1, 1, *engine.manifest.patch_size)
        self._lock = threading.Lock()
        with _as_backend_error(f"TensorRT does not work on GPU {gpu}"):
            device = _device(gpu)
            device.set_current()
            self._runtime = self._trt.Runtime(self._trt.Logger(self._trt.Logger.ERROR))
            self._engine = self._runtime.deserialize_cuda_engine(engine.engine)
            if self._engine is None:
                raise ModelError(f"TensorRT refuses the engine on this GPU. {info.rebuild}")
            self._input, self._output = _tensor_names(self._trt, self._engine)
            self._kept = None if cache is None else CompiledNetworks(cache, repr((engine.sha256, device.name)))
            self._config, self._cache = self._runtime_config()
            self._compiled_shapes: set[tuple[int, ...]] = set()
            # At once, so that a GPU without room is passed over before it is chosen.
            self._idle = [self._new_slots(device)]
        self.device = f"gpu:{gpu}"
        # Another build of the same model may choose other kernels, and is another backend to the self-test's record.
        self.name = f"{info.flavour} {info.version}, {device.name}, engine {engine.sha256[:12]}, {info.precision}"

    def __enter__(self) -> TensorRtBackend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the buffers that no scan is using."""
        _device(self._gpu).set_current()
        with self._lock:
            while self._idle:
                for slot in self._idle.pop():
                    slot.close()

    def predict(self, windows: Iterable[FloatArray]) -> Iterator[FloatArray]:
        """Probabilities `(1, 1, z, y, x)` of each window, in order; one window is on its way while another computes."""
        with _as_backend_error(f"TensorRT cannot run the model on GPU {self._gpu}"), self._borrowed() as slots:
            waiting: list[_Slot] = []
            shapes = set()
            try:
                for count, window in enumerate(windows):
                    if len(waiting) == len(slots):
                        yield waiting.pop(0).result()
                    slot = slots[count % len(slots)]
                    slot.start(window)
                    waiting.append(slot)
                    shapes.add(window.shape)
                while waiting:
                    yield waiting.pop(0).result()
            finally:
                for slot in waiting:  # the consumer stopped early: nothing may still write into the buffers
                    with suppress(Exception):
                        slot.result()
            self._keep_compiled(shapes)

    @contextmanager
    def _borrowed(self) -> Iterator[list[_Slot]]:
        """Slots that nobody else uses. They come back unless something failed: then they are not to be trusted."""
        device = _device(self._gpu)
        device.set_current()  # the current device belongs to the thread
        with self._lock:
            slots = self._idle.pop() if self._idle else None
        slots = slots or self._new_slots(device)
        try:
            yield slots
        except Exception:
            for slot in slots:
                with suppress(Exception):
                    slot.close()
            raise
        except GeneratorExit:  # the consumer stopped early, and nothing is on its way
            self._give_back(slots)
            raise
        self._give_back(slots)

    def _give_back(self, slots: list[_Slot]) -> None:
        with self._lock:
            self._idle.append(slots)

    def _new_slots(self, device: Any) -> list[_Slot]:
        with _as_backend_error(f"GPU {self._gpu} has no room for the model"):
            return [_Slot(device, self._context(), self._input, self._output, self._shape) for _ in range(_SLOTS)]

    def _context(self) -> Any:
        with self._lock:
            if self._config is None:
                context = self._engine.create_execution_context()
            else:
                context = self._engine.create_execution_context(self._config)
        if context is None:
            raise BackendError(f"TensorRT has no execution context on GPU {self._gpu}: out of GPU memory?")
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
        if self._cache is None or self._kept is None or shapes <= self._compiled_shapes:
            return
        with self._lock, suppress(Exception):  # costs seconds at the next start, no more
            self._compiled_shapes |= shapes
            compiled = bytes(self._cache.serialize())
            if compiled != self._on_disk:
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
        raise ModelError(f"The engine is for {info.flavour} {info.version}, here is {version}. {info.rebuild}")
    if capability not in info.compute_capabilities:
        raise ModelError(
            f"The engine is for GPUs of compute capability {', '.join(info.compute_capabilities)}, here is "
            f"{capability}. {info.rebuild} --compute-capability {capability}"
        )
    if info.gpu and info.gpu != gpu:
        raise ModelError(f"The engine is for {info.gpu}, here is {gpu}. {info.rebuild}")


class _Slot:
    """A stream, an execution context, and the buffers of one window on both sides."""

    def __init__(self, device: Any, context: Any, input_name: str, output_name: str, shape: tuple[int, ...]) -> None:
        from cuda.core import LegacyPinnedMemoryResource

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
        if window.shape != self._shape:
            if window.size > self._in.size or not self._context.set_input_shape(self._input, window.shape):
                raise BackendError(f"The engine does not take windows of {window.shape}.")
            self._shape = window.shape
        np.copyto(self._in[: window.size], window.ravel())
        self._host_in.copy_to(self._device_in, stream=self._stream)
        if not self._context.execute_async_v3(int(self._stream.handle)):
            raise BackendError("TensorRT did not start the network.")
        self._device_out.copy_to(self._host_out, stream=self._stream)

    def result(self) -> FloatArray:
        """Wait for the window that was started."""
        self._stream.sync()
        return self._out[: int(np.prod(self._shape))].reshape(self._shape).copy()

    def close(self) -> None:
        del self._in, self._out, self._context
        for buffer in (self._device_in, self._device_out):
            buffer.close(self._stream)
        for buffer in (self._host_in, self._host_out):
            buffer.close()
        self._stream.close()


@contextmanager
def _as_backend_error(what: str) -> Iterator[None]:
    """Any failure as a `BackendError`: those of cuda-core and TensorRT share no base class."""
    try:
        yield
    except PetsegError:
        raise
    except Exception as error:
        raise BackendError(f"{what}: {_line(error)}") from error


def _module(flavour: str) -> Any:
    try:
        return import_module(flavour)
    except ImportError as error:
        package = "petseg[gpu]" if flavour == FLAVOURS[0] else f"{flavour}, which petseg[gpu] does not bring"
        raise BackendError(f"{flavour} is not installed. Install {package}, or pass the .onnx file.") from error


def _device(gpu: int) -> Any:
    try:
        from cuda.core import Device

        return Device(gpu)
    except ImportError as error:
        raise BackendError("cuda-core is not installed. Install petseg[gpu], or pass the .onnx file.") from error
    except Exception as error:  # no driver, or no such device: cuda-core's errors share no base class
        raise BackendError(f"There is no NVIDIA GPU {gpu} here: {_line(error)}") from error


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


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")[:300] or type(error).__name__
