from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ticket_export.channels.mask import ElementMask
from ticket_export.errors import ShrinkError
from ticket_export.find.clusters import balanced_clusters
from ticket_export.find.magnitude import magnitude_mask
from ticket_export.find.regroup import Regrouped, regroup, require_regroupable
from ticket_export.models.zoo import zoo_network
from ticket_export.shrink.block_rows import Block

NAME = "conv.weight"


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def regrouped(weight: Tensor, keep: Tensor, **options: object) -> Regrouped:
    options = {"num_groups": 4, "min_rows": 2, "seed": 0} | options
    return regroup(ElementMask({NAME: keep}), {NAME: weight}, (NAME,), **options)  # type: ignore[arg-type]


def union(blocks: tuple[Block, ...], shape: torch.Size, columns: str) -> Tensor:
    """The mask that is True in the blocks, written weight by weight."""
    flat = torch.zeros(shape[0], shape[1] * shape[2] * shape[3], dtype=torch.bool)
    taps = shape[2] * shape[3]
    for block in blocks:
        for row in block.rows:
            for column in block.columns:
                own = [column] if columns == "taps" else range(column * taps, (column + 1) * taps)
                for position in own:
                    assert not flat[row, position], "blocks overlap"
                    flat[row, position] = True
    return flat.view(shape)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, dict[str, object]]:
    shape = [draw(st.integers(1, high)) for high in (24, 9, 3, 3)]
    seed, density = draw(st.integers(0, 2**16)), draw(st.sampled_from([0.02, 0.1, 0.3, 0.7, 0.95]))
    weight = noise(*shape, seed=seed)
    keep = torch.rand(shape, generator=torch.Generator().manual_seed(seed + 1)) < density
    keep[torch.rand(shape[0], generator=torch.Generator().manual_seed(seed + 2)) < 0.2] = False
    options = {
        "num_groups": draw(st.integers(1, 6)),
        "min_rows": draw(st.integers(1, 5)),
        "columns": draw(st.sampled_from(["channels", "taps"])),
        "equal_blocks": draw(st.booleans()),
        "extra_fraction": draw(st.sampled_from([0.0, 0.2])),
        "round_to": draw(st.sampled_from([1, 4])),
        "seed": seed,
    }
    return weight, keep, options


@settings(max_examples=150, deadline=None)
@given(cases())
def test_the_mask_is_dense_blocks_or_whole_and_nothing_else(
    case: tuple[Tensor, Tensor, dict[str, object]],
) -> None:
    weight, keep, options = case
    found = regrouped(weight, keep, **options)
    mask = found.element_mask.keep_by_parameter[NAME]
    assert set(found.blocks) ^ set(found.no_block) == {NAME}
    if NAME in found.no_block:
        assert mask.all()
        return
    assert torch.equal(mask, union(found.blocks[NAME], mask.shape, str(options["columns"])))
    assert not mask.all()


@settings(max_examples=150, deadline=None)
@given(cases())
def test_clusters_are_balanced_and_hold_every_row_that_keeps_a_weight(
    case: tuple[Tensor, Tensor, dict[str, object]],
) -> None:
    weight, keep, options = case
    blocks = regrouped(weight, keep, **options).blocks.get(NAME, ())
    sizes = [len(block.rows) for block in blocks]
    if not sizes:
        return
    assert len(sizes) <= int(str(options["num_groups"]))
    assert min(sizes) >= int(str(options["min_rows"]))
    assert max(sizes) - min(sizes) <= 1
    clustered = {row for block in blocks for row in block.rows}
    assert len(clustered) == sum(sizes)
    assert clustered >= set(keep.flatten(1).any(1).nonzero().flatten().tolist())
    if options["equal_blocks"]:
        assert len({(len(block.rows), len(block.columns)) for block in blocks}) == 1


@settings(max_examples=150, deadline=None)
@given(cases())
def test_the_budget_is_kept_up_to_one_column_of_each_cluster(
    case: tuple[Tensor, Tensor, dict[str, object]],
) -> None:
    weight, keep, options = case
    found = regrouped(weight, keep, **options | {"extra_fraction": 0.0, "round_to": 1})
    if NAME in found.no_block:
        return
    column_size = keep.shape[2] * keep.shape[3] if options["columns"] == "channels" else 1
    num_rows = sum(len(block.rows) for block in found.blocks[NAME])
    num_kept = int(found.element_mask.keep_by_parameter[NAME].sum())
    assert int(keep.sum()) <= num_kept <= int(keep.sum()) + num_rows * column_size


@settings(max_examples=30, deadline=None)
@given(cases())
def test_equal_arguments_give_equal_blocks(case: tuple[Tensor, Tensor, dict[str, object]]) -> None:
    weight, keep, options = case
    assert regrouped(weight, keep, **options).blocks == regrouped(weight, keep, **options).blocks


@pytest.mark.parametrize("columns", ["channels", "taps"])
def test_planted_blocks_are_found_again(columns: str) -> None:
    order = torch.randperm(32, generator=torch.Generator().manual_seed(3))
    keep = torch.zeros(32, 16, 3, 3, dtype=torch.bool)
    for place, row in enumerate(order.tolist()):
        keep[row, torch.arange(16) % 4 == place // 8] = True
    found = regrouped(noise(32, 16, 3, 3), keep, columns=columns)
    assert torch.equal(found.element_mask.keep_by_parameter[NAME], keep)
    assert {block.rows for block in found.blocks[NAME]} == {
        tuple(sorted(order[start : start + 8].tolist())) for start in (0, 8, 16, 24)
    }


def test_blocks_of_unequal_weight_keep_unequal_numbers_of_columns_unless_they_must_be_equal() -> None:
    keep = torch.zeros(8, 8, 1, 1, dtype=torch.bool)
    keep[:4, :6], keep[4:, 6:] = True, True
    free = regrouped(noise(8, 8, 1, 1), keep, num_groups=2)
    assert [len(block.columns) for block in free.blocks[NAME]] == [6, 2]
    equal = regrouped(noise(8, 8, 1, 1), keep, num_groups=2, equal_blocks=True)
    assert [len(block.columns) for block in equal.blocks[NAME]] == [4, 4]
    assert set(equal.blocks[NAME][1].columns) > {6, 7}


def test_a_cluster_keeps_the_columns_of_largest_surviving_norm_and_the_first_of_equal_ones() -> None:
    weight = torch.tensor([[9.0, 1.0, 2.0, 2.0], [9.0, 1.0, 2.0, 2.0]]).view(2, 4, 1, 1)
    keep = torch.tensor([[False, True, True, True], [False, True, True, True]]).view(2, 4, 1, 1)
    keep[1, 1] = False
    block = regrouped(weight, keep, num_groups=1).blocks[NAME][0]
    assert block.columns == (1, 2, 3)  # ceil(5 / 2): the largest weight does not survive
    keep[0, 3] = False
    assert regrouped(weight, keep, num_groups=1).blocks[NAME][0].columns == (2, 3)
    weight[0, 2] = 0.0
    keep[1, 3] = False
    weight[0, 1] = 2.0
    assert regrouped(weight, keep, num_groups=1).blocks[NAME][0].columns == (1, 2)


def test_extra_columns_are_a_share_of_those_dropped_and_widths_are_rounded_up() -> None:
    keep = torch.zeros(4, 12, 1, 1, dtype=torch.bool)
    keep[:, :2] = True
    widths = {
        (extra, grid): len(
            regrouped(noise(4, 12, 1, 1), keep, num_groups=1, extra_fraction=extra, round_to=grid)
            .blocks[NAME][0]
            .columns
        )
        for extra, grid in ((0.0, 1), (0.2, 1), (0.5, 1), (0.2, 8))
    }
    assert widths == {(0.0, 1): 2, (0.2, 1): 4, (0.5, 1): 7, (0.2, 8): 8}


def test_rows_without_a_weight_join_no_cluster_but_fill_the_smallest() -> None:
    keep = torch.zeros(8, 4, 1, 1, dtype=torch.bool)
    keep[3:6, :2] = True
    weight = noise(8, 4, 1, 1)
    assert [block.rows for block in regrouped(weight, keep).blocks[NAME]] == [(3, 4, 5)]
    filled = regrouped(weight, keep, min_rows=4).blocks[NAME]
    assert [block.rows for block in filled] == [(0, 3, 4, 5)]


def test_equal_blocks_take_fewer_clusters_where_the_rows_do_not_divide() -> None:
    keep = torch.rand(9, 8, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.3
    blocks = regrouped(noise(9, 8, 3, 3), keep, num_groups=4, equal_blocks=True).blocks[NAME]
    assert [len(block.rows) for block in blocks] == [3, 3, 3]


def test_a_layer_that_magnitude_pruning_emptied_keeps_one_column_of_its_first_rows() -> None:
    found = regrouped(noise(8, 4, 3, 3), torch.zeros(8, 4, 3, 3, dtype=torch.bool))
    assert found.blocks[NAME] == (Block(rows=(0, 1), columns=(0,)),)


def test_layers_without_a_block_stay_whole_and_say_why() -> None:
    weights = {
        "few": noise(3, 8, 3, 3),
        "full": noise(8, 8, 1, 1),
        "fc": noise(4, 8),
        "conv": noise(8, 8, 3, 3),
    }
    mask = magnitude_mask(weights, keep_fraction=0.3, scope="layer")
    mask = ElementMask(mask.keep_by_parameter | {"full": torch.ones(8, 8, 1, 1, dtype=torch.bool)})
    found = regroup(mask, weights, ("few", "full", "conv"), num_groups=2, min_rows=4, seed=0)
    assert found.no_block == {
        "few": "it has 3 rows, fewer than min_rows 4",
        "full": "its blocks would keep every weight",
        "fc": "it is no two-dimensional convolution",
    }
    assert all(found.element_mask.keep_by_parameter[name].all() for name in found.no_block)
    assert set(found.blocks) == {"conv"}


def test_a_layer_more_changes_no_other_layers_blocks() -> None:
    weights = {"one": noise(16, 8, 3, 3), "two": noise(16, 8, 3, 3, seed=1)}
    mask = magnitude_mask(weights, keep_fraction=0.4)
    both = regroup(mask, weights, ("one", "two"), num_groups=4, min_rows=2, seed=5)
    alone = ElementMask({"two": mask.keep_by_parameter["two"]})
    assert (
        regroup(alone, weights, ("two",), num_groups=4, min_rows=2, seed=5).blocks["two"]
        == both.blocks["two"]
    )


def test_clusters_are_of_equal_size_although_one_kind_of_row_is_rare() -> None:
    points = torch.zeros(12, 6)
    points[:9, :3], points[9:, 3:] = 1.0, 1.0
    clusters = balanced_clusters(points, 3, seed=0)
    assert sorted(len(rows) for rows in clusters) == [4, 4, 4]
    assert sum(set(rows.tolist()) >= {9, 10, 11} for rows in clusters) == 1
    assert torch.cat(clusters).sort().values.tolist() == list(range(12))


def test_the_weights_of_convolutions_are_regroupable_and_grouped_ones_are_refused(
    residual_net: nn.Module, depthwise_net: nn.Module
) -> None:
    assert require_regroupable(residual_net) == (
        *("conv1.weight", "conv2.weight", "conv3.weight", "conv4.weight", "project.weight"),
    )
    with pytest.raises(ShrinkError, match="'depthwise': it has 12 groups"):
        require_regroupable(depthwise_net)
    assert require_regroupable(depthwise_net, ["expand.weight"]) == ("expand.weight",)
    lenet = zoo_network("lenet300_100", {}, num_classes=10, image_shape=(1, 28, 28))
    with pytest.raises(ShrinkError, match="LeNet300100 has no two-dimensional convolution"):
        require_regroupable(lenet)


def test_what_does_not_fit_is_refused() -> None:
    weight, keep = noise(8, 4, 3, 3), torch.ones(8, 4, 3, 3, dtype=torch.bool)
    for options, message in (
        ({"num_groups": 0}, "num_groups of regroup is 0"),
        ({"min_rows": 0}, "min_rows of regroup is 0"),
        ({"round_to": -1}, "round_to of regroup is -1"),
        ({"columns": "rows"}, "'rows'"),
        ({"extra_fraction": 1.0}, "extra_fraction of regroup is 1.0"),
    ):
        with pytest.raises(ShrinkError, match=message):
            regrouped(weight, keep, **options)
    with pytest.raises(ShrinkError, match=r"is \(8, 4, 3, 3\), the weight \(8, 5, 3, 3\)"):
        regrouped(noise(8, 5, 3, 3), keep)
    with pytest.raises(ShrinkError, match=r"'conv\.weight', which is not among the 0"):
        regroup(ElementMask({NAME: keep}), {}, (NAME,), num_groups=2, min_rows=2, seed=0)
