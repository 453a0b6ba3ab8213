"""TensorRT on an NVIDIA GPU: the only module that touches CUDA, through cuda-core and TensorRT itself.

A thread has two slots, each with a stream, an execution context and its buffers. While one slot computes a window, the
other takes the next one's copy, so copies hide behind the compute. Every call's failure is an error here: cuda-core
raises by itself, and what TensorRT returns is looked at.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from petseg_runtime.engine import EngineFile
from petseg_runtime.errors import BackendError, ModelError
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


class TensorRtBackend:
    """An engine on one GPU, for any number of threads; a context manager, and `close` gives the GPU's memory back.

    Parameters
    ----------
    engine : from `petseg_runtime.engine.read_engine`, which has checked its digest.
    gpu : index of the GPU.
    cache : file that keeps what TensorRT for RTX compiles for this GPU at first use; None keeps it in memory only.

    Raises
    ------
    BackendError : if the flavour of TensorRT, the driver or the GPU is absent.
    ModelError : if the engine does not fit this version of TensorRT or this GPU, with the command that rebuilds it.
    """

    def __init__(self, engine: EngineFile, gpu: int = 0, cache: Path | None = None) -> None:
        info = engine.info
        self._trt = _module(info.flavour)
        check_fit(engine, self._trt.__version__, compute_capability(gpu))
        self._gpu, self._cache_file = gpu, cache
        self._shape = (1, 1, *engine.manifest.patch_size)
        device = _device(gpu)
        device.set_current()
        self._runtime = self._trt.Runtime(self._trt.Logger(self._trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(engine.engine)
        if self._engine is None:
            raise ModelError(f"TensorRT refuses the engine on this GPU. {info.rebuild}")
        self._input, self._output = _tensor_names(self._trt, self._engine)
        self._config, self._cache = self._runtime_config()
        self._threads = threading.local()
        self._slots: list[_Slot] = []
        self._lock = threading.Lock()
        self.device = f"gpu:{gpu}"
        self.name = f"{info.flavour} {info.version}, {device.name}, {info.precision}"

    def __enter__(self) -> TensorRtBackend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the buffers of every thread, and keep what TensorRT compiled."""
        self._save_cache()
        with self._lock:
            while self._slots:
                self._slots.pop().close()
        self._threads = threading.local()

    def predict(self, windows: Iterable[FloatArray]) -> Iterator[FloatArray]:
        """Probabilities `(1, 1, z, y, x)` of each window, in order; one window is on its way while another computes."""
        slots = self._own_slots()
        waiting: list[_Slot] = []
        try:
            for count, window in enumerate(windows):
                if len(waiting) == len(slots):
                    yield waiting.pop(0).result()
                slot = slots[count % len(slots)]
                slot.start(window)
                waiting.append(slot)
            while waiting:
                yield waiting.pop(0).result()
        except (BackendError, ModelError):
            raise
        except Exception as error:  # cuda-core's errors share no base class
            raise BackendError(f"TensorRT cannot run the model on GPU {self._gpu}: {_line(error)}") from error
        finally:
            for slot in waiting:  # the consumer stopped early: nothing may still write into the buffers
                with suppress(Exception):
                    slot.result()

    def _own_slots(self) -> list[_Slot]:
        device = _device(self._gpu)
        device.set_current()  # the current device belongs to the thread
        if not hasattr(self._threads, "slots"):
            try:
                slots = [_Slot(device, self._context(), self._input, self._output, self._shape) for _ in range(_SLOTS)]
            except Exception as error:  # cuda-core's errors share no base class
                raise BackendError(f"GPU {self._gpu} has no room for the model: {_line(error)}") from error
            self._threads.slots = slots
            with self._lock:
                self._slots += slots
        own: list[_Slot] = self._threads.slots
        return own

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
        """TensorRT for RTX compiles for the GPU at first use; the cache keeps that for all contexts and in the file."""
        if not hasattr(self._engine, "create_runtime_config"):
            return None, None
        config = self._engine.create_runtime_config()
        if not hasattr(config, "create_runtime_cache"):
            return config, None
        cache = config.create_runtime_cache()
        if self._cache_file is not None and self._cache_file.is_file():
            cache.deserialize(self._cache_file.read_bytes())
        config.set_runtime_cache(cache)
        return config, cache

    def _save_cache(self) -> None:
        if self._cache is None or self._cache_file is None:
            return
        with suppress(OSError):  # a model folder that cannot be written costs seconds at the next start, no more
            self._cache_file.write_bytes(bytes(self._cache.serialize()))


def check_fit(engine: EngineFile, version: str, capability: str) -> None:
    """Refuse an engine of another version of TensorRT, or for other GPUs.

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
            f"{capability}. {info.rebuild}"
        )


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


def _module(flavour: str) -> Any:
    try:
        return import_module(flavour)
    except ImportError as error:
        raise BackendError(f"{flavour} is not installed. Install petseg[gpu], or pass the .onnx file.") from error


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
    return inputs[0], outputs[0]


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")[:300] or type(error).__name__
