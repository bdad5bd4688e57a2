"""What each method of `find` asks for, knows, and does not go with."""

from __future__ import annotations

import pytest

from ticket_export.errors import RecipeError
from ticket_export.recipe.find_sections import SECTION_BY_METHOD, BudgetSection
from ticket_export.recipe.load import recipe_from_yaml
from ticket_export.recipe.schema import Recipe

HEAD = """
name: tiny
seed: 0
data: {source: digits, holdout_fraction: 0.1}
model: {builder: zoo:resnet20}
train: {epochs: 8, batch: 128, lr: 1e-1}
export: {targets: [onnx], precisions: [fp32]}
measure: {runtimes: [ort-cpu], batches: [1], scope: compute, samples: 5}
"""
ROUNDS = "levels: 2, drop_fraction: 0.3, rewind_epoch: 1"
SECTIONS = {
    "imp": ROUNDS,
    "refill": f"scope: coupled, {ROUNDS}",
    "refill_plus": f"scope: coupled, extra_fraction: 0.2, {ROUNDS}",
    "regroup": f"num_groups: 4, min_rows: 8, {ROUNDS}",
    "channel_imp": f"scope: coupled, {ROUNDS}",
    "early_bird": (
        "scope: coupled, drop_fraction: 0.5, rewind_epoch: 0, gamma_l1: 1e-4, window: 5, max_distance: 0.1"
    ),
    "rst": (
        "scope: inner, drop_fraction: 0.5, rewind_epoch: 0, criterion: l1, search_epochs: 2, "
        "search_lr: 1e-3, penalty_step: 1e-4, penalty_interval: 5, penalty_limit: 1.0"
    ),
    "supernet": (
        "event_epochs: 2, drop_step: 0.3, drop_fraction: 0.5, rewind_epoch: 0, gamma_l1: 1e-4, "
        "gamma_threshold: 1e-3, ema_decay: 0.9, norm_batches: 10, retrain_epochs: 2"
    ),
}


def text_of(section: str) -> str:
    return f"{HEAD}find: {{{section}}}\n"


def recipe_of(method: str, *overrides: str) -> Recipe:
    return recipe_from_yaml(
        text_of(f"method: {method}, {SECTIONS[method]}"), source="tiny.yaml", overrides=overrides
    )


def problems_in(text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        recipe_from_yaml(text, source="tiny.yaml", overrides=overrides)
    return [line.removeprefix("  ") for line in str(caught.value).splitlines()[1:]]


def problems_of(method: str, *overrides: str) -> list[str]:
    return problems_in(text_of(f"method: {method}, {SECTIONS[method]}"), *overrides)


def test_every_method_has_a_section_here_and_in_the_schema() -> None:
    assert list(SECTIONS) == list(SECTION_BY_METHOD)


@pytest.mark.parametrize("method", SECTIONS)
def test_a_section_that_says_what_its_method_needs_loads_and_has_no_controls(method: str) -> None:
    builder = ["model.builder=zoo:supernet"] if method == "supernet" else []
    find = recipe_of(method, *builder).find
    assert (find.method, find.controls, find.control_levels, find.distill) == (method, (), "last", None)
    assert find.levels == (1 if method in ("early_bird", "rst", "supernet") else 2)


@pytest.mark.parametrize("method", SECTIONS)
def test_all_that_a_method_lacks_is_told_at_once(method: str) -> None:
    needed = [part.partition(":")[0] for part in SECTIONS[method].split(", ")]
    if method in ("early_bird", "supernet"):
        needed.remove("drop_fraction")  # a budget may stand in its place
    assert sorted(problems_in(text_of(f"method: {method}"))) == sorted(
        f"find.{name}: is required" for name in needed
    )


def test_a_section_without_a_method_is_told_which_there_are() -> None:
    assert problems_in(text_of(ROUNDS)) == [
        "find.method: is required: one of imp, refill, refill_plus, regroup, channel_imp, early_bird, rst, "
        "supernet"
    ]


@pytest.mark.parametrize(
    ("method", "override", "told"),
    [
        ("imp", "find.scope=coupled", "find.scope: unknown key; find knows rewind_epoch, "),
        ("imp", "find.round_to=8", "find.round_to: unknown key"),
        ("imp", "find.budget={mac_fraction: 0.5}", "find.budget: unknown key"),
        ("imp", "find.score=l2", "find.score: unknown key"),
        ("refill", "find.extra_fraction=0.2", "find.extra_fraction: unknown key"),
        ("refill", "find.num_groups=8", "find.num_groups: unknown key"),
        ("regroup", "find.scope=layer", "find.scope: unknown key"),
        ("regroup", "find.budget={mac_fraction: 0.5}", "find.budget: unknown key"),
        ("regroup", "find.num_group=8", "find.num_group: unknown key (did you mean num_groups?)"),
        ("channel_imp", "find.extra_fraction=0.2", "find.extra_fraction: unknown key"),
        ("early_bird", "find.levels=2", "find.levels: unknown key"),
        ("early_bird", "find.rewind=none", "find.rewind: unknown key (did you mean "),
        ("early_bird", "find.score=gamma", "find.score: unknown key"),
        ("rst", "find.gamma_l1=1e-4", "find.gamma_l1: unknown key"),
        ("rst", "find.search_epoch=2", "find.search_epoch: unknown key (did you mean search_epochs?)"),
    ],
)
def test_a_key_of_another_method_is_unknown(method: str, override: str, told: str) -> None:
    [line] = problems_of(method, override)
    assert line.startswith(told)


@pytest.mark.parametrize(
    ("method", "override", "told"),
    [
        (
            "imp",
            "find.controls=[uniform]",
            "find.controls[0]: 'uniform' is not one of random, reinit, random_reinit",
        ),
        ("imp", "find.controls=[reinit, reinit]", "find.controls: 'reinit' is given twice"),
        (
            "channel_imp",
            "find.controls=[unstructured]",
            "find.controls[0]: 'unstructured' is not one of random, uniform, uniform_latency, ",
        ),
        ("channel_imp", "find.scope=layer", "find.scope: 'layer' is not one of inner, coupled"),
        ("early_bird", "find.scope=layer", "find.scope: 'layer' is not one of inner, coupled"),
        ("refill_plus", "find.extra_fraction=0", "find.extra_fraction: should be above 0, got 0"),
        ("refill_plus", "find.extra_fraction=1", "find.extra_fraction: should be below 1, got 1"),
        ("refill", "find.score=tp_l1", "find.score: 'tp_l1' is not one of l1, l2, count, gamma, taylor, "),
        ("refill", "find.rewind=weight", "find.rewind: 'weight' is not one of weights, rate, none"),
        ("refill", "find.rewind_step=-1", "find.rewind_step: should be at least 0, got -1"),
        ("refill", "find.magnitude_scope=net", "find.magnitude_scope: 'net' is not one of global, layer"),
        ("regroup", "find.num_groups=0", "find.num_groups: should be at least 1, got 0"),
        ("regroup", "find.min_rows=0", "find.min_rows: should be at least 1, got 0"),
        ("regroup", "find.columns=rows", "find.columns: 'rows' is not one of channels, taps"),
        ("regroup", "find.equal_blocks=1", "find.equal_blocks: should be true or false, got 1"),
        ("early_bird", "find.window=1", "find.window: should be at least 2, got 1"),
        ("early_bird", "find.max_distance=0", "find.max_distance: should be above 0, got 0"),
        ("early_bird", "find.gamma_l1=-1e-4", "find.gamma_l1: should be at least 0, got -0.0001"),
        ("rst", "find.criterion=l2", "find.criterion: 'l2' is not one of random, l1"),
        ("rst", "find.penalty_interval=0", "find.penalty_interval: should be at least 1, got 0"),
        ("rst", "find.search_lr=0", "find.search_lr: should be above 0, got 0"),
        ("imp", "find.distill={weight: 0.5}", "find.distill.temperature: is required"),
        (
            "imp",
            "find.distill={weight: 2, temperature: 4}",
            "find.distill.weight: should be at most 1, got 2",
        ),
    ],
)
def test_a_value_that_a_method_cannot_have_is_told(method: str, override: str, told: str) -> None:
    [line] = problems_of(method, override)
    assert line.startswith(told)


ONE_OF = "find.budget: should hold one of param_fraction, mac_fraction and latency_fraction, got "


@pytest.mark.parametrize("method", ["refill", "refill_plus", "channel_imp"])
@pytest.mark.parametrize(
    ("budget", "told"),
    [
        ("{}", f"{ONE_OF}none"),
        ("{mac_fraction: 0.5, param_fraction: 0.4}", f"{ONE_OF}param_fraction and mac_fraction"),
        ("{mac_fraction: 1}", "find.budget.mac_fraction: should be below 1, got 1"),
        ("{macs: 0.5}", "find.budget.macs: unknown key; find.budget knows param_fraction, mac_fraction, "),
        ("0.5", "find.budget: should be a section, got 0.5"),
    ],
)
def test_a_budget_is_one_share_of_dense(method: str, budget: str, told: str) -> None:
    assert problems_of(method, f"find.budget={budget}")[0].startswith(told)


def test_the_budget_of_a_level_comes_nearer_in_equal_ratios() -> None:
    budget = recipe_of("refill", "find.budget.latency_fraction=0.25").find.budget  # type: ignore[union-attr]
    assert isinstance(budget, BudgetSection)
    assert budget.kind == "latency_fraction"
    assert [budget.target(level, 2) for level in (1, 2)] == [0.5, 0.25]


def test_random_sparse_tickets_have_a_share_and_no_budget_nor_free_channels() -> None:
    assert problems_of("rst", "find.budget.mac_fraction=0.5") == [
        "find.budget: does not go with drop_fraction, which decides how much stays"
    ]
    assert problems_of("rst", "find.free_channels=true") == [
        "find.free_channels: does not go with drop_fraction, which decides how much stays"
    ]


def test_an_early_bird_has_a_share_or_a_budget() -> None:
    either = ["find.drop_fraction: stands in place of budget: exactly one of them is given"]
    assert problems_of("early_bird", "find.budget.mac_fraction=0.5") == either
    without = SECTIONS["early_bird"].replace("drop_fraction: 0.5, ", "")
    assert problems_in(text_of(f"method: early_bird, {without}")) == either
    budget = "budget: {latency_fraction: 0.5}"
    find = recipe_from_yaml(text_of(f"method: early_bird, {without}, {budget}"), source="tiny.yaml").find
    assert find.drop_fraction is None  # type: ignore[union-attr]
    assert find.needs_table  # type: ignore[union-attr]


WIDTHS = ["refill", "refill_plus", "channel_imp", "early_bird"]


@pytest.mark.parametrize("method", WIDTHS)
def test_free_channels_and_equal_latency_read_a_table(method: str) -> None:
    assert not recipe_of(method).find.needs_table  # type: ignore[union-attr]
    free = recipe_of(method, "find.free_channels=true", "find.controls=[uniform_latency]").find
    assert free.needs_table  # type: ignore[union-attr]
    assert problems_of(method, "find.controls=[uniform_latency]") == [
        "find.controls: uniform_latency needs free_channels or a budget of latency_fraction"
    ]


@pytest.mark.parametrize("kind", ["param_fraction", "mac_fraction"])
def test_free_channels_would_exceed_a_budget_that_counts(kind: str) -> None:
    assert problems_of("refill", f"find.budget.{kind}=0.5", "find.free_channels=true") == [
        f"find.free_channels: does not go with a budget of {kind}, which it would exceed"
    ]
    budget = "find.budget.latency_fraction=0.5"
    assert recipe_of("refill", budget, "find.free_channels=true").find.needs_table  # type: ignore[union-attr]


@pytest.mark.parametrize("method", ["refill", "refill_plus"])
def test_scope_layer_needs_scores_of_rows_and_no_budget(method: str) -> None:
    for score in ("gamma", "tp_magnitude", "tp_hessian"):
        assert problems_of(method, "find.scope=layer", f"find.score={score}") == [
            f"find.score: {score} scores whole channel groups, scope layer needs scores of rows"
        ]
    for field in ("budget.param_fraction=0.5", "free_channels=true"):
        assert problems_of(method, "find.scope=layer", f"find.{field}") == [
            f"find.{field.partition('=')[0].partition('.')[0]}: needs scope inner or coupled: "
            "most rows that scope layer drops cannot be removed"
        ]
    for score in ("l1", "l2", "count", "taylor"):
        assert recipe_of(method, "find.scope=layer", f"find.score={score}").find.scope == "layer"


@pytest.mark.parametrize("method", ["imp", "refill", "regroup", "channel_imp"])
def test_rates_by_layer_need_magnitudes_compared_within_layers(method: str) -> None:
    rates = ("find.conv_drop_fraction=0.15", "find.classifier_drop_fraction=0.1")
    text = "needs magnitude_scope layer: global ranks the weights of all layers together"
    assert problems_of(method, *rates) == [
        f"find.conv_drop_fraction: {text}",
        f"find.classifier_drop_fraction: {text}",
    ]
    assert recipe_of(method, *rates, "find.magnitude_scope=layer").find.conv_drop_fraction == 0.15  # type: ignore[union-attr]


def test_controls_of_every_level_need_the_tickets_of_every_level() -> None:
    assert problems_of("imp", "find.ticket_levels=last", "find.control_levels=every") == [
        "find.control_levels: every level has controls, but ticket_levels is last"
    ]


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
@pytest.mark.parametrize("method", ["imp", "channel_imp"])
def test_training_on_without_rewinding_needs_a_rate_that_is_left(method: str, schedule: str) -> None:
    assert problems_of(method, "find.rewind=none", f"train.schedule={schedule}") == [
        f"find.rewind: none trains on at the last learning rate, which {schedule} brings to 0"
    ]
    assert recipe_of(method, "find.rewind=none").train.schedule == "constant"
    assert recipe_of(method, "find.rewind=rate", f"train.schedule={schedule}").find.rewind == "rate"  # type: ignore[union-attr]


def test_as_many_masks_as_epochs_never_agree() -> None:
    assert problems_of("early_bird", "train.epochs=5") == [
        "find.window: 5 masks, one an epoch, do not fit train.epochs (5)"
    ]
    assert recipe_of("early_bird", "train.epochs=6").find.window == 5  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("method", "overrides", "told"),
    [
        (
            "early_bird",
            ("model.builder=zoo:conv2",),
            "find.method: early_bird reads the scales of norms, and zoo:conv2 has none",
        ),
        (
            "regroup",
            ("model.builder=zoo:mobilenet_v1",),
            "find.method: regroup joins columns, and depthwise layers of zoo:mobilenet_v1 have one each",
        ),
        (
            "refill",
            ("model.builder=zoo:conv2", "find.score=gamma"),
            "find.score: gamma reads the scales of norms, and zoo:conv2 has none",
        ),
        (
            "channel_imp",
            ("model.builder=zoo:lenet300_100", "find.score=tp_bn_scale"),
            "find.score: tp_bn_scale reads the scales of norms, and zoo:lenet300_100 has none",
        ),
        (
            "rst",
            ("model.args={shortcut: pad}", "find.controls=[random, depgraph]"),
            "find.controls[1]: torch-pruning cannot prune zoo:resnet20 with shortcut 'pad' "
            "(leave depgraph out)",
        ),
    ],
)
def test_a_method_that_does_not_fit_a_network_of_the_zoo_is_told(
    method: str, overrides: tuple[str, ...], told: str
) -> None:
    assert problems_of(method, *overrides) == [told]


def test_regroup_runs_in_blocks_and_has_no_widths_to_time() -> None:
    assert problems_of("regroup", "shrink.round_to=auto") == [
        "shrink.round_to: auto times widths, and regroup runs its layers in blocks"
    ]
    assert recipe_of("regroup", "shrink.round_to=8").shrink.round_to == 8
    assert recipe_of("refill", "shrink.round_to=auto").shrink.round_to == "auto"


def test_what_is_wrong_with_a_method_is_told_beside_what_is_wrong_elsewhere() -> None:
    assert problems_of("early_bird", "train.epochs=5", "data.source=nowhere") == [
        "data.source: 'nowhere' is not one of digits, arrays, folder, hub, hub:<name>",
        "find.window: 5 masks, one an epoch, do not fit train.epochs (5)",
    ]
