from __future__ import annotations

import gc
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ticket_export.errors import DeviceError, MeasureError
from ticket_export.measure.equal import _free_bytes
from ticket_export.measure.latency import measure_interleaved
from ticket_export.measure.protocol import Protocol
from ticket_export.runtime.fake import FakeRunner
from ticket_export.runtime.runner import Array, TensorSpec

QUICK = Protocol(rounds=6, samples=5)


class Diary:
    """Fake runners that write down who was called, in which order, with what."""

    def __init__(self, *names: str) -> None:
        self.calls: list[tuple[str, bytes]] = []
        self.runners = {name: self._runner(name) for name in names}

    def _runner(self, name: str) -> FakeRunner:
        diary = self

        class Writing(FakeRunner):
            def time_once(self, inputs: Mapping[str, Array], scope: str) -> float:
                diary.calls.append((name, inputs["input"].tobytes()))
                return super().time_once(inputs, scope)

            def renew(self) -> None:
                diary.calls.append((name, b"renew"))
                super().renew()

        return Writing(lambda _call: 5e-3)

    def turns(self) -> list[tuple[str, list[bytes]]]:
        """The calls after each renewal, by whom."""
        turns: list[tuple[str, list[bytes]]] = []
        for name, content in self.calls:
            if content == b"renew":
                turns.append((name, []))
            elif turns:
                turns[-1][1].append(content)
        return turns


def test_every_round_times_every_subject_once_in_random_order() -> None:
    diary = Diary("a", "b", "c")
    measure_interleaved(diary.runners, batch=2, protocol=Protocol(rounds=8, samples=5))
    names = [name for name, _ in diary.turns()]
    rounds = [tuple(names[start : start + 3]) for start in range(0, len(names), 3)]
    assert len(rounds) == 8
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) >= 3


def test_the_order_and_the_inputs_follow_the_seed() -> None:
    diaries = [Diary("a", "b", "c") for _ in range(3)]
    for diary, seed in zip(diaries, (1, 1, 2), strict=True):
        measure_interleaved(diary.runners, batch=2, protocol=Protocol(rounds=6, samples=5, seed=seed))
    assert diaries[0].calls == diaries[1].calls
    assert diaries[0].calls != diaries[2].calls


def test_a_round_gives_all_subjects_the_same_fresh_inputs_and_each_subject_a_new_place() -> None:
    diary = Diary("a", "b")
    measure_interleaved(diary.runners, batch=4, protocol=QUICK)
    turns = diary.turns()
    assert len(turns) == 2 * QUICK.rounds
    pairs = [turns[start : start + 2] for start in range(0, len(turns), 2)]
    inputs_of_round = [{content for _, calls in pair for content in calls} for pair in pairs]
    assert all(len(contents) == 1 for contents in inputs_of_round)
    assert len(set.union(*inputs_of_round)) == QUICK.rounds
    assert all(len(content) == 4 * 1 * 2 * 2 * 4 for content in set.union(*inputs_of_round))


def test_warm_ups_and_first_calls_are_kept_apart_from_the_samples() -> None:
    turn = [900.0, 800.0, 700.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    warmup = [50.0] * 10

    def script(call: int) -> float:
        return warmup[call] if call < len(warmup) else turn[(call - len(warmup)) % len(turn)]

    measured = measure_interleaved({"a": FakeRunner(script)}, batch=1, protocol=QUICK)["a"]
    assert measured.warmup_s.tolist() == warmup
    assert measured.lead_in_s.tolist() == [[900.0, 800.0, 700.0]] * 6
    assert measured.samples_s.tolist() == [[1.0, 2.0, 3.0, 4.0, 5.0]] * 6
    assert (measured.num_rounds, measured.num_samples) == (6, 5)


def test_warm_up_goes_on_until_two_windows_agree() -> None:
    runner = FakeRunner(lambda call: 0.010 * (1.0 + math.exp(-call / 5.0)))
    measured = measure_interleaved({"a": runner}, batch=1, protocol=QUICK)["a"]
    windows = measured.warmup_s.reshape(-1, 5)
    medians = np.median(windows, axis=1)
    drifts = np.abs(medians[1:] / medians[:-1] - 1.0)
    assert drifts[-1] < 0.01
    assert (drifts[:-1] >= 0.01).all()
    assert len(windows) > 3
    assert measured.stable


def test_a_warm_up_that_never_settles_stops_at_its_cap_and_says_so() -> None:
    # every window of five calls is 5.1 % slower than the one before, until the rounds begin
    runner = FakeRunner(lambda call: 0.010 * 1.01**call if runner.num_renewals == 0 else 0.03)
    measured = measure_interleaved({"a": runner}, batch=1, protocol=Protocol(rounds=5, samples=5))["a"]
    assert 0.5 < measured.warmup_s.sum() < 0.7
    assert measured.reasons == ("warm-up never settled: its last two windows differ by 5.1% (limit 1.0%)",)


def test_a_slow_network_may_settle_though_one_window_fills_the_cap() -> None:
    windows_s = [0.36, 0.32, 0.30]  # of five calls each, then steady
    runner = FakeRunner(lambda call: windows_s[min(call // 5, 2)])
    measured = measure_interleaved({"a": runner}, batch=1, protocol=Protocol(rounds=5, samples=5))["a"]
    assert measured.warmup_s.tolist() == pytest.approx([0.36] * 5 + [0.32] * 5 + [0.30] * 10)
    assert measured.stable


@pytest.mark.parametrize(("latency_s", "samples"), [(1e-5, 1000), (1e-3, 50), (5e-3, 10), (0.5, 5)])
def test_open_samples_fill_the_block_of_the_slowest_subject(latency_s: float, samples: int) -> None:
    runners = {"slow": FakeRunner(lambda _: latency_s), "fast": FakeRunner(lambda _: latency_s / 10)}
    measured = measure_interleaved(runners, batch=1, protocol=Protocol(rounds=5, block_s=0.05))
    assert measured["slow"].samples_s.shape == measured["fast"].samples_s.shape == (5, samples)
    assert measured["slow"].protocol.samples == samples


def test_the_measurement_says_what_was_run() -> None:
    runner = FakeRunner(lambda _: 2e-3, precision="fp16", threads=2)
    protocol = Protocol(rounds=5, samples=8, threads=2, scope="end_to_end")
    measured = measure_interleaved({"a": runner, "b": runner}, batch=16, protocol=protocol)
    a, b = measured["a"], measured["b"]
    assert (a.runtime, a.device, a.precision, a.threads) == ("fake", "cpu", "fp16", 2)
    assert (a.batch, a.scope, a.protocol) == (16, "end_to_end", protocol)
    assert a.run == b.run
    assert a.machine["num_cores"] >= 1
    assert a.throughput_per_s == pytest.approx(16 / 2e-3)
    assert a.latency_json() == {"p50": 2e-3, "p90": 2e-3}
    again = measure_interleaved({"a": runner}, batch=16, protocol=protocol)["a"]
    assert again.run != a.run


def test_progress_is_told_after_every_round_and_the_collector_rests_meanwhile() -> None:
    seen: list[tuple[int, int, bool]] = []
    measure_interleaved(
        {"a": FakeRunner(lambda _: 1e-3)},
        batch=1,
        protocol=Protocol(rounds=5, samples=5),
        on_round=lambda done, total: seen.append((done, total, gc.isenabled())),
    )
    assert seen == [(done, 5, False) for done in range(1, 6)]
    assert gc.isenabled()


def image_runner(**changes: Any) -> FakeRunner:
    return FakeRunner(lambda _: 1e-3, **changes)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (image_runner(name="other"), "runtime is 'other' against 'fake'"),
        (image_runner(device="cuda:0"), "device is 'cuda:0' against 'cpu'"),
        (image_runner(precision="fp16"), "precision is 'fp16' against 'fp32'"),
        (image_runner(threads=2), "'b' runs on 2 threads, the protocol says 1"),
        (
            image_runner(spec=TensorSpec(name="input", dtype="float32", shape=(None, 3, 2, 2))),
            r"inputs are float32 \[N, 3, 2, 2\] against float32 \[N, 1, 2, 2\]",
        ),
        (
            image_runner(spec=TensorSpec(name="input", dtype="float16", shape=(None, 1, 2, 2))),
            r"inputs are float16 \[N, 1, 2, 2\] against float32 \[N, 1, 2, 2\]",
        ),
        (
            image_runner(output_spec=TensorSpec(name="logits", dtype="float32", shape=(None, 2))),
            r"outputs are float32 \[N, 2\] against float32 \[N, 1\]",
        ),
        (
            image_runner(output_spec=TensorSpec(name="logits", dtype="float16", shape=(None, 1))),
            r"outputs are float16 \[N, 1\] against float32 \[N, 1\]",
        ),
        (image_runner(settings={"tf32": "on"}), r"settings is \{'tf32': 'on'\} against \{\}"),
    ],
)
def test_unequal_runners_are_refused_before_anything_is_timed(other: FakeRunner, words: str) -> None:
    first = image_runner()
    with pytest.raises(MeasureError, match=words):
        measure_interleaved({"a": first, "b": other}, batch=1, protocol=QUICK)
    assert first.num_calls == other.num_calls == 0


def test_inputs_and_outputs_may_have_other_names() -> None:
    other = image_runner(
        spec=TensorSpec(name="pixels", dtype="float32", shape=(None, 1, 2, 2)),
        output_spec=TensorSpec(name="scores", dtype="float32", shape=(None, None)),
    )
    measured = measure_interleaved({"a": image_runner(), "b": other}, batch=1, protocol=QUICK)
    assert list(measured) == ["a", "b"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_subject_that_does_not_answer_in_finite_numbers_is_refused_before_anything_is_timed(
    bad: float,
) -> None:
    class Broken(FakeRunner):
        def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
            logits = super().infer(inputs)["logits"]
            logits[1] = bad
            return {"logits": logits}

    sound, broken = image_runner(), Broken(lambda _: 1e-3)
    with pytest.raises(MeasureError, match=r"'b': output 'logits' holds 1 of 4 values that are not finite"):
        measure_interleaved({"a": sound, "b": broken}, batch=4, protocol=QUICK)
    assert sound.num_calls == broken.num_calls == 0


def test_answers_of_unequal_shapes_are_refused_where_the_specs_leave_them_free() -> None:
    class Wide(FakeRunner):
        def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
            return {"logits": np.repeat(super().infer(inputs)["logits"], 3, axis=1)}

    free = TensorSpec(name="logits", dtype="float32", shape=(None, None))
    runners = {"a": image_runner(), "b": Wide(lambda _: 1e-3, output_spec=free)}
    with pytest.raises(MeasureError, match=r"outputs are float32 \[4, 3\] against float32 \[4, 1\]"):
        measure_interleaved(runners, batch=4, protocol=QUICK)


@pytest.mark.parametrize("batch", [10**9, 10**15, 10**30])
def test_an_absurd_batch_is_refused_at_once_with_the_memory_it_needs(batch: int) -> None:
    with pytest.raises(DeviceError, match=rf"inputs of batch {batch} need .* GB, and .* GB are free"):
        measure_interleaved({"a": image_runner()}, batch=batch, protocol=QUICK)


def test_the_free_memory_is_the_smaller_one_of_machine_and_container(tmp_path: Path) -> None:
    assert _free_bytes(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   5 kB\n", encoding="ascii")
    assert _free_bytes(tmp_path) == 5 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("1000\n", encoding="ascii")
    for limit, free in (("max", 5 * 1024), ("4000", 3000), ("9999999", 5 * 1024)):
        (group / "memory.max").write_text(f"{limit}\n", encoding="ascii")
        assert _free_bytes(tmp_path) == free


def test_inputs_that_numpy_cannot_hold_are_an_error_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ticket_export.measure.equal._free_bytes", lambda: None)
    with pytest.raises(DeviceError, match="'a': out of memory for the inputs: Unable to allocate"):
        measure_interleaved({"a": image_runner()}, batch=1 << 47, protocol=QUICK)


def test_integer_inputs_get_zeros_and_ones() -> None:
    runner = image_runner(spec=TensorSpec(name="tokens", dtype="int64", shape=(None, 50)))
    measure_interleaved({"a": runner}, batch=4, protocol=QUICK)
    assert {int(value) for array in runner.inputs_seen for value in np.unique(array)} == {0, 1}


@pytest.mark.parametrize(
    ("shape", "batch", "words"),
    [
        ((None, 1, 2, 2), 0, "batch is 0, but must be at least 1"),
        ((1, 1, 2, 2), 8, r"batch is 8, but input 'input' is \[1, 1, 2, 2\]"),
        ((None, 1, None, 2), 8, r"'input' is \[N, 1, \?, 2\]; only the batch"),
        ((), 1, r"'input' is \[\]"),
    ],
)
def test_batches_and_shapes_that_cannot_be_run_are_refused(
    shape: tuple[int | None, ...], batch: int, words: str
) -> None:
    runner = image_runner(spec=TensorSpec(name="input", dtype="float32", shape=shape))
    with pytest.raises(MeasureError, match=words):
        measure_interleaved({"a": runner}, batch=batch, protocol=QUICK)


def test_no_models_at_all_are_refused() -> None:
    with pytest.raises(MeasureError, match="no models were given"):
        measure_interleaved({}, batch=1, protocol=QUICK)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("rounds", 4, "rounds is 4, but an interval over rounds needs at least 5"),
        ("samples", 4, "samples is 4, but the median of a round needs at least 5"),
        ("scope", "gpu", "scope 'gpu' is not one of compute, end_to_end"),
        ("threads", 0, "threads is 0"),
        ("block_s", 0.0, "block_s is 0.0, but must be above 0"),
        ("warmup_cap_s", -1.0, "warmup_cap_s is -1.0"),
        ("drift_fraction", float("nan"), "drift_fraction is nan"),
    ],
)
def test_protocols_that_cannot_be_honest_are_refused(field: str, value: object, words: str) -> None:
    with pytest.raises(MeasureError, match=words):
        Protocol(**{field: value})  # type: ignore[arg-type]
