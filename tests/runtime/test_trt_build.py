"""What TensorRT is told in each generation, which build is kept, and what lies on the disk afterwards."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from scripted_tensorrt import VERSIONS, Script, install

from ticket_export.errors import DeviceError, MeasureError, MissingDependency, ParityError, StoreError
from ticket_export.runtime import trt_build, trt_version
from ticket_export.runtime.trt_build import BuildSettings, build_engine
from ticket_export.runtime.trt_cuda import Cuda
from ticket_export.runtime.trt_layers import layers_from_information, layers_summary
from ticket_export.runtime.trt_sidecar import read_facts, require_usable

MakeLinear = Callable[..., Path]
OLD, MIDDLE, NEW = VERSIONS


@pytest.fixture(params=VERSIONS)
def script(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Script:
    return install(monkeypatch, request.param)


@pytest.fixture
def newest(monkeypatch: pytest.MonkeyPatch) -> Script:
    return install(monkeypatch, NEW)


def build_number(engine_path: Path) -> int:
    """Return which build the engine's bytes are of."""
    content = engine_path.read_bytes()
    (length,) = struct.unpack_from("<I", content)
    return int(json.loads(content[4 : 4 + length])["number"])


def write_mean(path: Path, *, opset: int = 20) -> Path:
    """Write logits = mean over the pixels of images [N, 3, 2, 2], the axes as an input."""
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["input", "axes"], ["logits"], keepdims=0)],
        "mean",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 2, 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.array([2, 3]), "axes")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), path)
    return path


def test_strong_types_are_asked_for_where_there_are_and_flags_only_where_not(
    linear_onnx: MakeLinear, quantised_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "fp32": linear_onnx(),
        "fp16": linear_onnx("half.onnx", dtype=np.float16),
        "int8": quantised_onnx,
    }
    told = {}
    for version in VERSIONS:
        for precision, file in files.items():
            script = install(monkeypatch, version)
            facts = build_engine(file, file.with_suffix(".engine"), BuildSettings(builds=1))
            assert facts.precision == precision
            assert facts.flags["strongly_typed"] is (version != OLD)
            told[version, precision] = (script.network_flags, script.builder_flags)
    # NetworkDefinitionCreationFlag: EXPLICIT_BATCH is bit 0 of 8.6; STRONGLY_TYPED bit 1 of 10, bit 0 of 11
    assert told == {
        (OLD, "fp32"): ([1], [{"TF32"}]),
        (OLD, "fp16"): ([1], [{"TF32", "FP16"}]),
        (OLD, "int8"): ([1], [{"TF32", "INT8"}]),
        **{(MIDDLE, precision): ([2], [{"TF32"}]) for precision in files},
        **{(NEW, precision): ([1], [{"TF32"}]) for precision in files},
    }


def test_tf32_is_on_unless_refused_and_the_sidecar_says_so(
    script: Script, linear_onnx: MakeLinear, tmp_path: Path
) -> None:
    off = build_engine(linear_onnx(), tmp_path / "off.engine", BuildSettings(builds=1, tf32=False))
    on = build_engine(linear_onnx(), tmp_path / "on.engine", BuildSettings(builds=1))
    assert [("TF32" in flags) for flags in script.builder_flags] == [False, True]
    assert (off.flags["tf32"], off.parity["tolerance"]) == (False, 1e-4)
    assert (on.flags["tf32"], on.parity["tolerance"]) == (True, 1e-2)


def test_each_batch_has_a_profile_tuned_for_it_that_takes_what_lies_below(
    newest: Script, linear_onnx: MakeLinear, tmp_path: Path
) -> None:
    facts = build_engine(
        linear_onnx(), tmp_path / "a.engine", BuildSettings(batches=(64, 1, 8), optimization_level=4)
    )
    assert facts.batches == (1, 8, 64)
    assert [tuple(profile.values()) for profile in facts.profiles] == [(1, 1, 1), (2, 8, 8), (9, 64, 64)]
    images = (1, 2, 2)
    assert newest.profiles[0] == [
        {"input": ((low, *images), (opt, *images), (most, *images))}
        for low, opt, most in [(1, 1, 1), (2, 8, 8), (9, 64, 64)]
    ]
    assert newest.levels == [4, 4, 4]
    assert facts.parity["batches"] == [1, 3, 8, 64]


def test_a_file_with_a_fixed_batch_has_one_profile(newest: Script, linear_onnx: MakeLinear) -> None:
    file = linear_onnx(batch=4)
    facts = build_engine(file, file.with_suffix(".plan"), BuildSettings(batches=(4,), builds=1))
    assert facts.profiles == ({"min": 4, "opt": 4, "max": 4},)
    with pytest.raises(MeasureError, match=r"fixed at 4, so it cannot run \[1, 8\]"):
        build_engine(file, file.with_suffix(".plan"), BuildSettings(batches=(1, 8)))


def test_profiles_are_shared_between_streams_where_that_has_to_be_asked_for(
    linear_onnx: MakeLinear, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}
    for version in VERSIONS:
        script = install(monkeypatch, version)
        file = linear_onnx()
        build_engine(file, file.with_suffix(".engine"), BuildSettings(builds=1))
        asked[version] = script.preview
    assert asked == {OLD: [{"PROFILE_SHARING_0806"}], MIDDLE: [{"PROFILE_SHARING_0806"}], NEW: [set()]}


def test_the_old_parser_is_given_the_opset_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_mean(tmp_path / "mean.onnx")
    opsets = {}
    for version in VERSIONS:
        script = install(monkeypatch, version)
        facts = build_engine(file, tmp_path / "a.engine", BuildSettings(builds=1))
        opsets[version] = (script.opsets, facts.flags["onnx_opset"])
    assert opsets == {OLD: ([17], 17), MIDDLE: ([20], 20), NEW: ([20], 20)}


def test_the_fastest_build_by_measurement_is_kept_and_the_spread_told(
    script: Script, linear_onnx: MakeLinear, tmp_path: Path
) -> None:
    seconds = {0: 3e-4, 1: 2e-4, 2: 2.5e-4}
    script.latency_s = lambda build, batch: seconds[build] * batch
    facts = build_engine(linear_onnx(), tmp_path / "a.engine", BuildSettings())
    assert build_number(tmp_path / "a.engine") == 1
    assert [build["kept"] for build in facts.builds] == [False, True, False]
    assert [build["median_s"]["8"] for build in facts.builds] == pytest.approx(
        [24e-4, 16e-4, 20e-4], rel=1e-3
    )
    assert facts.spread_fraction == pytest.approx({"1": 0.5, "8": 0.5}, rel=1e-3)
    assert script.cuda.live == {}  # buffers, streams, events and graphs of all three are freed


def test_the_builds_are_timed_in_turns(newest: Script, linear_onnx: MakeLinear, tmp_path: Path) -> None:
    turns: list[int] = []

    def latency_s(build: int, batch: int) -> float:
        turns.append(build)
        return 1e-4

    newest.latency_s = latency_s
    build_engine(linear_onnx(), tmp_path / "a.engine", BuildSettings(batches=(1,), builds=2))
    changes = sum(before != after for before, after in pairwise(turns))
    assert changes >= trt_build.NUM_ROUNDS


@pytest.mark.parametrize("wrong", [5e-2, float("nan"), float("inf")])
def test_a_build_that_computes_something_else_is_not_kept_though_it_is_faster(
    newest: Script, linear_onnx: MakeLinear, tmp_path: Path, wrong: float
) -> None:
    newest.bias = lambda build: wrong if build == 0 else 0.0
    newest.latency_s = lambda build, batch: (1 + build) * 1e-4
    facts = build_engine(linear_onnx(), tmp_path / "a.engine", BuildSettings(builds=2))
    assert build_number(tmp_path / "a.engine") == 1
    assert facts.parity["rel_error"] == 0.0


def test_an_engine_whose_builds_all_differ_from_the_file_is_not_written(
    newest: Script, linear_onnx: MakeLinear, tmp_path: Path
) -> None:
    file = linear_onnx()
    newest.bias = lambda build: 5e-2
    with pytest.raises(ParityError, match=r"not written: relative error .*e-02.* is above 0.01") as caught:
        build_engine(file, tmp_path / "a.engine", BuildSettings())
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == [file]
    build_engine(file, tmp_path / "a.engine", BuildSettings(tolerance=0.5))
    assert read_facts(tmp_path / "a.engine").parity["tolerance"] == 0.5


def test_the_first_build_loads_the_stored_timing_cache_and_the_others_time_anew(
    script: Script, linear_onnx: MakeLinear, tmp_path: Path
) -> None:
    cache = tmp_path / "a.engine.timing_cache"
    first = build_engine(linear_onnx(), tmp_path / "a.engine", BuildSettings(builds=1))
    assert (first.flags["timing_cache"], cache.read_bytes()) == ("new", b"timed by build 0;")
    second = build_engine(linear_onnx(), tmp_path / "a.engine", BuildSettings(builds=2))
    assert script.caches_in == [b"", b"timed by build 0;", b""]
    assert second.flags["timing_cache"] == "loaded"
    assert cache.read_bytes() == b"timed by build 0;timed by build 1;"  # of the build that was kept


def test_an_interrupted_build_leaves_what_was_there_before(
    newest: Script, linear_onnx: MakeLinear, tmp_path: Path
) -> None:
    file = linear_onnx()
    newest.interrupt_build = 1
    with pytest.raises(KeyboardInterrupt):
        build_engine(file, tmp_path / "a.engine", BuildSettings())
    assert list(tmp_path.iterdir()) == [file]
    assert newest.cuda.live == {}
    newest.interrupt_build = None
    build_engine(file, tmp_path / "a.engine", BuildSettings(builds=1))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    newest.interrupt_build = len(newest.builder_flags)
    with pytest.raises(KeyboardInterrupt):
        build_engine(file, tmp_path / "a.engine", BuildSettings())
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("num_writes", [0, 1, 2, 3])
def test_an_engine_whose_writing_broke_off_is_refused(
    newest: Script,
    linear_onnx: MakeLinear,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_writes: int,
) -> None:
    engine = tmp_path / "a.engine"
    build_engine(linear_onnx(), engine, BuildSettings(builds=1))
    write_whole, written = trt_build.write_whole, []

    def breaking(path: Path, content: bytes) -> None:
        if len(written) == num_writes:
            raise KeyboardInterrupt
        written.append(path)
        write_whole(path, content)

    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trt_build, "write_whole", breaking)
    monkeypatch.setattr(trt_build, "write_facts", broken)
    with pytest.raises(KeyboardInterrupt):
        build_engine(linear_onnx(), engine, BuildSettings(builds=1))
    assert not list(tmp_path.glob("*.partial"))
    if num_writes == 0:
        assert require_usable(engine, tensorrt=NEW, gpu=Cuda().gpu())[0].source == "linear.onnx"
    else:
        with pytest.raises(MeasureError, match="its bytes are not the ones that were built"):
            require_usable(engine, tensorrt=NEW, gpu=Cuda().gpu())


def test_the_layer_list_has_one_form_for_all_versions(
    script: Script, linear_onnx: MakeLinear, tmp_path: Path
) -> None:
    facts = build_engine(linear_onnx(), tmp_path / "a.engine", BuildSettings(builds=1))
    document = json.loads((tmp_path / "a.engine.layers.json").read_text(encoding="utf-8"))
    assert document["io_tensors"] == ["input", "logits"]
    assert [layer["LayerType"] for layer in document["layers"]] == ["Flatten", "MatMul", "Reformat"]
    assert document["engine_sha256"] == facts.engine_sha256
    kinds = {"Flatten": 1, "MatMul": 1, "Reformat": 1}
    assert facts.layers == {"0": {"count": 3, "by_kind": kinds, "reformats": 1}}


def test_the_layers_of_each_profile_are_counted_apart() -> None:
    names = ["conv", "conv [profile 1]", "Reformatting CopyNode for Input Tensor 0 to conv [profile 1]"]
    summary = layers_summary([{"Name": name, "LayerType": "CaskConvolution"} for name in names])
    assert summary["0"] == {"count": 1, "by_kind": {"CaskConvolution": 1}, "reformats": 0}
    assert summary["1"] == {"count": 2, "by_kind": {"CaskConvolution": 2}, "reformats": 1}


def test_a_list_of_bare_names_is_taken_too() -> None:
    found = layers_from_information('{"Layers": ["conv", "relu"], "Bindings": ["x", "y"]}')
    assert found == {"layers": [{"Name": "conv"}, {"Name": "relu"}], "io_tensors": ["x", "y"]}


def test_the_sidecar_tells_where_the_engine_comes_from(
    newest: Script, linear_onnx: MakeLinear, tmp_path: Path
) -> None:
    facts = build_engine(linear_onnx(), tmp_path / "a.engine", BuildSettings(builds=1))
    assert read_facts(tmp_path / "a.engine") == facts
    assert (facts.gpu.name, facts.gpu.sm) == ("Scripted GPU", "sm90")
    assert (facts.gpu.cuda_driver, facts.gpu.cuda_runtime) == ("12.8", "12.6")
    assert facts.tensorrt in VERSIONS
    assert (facts.inputs[0].shape, facts.outputs[0].shape) == ((None, 1, 2, 2), (None, 3))


@pytest.mark.parametrize(
    ("fail", "kind", "words"),
    [
        ("builder", MeasureError, "cannot build an engine .*factory function returned nullptr"),
        ("load", MeasureError, "TensorRT cannot load the engine"),
        ("parse", MeasureError, "cannot build an engine .*Could not parse ONNX.*unsupported operator"),
        ("build", MeasureError, "cannot build an engine .*no implementation"),
        ("memory", DeviceError, "the GPU is out of memory"),
        ("context", MeasureError, "cannot make an execution context"),
        ("run", MeasureError, "cannot run the engine"),
        ("lost", DeviceError, "the GPU failed: .*illegal memory access"),
        ("capture", MeasureError, "cannot be recorded as a CUDA graph"),
    ],
)
def test_a_failure_tells_what_tensorrt_logged(
    newest: Script, linear_onnx: MakeLinear, tmp_path: Path, fail: str, kind: type[Exception], words: str
) -> None:
    newest.fail = fail
    file = linear_onnx()
    with pytest.raises(MeasureError, match=words) as caught:
        build_engine(file, tmp_path / "a.engine", BuildSettings())
    assert type(caught.value) is kind
    assert caught.value.exit_code == (3 if kind is DeviceError else 2)
    assert list(tmp_path.iterdir()) == [file]
    assert newest.cuda.live == {}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"builds": 0}, "builds is 0, but must be 1 to 20"),
        ({"optimization_level": 6}, "optimization_level is 6"),
        ({"tolerance": 0.0}, r"tolerance is 0\.0"),
        ({"batches": ()}, r"batches are \[\]"),
        ({"batches": (0, 8)}, r"batches are \[0, 8\]"),
        ({"batches": (1, 10**9)}, r"batches are \[1, 1000000000\], but must be 1 to 65536"),
        ({"device": "cpu"}, "runs on a CUDA device, got 'cpu'"),
        ({"device": "cuda:3"}, "invalid device ordinal"),
    ],
)
def test_absurd_settings_are_refused(
    newest: Script, linear_onnx: MakeLinear, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(MeasureError, match=words):
        build_engine(linear_onnx(), tmp_path / "a.engine", BuildSettings(**settings))


def test_files_that_make_no_engine_are_refused(
    newest: Script, linear_onnx: MakeLinear, tmp_path: Path
) -> None:
    engine, settings = tmp_path / "a.engine", BuildSettings()
    with pytest.raises(MeasureError, match="no such file"):
        build_engine(tmp_path / "none.onnx", engine, settings)
    with pytest.raises(MeasureError, match="computes in fp64, TensorRT engines in fp32, fp16, int8"):
        build_engine(linear_onnx(dtype=np.float64), engine, settings)
    model = onnx.load(linear_onnx())
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(model, tmp_path / "free.onnx")
    with pytest.raises(MeasureError, match=r"\[None, 1, None, 2\], but the batch alone"):
        build_engine(tmp_path / "free.onnx", engine, settings)
    onnx.save(
        onnx.load(linear_onnx()), tmp_path / "beside.onnx", save_as_external_data=True, size_threshold=0
    )
    with pytest.raises(MeasureError, match="its weights lie in other files"):
        build_engine(tmp_path / "beside.onnx", engine, settings)
    with pytest.raises(StoreError, match="its folder does not exist"):
        build_engine(linear_onnx(), tmp_path / "none" / "a.engine", settings)
    assert not list(tmp_path.glob("*.engine*"))


def test_unsigned_activations_are_refused_with_the_way_to_signed_ones(
    newest: Script, quantised_onnx: Path, tmp_path: Path
) -> None:
    for zero, told in [(np.uint8(128), "UINT8 around 128"), (np.int8(3), "INT8 around 3")]:
        model = onnx.load(quantised_onnx)
        model.graph.initializer[1].CopyFrom(numpy_helper.from_array(zero, "zero"))
        onnx.save(model, tmp_path / "asymmetric.onnx")
        with pytest.raises(
            MeasureError, match=f"rounds to {told}, but TensorRT takes INT8 around 0"
        ) as caught:
            build_engine(tmp_path / "asymmetric.onnx", tmp_path / "a.engine", BuildSettings())
        assert "--to tensorrt" in str(caught.value.hint)


def test_nothing_is_printed_and_progress_is_told(
    newest: Script, linear_onnx: MakeLinear, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []
    build_engine(linear_onnx(), tmp_path / "a.engine", BuildSettings(builds=2), on_progress=told.append)
    assert told[0] == "linear.onnx: building a TensorRT engine, 1 of 2"
    assert told[1].startswith("linear.onnx: build 1 took ")
    assert len(told) == 4
    assert capfd.readouterr() == ("", "")


def test_a_missing_tensorrt_is_named_with_its_command(
    linear_onnx: MakeLinear, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependency, match=r"pip install ticket-export\[tensorrt\]"):
        build_engine(linear_onnx(), tmp_path / "a.engine", BuildSettings())


def test_a_tensorrt_older_than_the_oldest_known_is_refused(newest: Script) -> None:
    trt = trt_version.require_tensorrt()
    trt.__version__ = "8.5.3"
    with pytest.raises(MissingDependency, match=r"TensorRT 8\.5\.3 is older than 8\.6"):
        trt_version.require_tensorrt()
