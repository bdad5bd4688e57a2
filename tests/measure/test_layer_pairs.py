"""Kernels find the layers of the file they compute, under every name that runtimes give them."""

from __future__ import annotations

import pytest
from scripted_layers import Scripted, network

from ticket_export.measure.layer_pairs import pairs_of, timed_network
from ticket_export.runtime.layers import LayerCost, LayerProfile, LayerTime, NetworkCosts


def costs(*names: str, macs: int = 100) -> NetworkCosts:
    """Return layers `a`, `b`, ... made by nodes `node_a` with outputs `a_out` and a Relu `a_relu` behind."""
    return NetworkCosts(
        layers=tuple(
            LayerCost(name=name, op="Conv", macs=macs * (i + 1), num_bytes=1, width_in=8, width_out=8)
            for i, name in enumerate(names)
        ),
        layer_by_node={key: name for name in names for key in (f"node_{name}", f"{name}_out")},
        fused_by_node={f"{name}_relu": name for name in names},
    )


def profile(*layers: tuple[str, str, float]) -> LayerProfile:
    times = tuple(LayerTime(name=name, op=op, seconds=seconds) for name, op, seconds in layers)
    return LayerProfile(layers=times, between_s=None, num_runs=8)


@pytest.mark.parametrize(
    ("name", "op"),
    [
        ("node_a", "Conv"),
        ("node_a", "FusedConv"),
        ("a_out_nchwc", "Conv"),
        ("a_relu_nchwc", "Conv"),
        ("node_a_quant", "QLinearConv"),
        ("node_a_token_12", "Conv"),
        ("node_a + a_relu", ""),
        ("PWN(a_relu) + [node_a]", "CaskConvolution"),
    ],
)
def test_a_kernel_belongs_to_the_layer_whose_node_it_names(name: str, op: str) -> None:
    found = timed_network(profile((name, op, 0.5)), costs("a"))
    assert [(layer.cost.name, layer.seconds) for layer in found.layers] == [("a", 0.5)]
    assert (found.missing, found.others, found.reformats) == ((), (), ())


@pytest.mark.parametrize(
    ("name", "op"),
    [
        ("ReorderOutput_token_3", "ReorderOutput"),
        ("ReorderInput", "ReorderInput"),
        ("Reformatting CopyNode for Input Tensor 0 to node_a + a_relu", ""),
        ("Memcpy_token_1", "MemcpyToHost"),
    ],
)
def test_what_the_runtime_moves_for_itself_is_a_reformat(name: str, op: str) -> None:
    found = timed_network(profile(("node_a", "Conv", 1.0), (name, op, 0.5)), costs("a"))
    assert [layer.seconds for layer in found.reformats] == [0.5]
    assert [layer.seconds for layer in found.layers] == [1.0]


def test_an_addition_behind_a_layer_is_not_the_layer() -> None:
    found = timed_network(profile(("node_a", "Conv", 1.0), ("a_relu", "Relu", 0.5)), costs("a"))
    assert [layer.name for layer in found.others] == ["a_relu"]
    assert found.layers[0].seconds == 1.0


def test_layers_merged_into_one_kernel_share_its_time_by_their_macs() -> None:
    found = timed_network(profile(("node_a || node_b", "Conv", 3.0)), costs("a", "b"))
    assert [layer.seconds for layer in found.layers] == [pytest.approx(1.0), pytest.approx(2.0)]


def test_several_kernels_of_one_layer_add_up() -> None:
    found = timed_network(profile(("node_a", "Conv", 1.0), ("a_out_nchwc", "Conv", 0.5)), costs("a"))
    assert [layer.seconds for layer in found.layers] == [1.5]


def test_a_layer_no_kernel_names_is_missing_by_name_and_a_strange_kernel_is_kept() -> None:
    found = timed_network(profile(("node_a", "Conv", 1.0), ("__myl_Fused_0", "", 2.0)), costs("a", "b"))
    assert found.missing == ("b",)
    assert [layer.name for layer in found.others] == ["__myl_Fused_0"]
    assert found.whole_s == 3.0


def test_kernels_without_names_are_placed_by_order_when_none_is_left_over() -> None:
    fused = [("node_b", "Conv", 2.0), ("FusedConv_9", "FusedConv", 1.0), ("Relu_3", "Relu", 0.5)]
    found = timed_network(profile(*fused), costs("a", "b"))
    assert [(layer.cost.name, layer.seconds) for layer in found.layers] == [("a", 1.0), ("b", 2.0)]
    assert [layer.name for layer in found.others] == ["Relu_3"]
    found = timed_network(profile(*fused), costs("a", "b", "c"))
    assert found.missing == ("a", "c")


def test_time_between_kernels_comes_from_the_latency_where_the_profile_does_not_tell() -> None:
    assert timed_network(profile(("node_a", "Conv", 1.0)), costs("a"), latency_s=1.5).between_s == 0.5
    assert timed_network(profile(("node_a", "Conv", 1.0)), costs("a"), latency_s=0.9).between_s == 0.0


def test_equal_names_are_pairs_whatever_their_order() -> None:
    dense = network([Scripted("a", 8, 8, 10, 1), Scripted("b", 8, 8, 20, 2)])
    ticket = network([Scripted("b", 8, 8, 20, 3), Scripted("a", 8, 8, 10, 4)])
    pairs = pairs_of(dense, ticket)
    assert [(pair.name, pair.ticket.seconds if pair.ticket else None) for pair in pairs] == [
        ("a", 0.004),
        ("b", 0.003),
    ]


def test_other_names_are_paired_by_order_and_what_is_left_stays_alone() -> None:
    dense = network([Scripted("stem", 8, 8, 1, 1), Scripted("x", 8, 8, 1, 2), Scripted("y", 8, 8, 1, 3)])
    ticket = network([Scripted("stem", 8, 8, 1, 1), Scripted("onnx::1", 8, 8, 1, 4)])
    pairs = pairs_of(dense, ticket)
    assert [(p.name, p.ticket.cost.name if p.ticket else None) for p in pairs] == [
        ("stem", "stem"),
        ("x", "onnx::1"),
        ("y", None),
    ]
    assert [p.name for p in pairs_of(ticket, dense) if p.dense is None] == ["y"]
