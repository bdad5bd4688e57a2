"""The CUDA runtime library by ctypes, against a scripted one and, where a wheel is at hand, the real one."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import numpy as np
import pytest
from scripted_cudart import ScriptedCuda
from scripted_tensorrt import VERSIONS, Script, install

from ticket_export.errors import DeviceError, MeasureError, MissingDependency
from ticket_export.runtime import trt_cuda
from ticket_export.runtime.trt_cuda import Cuda, DeviceMemory, Event, PinnedArray, Stream


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    return install(monkeypatch, VERSIONS[-1])


def test_work_recorded_as_a_graph_is_done_when_the_graph_is_launched(script: Script) -> None:
    cuda = Cuda()
    stream, device = Stream(cuda), DeviceMemory(cuda, 24)
    host, back = (PinnedArray(cuda, (2, 3), np.dtype("float32")) for _ in range(2))
    stream.begin_capture()
    stream.copy(target=device.address, source=host.address, num_bytes=24, kind=trt_cuda.HOST_TO_DEVICE)
    stream.copy(target=back.address, source=device.address, num_bytes=24, kind=trt_cuda.DEVICE_TO_HOST)
    graph = stream.end_capture()
    back.array[...] = 0.0
    host.array[...] = np.arange(6.0).reshape(2, 3)
    assert back.array.sum() == 0.0
    graph.launch(stream)
    stream.synchronize()
    np.testing.assert_array_equal(back.array, host.array)
    for thing in (graph, stream, device, host, back):
        thing.free()
    assert script.cuda.live == {}


def test_events_tell_the_devices_seconds(script: Script) -> None:
    cuda = Cuda()
    stream, start, end = Stream(cuda), Event(cuda), Event(cuda)
    start.record(stream)
    script.cuda.clock_s += 0.0125
    end.record(stream)
    end.synchronize()
    assert end.seconds_since(start) == pytest.approx(0.0125)


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (2, DeviceError, 3),
        (700, DeviceError, 3),
        (100, MissingDependency, 3),
        (35, MissingDependency, 3),
        (101, MeasureError, 2),
    ],
)
def test_a_refused_call_is_told_by_name(
    script: Script, status: int, kind: type[MeasureError], code: int
) -> None:
    cuda = Cuda()
    script.cuda.fail = {"cudaMalloc": status}
    with pytest.raises(
        (MeasureError, MissingDependency), match=r"cuda:0: cudaMalloc: cudaError\w+ \("
    ) as caught:
        DeviceMemory(cuda, 8)
    assert (type(caught.value), caught.value.exit_code) == (kind, code)
    assert caught.value.hint


def test_a_library_newer_than_the_driver_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    new, old = ScriptedCuda(), ScriptedCuda()
    new.fail = {"cudaGetDeviceCount": 35}
    libraries = {"libcudart.so.13": new, "libcudart.so.12": old}

    def load(name: str) -> ScriptedCuda:
        if name not in libraries:
            raise OSError(name)
        return libraries[name]

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(trt_cuda, "_libraries_of_wheels", lambda: [])
    found = trt_cuda._cudart.__wrapped__
    assert found() is old
    old.fail = {"cudaGetDeviceCount": 35}
    with pytest.raises(MissingDependency, match=r"libcudart\.so\.13: the GPU's driver is missing or older"):
        found()
    libraries.clear()
    with pytest.raises(MissingDependency, match=r"no CUDA runtime library \(libcudart\.so\) was found"):
        found()


def test_every_function_called_is_in_the_real_library() -> None:
    names = trt_cuda._libraries_of_wheels()
    if not names:
        pytest.skip("no libcudart.so is installed by pip: pip install nvidia-cuda-runtime-cu12")
    text = Path(trt_cuda.__file__).read_text(encoding="utf-8")
    called = set(re.findall(r"\bcuda[A-Z]\w+(?=\")", text)) | {"cudaGetErrorName", "cudaGetErrorString"}
    assert len(called) > 20
    for name in names:
        library = ctypes.CDLL(name)
        assert [function for function in sorted(called) if not hasattr(library, function)] == []


def test_every_function_called_is_scripted_and_no_other() -> None:
    text = Path(trt_cuda.__file__).read_text(encoding="utf-8")
    called = set(re.findall(r"(?:\"|\.)(cuda[A-Z]\w+)", text)) - {"cudaGetErrorName", "cudaGetErrorString"}
    scripted = {name[1:] for name in vars(ScriptedCuda) if name.startswith("_cuda")}
    assert called == scripted
