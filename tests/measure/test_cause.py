"""One sentence per pair, and every sentence by the numbers it was made from."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from scripted_layers import Scripted, network

from ticket_export.measure.cause import Cause, Ratio, Tried, cause, no_layer_times
from ticket_export.measure.layer_pairs import TimedNetwork
from ticket_export.measure.losses import losses

DENSE = network([Scripted("stem", 3, 64, 10, 1.0), Scripted("a", 64, 64, 90, 9.0)])
OFF_GRID = network([Scripted("stem", 3, 64, 10, 1.0), Scripted("a", 64, 33, 40, 6.0)])


def told(
    dense: TimedNetwork,
    ticket: TimedNetwork,
    measured: float | None = None,
    *,
    width: float = 0.01,
    graph_speedup: float | None = None,
    tried: Sequence[Tried] = (),
) -> Cause:
    """Return the cause when `measured` (by default what the profiles say) has an interval of +- `width`."""
    ratio = dense.whole_s / ticket.whole_s if measured is None else measured
    return cause(
        losses(dense, ticket, grid=16),
        Ratio(ratio=ratio, low=ratio * (1 - width), high=ratio * (1 + width)),
        grid=16,
        graph_speedup=graph_speedup,
        tried=tried,
    )


def test_a_time_that_follows_the_macs_is_told_so() -> None:
    found = told(DENSE, network([Scripted("stem", 3, 64, 10, 1.0), Scripted("a", 32, 64, 40, 4.0)]))
    assert found.kind == "as_macs"
    assert found.sentence == "2.00x measured and 2.00x fewer MACs: the time follows the MACs."


def test_a_network_against_itself_has_the_same_macs() -> None:
    assert told(DENSE, DENSE).sentence == "1.00x measured and the same MACs: the time follows the MACs."


def test_widths_off_the_grid_are_named_with_both_rates_and_what_to_try() -> None:
    found = told(DENSE, OFF_GRID)
    assert found.kind == "widths"
    assert found.sentence == (
        "1.43x measured where the MACs are 2.00x fewer: 29 % of its time is lost in 1 of 2 layers whose "
        "widths are off the grid of 16 channels: they run 6.7 GMAC/s, dense's 10.0; "
        "try round_to: 16 (not measured)."
    )
    assert found.evidence["shares"]["widths"] == pytest.approx(2 / 7)


def test_only_what_was_measured_to_be_faster_is_recommended() -> None:
    def variant(ratio: float, low: float) -> Tried:
        return Tried(label="round_to: 16", speedup=Ratio(ratio=ratio, low=low, high=2 * ratio - low))

    better, worse = (
        told(DENSE, OFF_GRID, tried=[variant(1.9, 1.85)]),
        told(DENSE, OFF_GRID, tried=[variant(1.44, 1.40)]),
    )
    assert better.sentence.endswith("; round_to: 16 was measured at 1.90x (1.85-1.95).")
    assert worse.sentence.endswith("; nothing tried is faster (best: round_to: 16, 1.44x (1.40-1.48)).")


def test_reorders_and_unfused_layers_are_counted_on_both_sides() -> None:
    ticket = network(
        [Scripted("stem", 3, 64, 10, 1.0), Scripted("a", 32, 64, 40, 4.0)],
        [("r1", "ReorderInput", 1.0), ("r2", "ReorderOutput", 1.0), ("add", "Add", 0.5)],
    )
    found = told(DENSE, ticket)
    assert found.kind == "reformat"
    assert (
        "33 % of its time goes to 2 changes of layout (dense: 0) and Add that dense has fused"
        in found.sentence
    )
    assert "round_to" not in found.sentence  # no width left the grid


def test_layers_bound_by_memory_are_named() -> None:
    dense = network([Scripted("fast", 64, 64, 900, 5.0, 1.0), Scripted("wide", 64, 64, 10, 5.0, 50.0)])
    ticket = network([Scripted("fast", 32, 64, 450, 2.5, 1.0), Scripted("wide", 32, 64, 5, 4.0, 40.0)])
    found = told(dense, ticket)
    assert found.kind == "memory"
    assert "23 % of its time is lost where memory sets the pace (wide; 1.2x fewer bytes)" in found.sentence


def test_a_shared_floor_names_its_layers_and_the_speedup_it_allows() -> None:
    dense = network([Scripted("stem", 3, 64, 10, 6.0), Scripted("a", 64, 64, 90, 4.0)])
    found = told(dense, network([Scripted("stem", 3, 64, 10, 6.0), Scripted("a", 64, 16, 20, 0.889)]))
    assert found.kind == "floor"
    assert (
        "1 layer it does not shrink (stem) took 60 % of dense's time and 10 % of its MACs" in found.sentence
    )
    assert found.evidence["bound"] == pytest.approx(10 / 6.889, abs=1e-3)
    assert "more than 1.45x is out of reach" in found.sentence


def test_smaller_kernels_that_run_slower_on_the_grid_are_told_with_their_rates() -> None:
    found = told(DENSE, network([Scripted("stem", 3, 64, 10, 1.0), Scripted("a", 32, 64, 40, 6.0)]))
    assert found.kind == "kernels"
    assert "is lost in 1 smaller layer at 6.7 GMAC/s, dense's run 10.0" in found.sentence


def test_time_between_kernels_is_a_matter_of_launches() -> None:
    layers = [Scripted("stem", 3, 64, 10, 1.0), Scripted("a", 64, 64, 90, 9.0)]
    small = [Scripted("stem", 3, 64, 10, 1.0), Scripted("a", 32, 64, 40, 4.0)]
    found = told(network(layers, between_ms=5.0), network(small, between_ms=5.0))
    assert found.kind == "launch"
    assert "passes between the kernels (50 % in all, 33 % of dense's)" in found.sentence


def test_a_graph_that_is_faster_shows_launches_whatever_the_layers_say() -> None:
    found = told(DENSE, OFF_GRID, graph_speedup=1.8)
    assert found.kind == "launch"
    assert "a CUDA graph makes it 1.80x faster" in found.sentence
    assert told(DENSE, OFF_GRID, graph_speedup=1.02).kind == "widths"


def test_an_interval_that_holds_the_ratio_of_macs_decides_nothing() -> None:
    found = told(DENSE, OFF_GRID, width=0.5)
    assert found.kind == "unresolved"
    assert "1.43x (0.71-2.14) measured, an interval that holds the 2.00x of its MACs" in found.sentence


def test_faster_than_its_macs_names_what_was_gained() -> None:
    found = told(DENSE, network([Scripted("stem", 3, 64, 10, 1.0), Scripted("a", 32, 64, 40, 2.0)]))
    assert found.kind == "faster_than_macs"
    assert "its layers run 20 GMAC/s, dense's 10, which saves 67 % of its time" in found.sentence


def test_a_profile_that_disagrees_with_the_clock_is_called_rough() -> None:
    assert "(rough: the profile itself shows 1.43x)" in told(DENSE, OFF_GRID, measured=1.1).sentence
    assert "rough" not in told(DENSE, OFF_GRID).sentence


def test_kernels_nobody_can_place_give_no_cause() -> None:
    lost = [("__myl_1", "", 9.0)]
    found = told(
        network([Scripted("a", 64, 64, 90, 1.0)], lost), network([Scripted("a", 33, 64, 40, 1.0)], lost)
    )
    assert found.kind == "unknown"
    assert "only 10% of its kernel time could be placed" in found.sentence


def test_without_layer_times_the_sentence_says_why_there_are_none() -> None:
    found = no_layer_times(Ratio(ratio=1.5, low=1.4, high=1.6), "runtime 'x' tells no layer times")
    assert (found.kind, found.evidence["measured"]) == ("unknown", [1.5, 1.4, 1.6])
    assert found.sentence == (
        "1.50x measured; why is not known: no layer times (runtime 'x' tells no layer times)."
    )


def test_the_evidence_is_json_with_every_layer() -> None:
    evidence = json.loads(json.dumps(told(DENSE, OFF_GRID).to_json()))["evidence"]
    assert [layer["name"] for layer in evidence["layers"]] == ["a", "stem"]
    assert evidence["layers"][0]["width_out"] == [64, 33]
    assert evidence["layers"][0]["lost_s"] == pytest.approx(0.002)
