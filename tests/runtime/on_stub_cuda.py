"""Runs the TensorRT backend on stub_cuda.c, with a TensorRT whose network adds one; see test_tensorrt_on_a_stub.py.

A process of its own: CUDA is loaded once, and a machine may have a real one.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import closing
from enum import IntEnum
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cuda.bindings import driver

from petseg_runtime.backends import tensorrt
from petseg_runtime.engine import EngineFile, EngineInfo
from petseg_runtime.errors import BackendError, ModelError
from petseg_runtime.manifest import read_model

STUB = ctypes.CDLL("libcuda.so.1")
STUB.add_one.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_size_t]


def stub(name: str) -> ctypes.c_long:
    return ctypes.c_long.in_dll(STUB, name)


class Severity(IntEnum):
    ERROR = 1
    WARNING = 2


class Logger:
    Severity = Severity


class Context:
    starts = True

    def __init__(self, logger: Logger) -> None:
        self.logger, self.addresses, self.shape = logger, {}, ()

    def set_input_shape(self, _: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return True

    def get_tensor_shape(self, _: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if not self.starts:
            self.logger.log(Severity.ERROR, "no kernel\nfits")
            self.logger.log(Severity.WARNING, "slow")
            return False
        size = 4 * int(np.prod(self.shape))
        return STUB.add_one(stream, self.addresses["out"], self.addresses["in"], size) == 0


class Engine:
    num_io_tensors = 2

    def __init__(self, logger: Logger) -> None:
        self.logger = logger

    def get_tensor_name(self, index: int) -> str:
        return ("in", "out")[index]

    def get_tensor_mode(self, name: str) -> bool:
        return name == "in"

    def get_tensor_dtype(self, _: str) -> str:
        return "float32"

    def create_execution_context(self) -> Context:
        return Context(self.logger)


class Runtime:
    refuses = ""

    def __init__(self, logger: Logger) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, _: bytes) -> Engine | None:
        if self.refuses:
            self.logger.log(Severity.ERROR, self.refuses)
            return None
        return Engine(self.logger)


TRT = SimpleNamespace(
    __version__="1", ILogger=Logger, Runtime=Runtime, TensorIOMode=SimpleNamespace(INPUT=True), float32="float32"
)
WINDOWS = [np.full((1, 1, 8, 8, 8), number, np.float32) for number in range(7)]


def open_backend(gpu: int = 0) -> tensorrt.TensorRtBackend:
    model = read_model(Path(str(files("petseg_runtime") / "models" / "petseg-cpu.onnx")))
    info = EngineInfo("tensorrt_rtx", "1", "f32", ("8.6",), 1, model.sha256)
    return tensorrt.TensorRtBackend(EngineFile(b"", info, model.manifest, "0" * 64), gpu)


def live() -> tuple[int, int, int]:
    gc.collect()
    return stub("live_device").value, stub("live_host").value, stub("live_streams").value


def windows_keep_their_order() -> None:
    with open_backend() as backend:
        for _ in range(20):
            np.testing.assert_array_equal(np.stack(list(backend.predict(WINDOWS))), np.stack(WINDOWS) + 1)
            assert live() == (4, 4, 2), "of two slots"
        smaller = WINDOWS[0][..., :4]
        for found, window in zip(backend.predict([WINDOWS[1], smaller, WINDOWS[2]]), [1, 0, 2], strict=True):
            assert (found == window + 1).all()
        with closing(backend.predict(WINDOWS)) as unfinished:
            next(unfinished)
    assert live() == (0, 0, 0)
    with pytest.raises(BackendError, match="was closed"):
        list(backend.predict(WINDOWS))


def a_gpu_without_room_says_so_and_keeps_nothing() -> None:
    for allocations in range(4):
        stub("allocations_left").value = allocations
        with pytest.raises(BackendError, match="GPU 0 has no room for the model: CUDA_ERROR_2"):
            open_backend()
        assert live() == (0, 0, 0)


def nothing_is_freed_that_is_in_use() -> None:
    backend = open_backend()
    Context.starts = False
    with pytest.raises(BackendError, match="TensorRT did not start the network: no kernel fits"):
        list(backend.predict(WINDOWS))
    assert live() == (0, 0, 0)
    Context.starts = True
    unfinished = backend.predict(WINDOWS)
    next(unfinished)
    stub("failing_syncs").value = 1
    unfinished.close()
    stub("failing_syncs").value = 0
    (again,) = backend.predict(WINDOWS[:1])
    assert (again == 1).all()
    assert stub("live_streams").value == 2, "those that failed are not used again"


def the_current_gpu_stays_the_callers() -> None:
    def current() -> int:
        return int(driver.cuCtxGetCurrent()[1])

    one, other = open_backend(0), open_backend(1)
    assert current() == 0, "there was none"
    for context in (0, 4711):
        driver.cuCtxSetCurrent(context)
        for first, second in zip(one.predict(WINDOWS), other.predict(WINDOWS), strict=True):
            np.testing.assert_array_equal(first, second)
            assert current() == context
        unfinished = one.predict(WINDOWS)
        next(unfinished)
        unfinished.close()
        assert current() == context
    one.close()
    other.close()
    assert current() == 4711
    assert live() == (0, 0, 0)


def a_refused_engine_says_why() -> None:
    Runtime.refuses = "Serialization assertion failed"
    with pytest.raises(ModelError, match=r"refuses the engine on GPU 0: Serialization assertion failed\. Rebuild it"):
        open_backend()
    Runtime.refuses = "Error Code 1: Cuda Runtime (cudaError 719: unspecified launch failure)"
    with pytest.raises(BackendError, match=r"cudaError 719.*nvidia-smi"):
        open_backend()


if __name__ == "__main__":
    tensorrt._module = lambda _: TRT
    globals()[sys.argv[1]]()
    assert stub("freed_in_use").value == 0
    assert stub("on_another_device").value == 0
