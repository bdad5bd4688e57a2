"""Odd networks and wrong inputs: a clear error that names what and where, or the right result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from small_networks import Small, equal_result, hidden_width
from torch import Tensor, nn

from ticket_export.channels.mask import Mask
from ticket_export.errors import DivergedError, ShrinkError
from ticket_export.shrink.equivalence import relative_error
from ticket_export.shrink.exact import shrink

# N batch, C channels, H W pixels, F features, K outputs


@pytest.fixture(autouse=True)
def _equal_in_every_run() -> None:
    torch.manual_seed(0)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 4)


def conv_net() -> nn.Sequential:
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)),
    )
    with torch.no_grad():
        net[0].weight[::2] = 0.0
        net[1].running_mean.normal_()
    return net.eval()


# what cannot be traced


class Branching(Small):
    def forward(self, x_NF: Tensor) -> object:
        hidden = self.hidden(x_NF)
        if hidden.sum() > 0:
            hidden = hidden * 2
        return self.c(hidden)


def test_control_flow_on_values_is_told_with_its_file_and_line(x: Tensor) -> None:
    line = Branching.forward.__code__.co_firstlineno + 2
    with pytest.raises(
        ShrinkError, match=rf"Branching cannot be traced.*test_bad_input\.py:{line}: if hidden.sum"
    ):
        shrink(Branching(), x)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_network_is_refused_with_its_class(x: Tensor) -> None:
    with pytest.raises(ShrinkError, match=r"TopLevelTracedModule cannot be traced.*ScriptModule"):
        shrink(torch.jit.trace(Small().eval(), x), x)


@dataclass
class Answer:
    logits: object


class Answering(Small):
    def forward(self, x_NF: Tensor) -> object:
        return Answer(super().forward(x_NF))


def test_a_class_of_outputs_that_torch_does_not_know_is_named(x: Tensor) -> None:
    with pytest.raises(ShrinkError, match=r"Answering cannot be traced.*test_bad_input\.Answer'> in output"):
        shrink(Answering(), x)


# example inputs


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (torch.zeros(1, 4, 8, 8), r"with inputs \(2, 4, 8, 8\).*to have 3 channels, but got 4"),
        (torch.zeros(3, 8, 8), r"with inputs \(3, 8, 8\).*expected 4D"),
        (torch.zeros(2, 8), r"with inputs \(2, 8\)"),
        (torch.zeros(1, 3, 0, 8), r"with inputs \(2, 3, 0, 8\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), r"\(long int\) and bias type \(float\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.float64), r"\(double\) and bias type \(float\)"),
        ((torch.zeros(1, 3, 8, 8),) * 2, r"\(2, 3, 8, 8\), \(2, 3, 8, 8\).*positional"),
        (torch.full((1, 3, 8, 8), float("nan")), "output on the example inputs 1x3x8x8 is not finite"),
        ((), "example_inputs is empty"),
        ([[1.0]], r"example_inputs\[0\] is a list, no tensor"),
        (torch.zeros(0, 3, 8, 8), r"example_inputs\[0\] has shape \(0, 3, 8, 8\)"),
        (torch.tensor(1.0), r"example_inputs\[0\] has shape \(\)"),
        (torch.zeros(1, 3, 8, 8, device="meta"), r"example_inputs\[0\] is on meta, the model on cpu"),
        (None, "example_inputs"),
        (torch.zeros(1, 3, 8, 8).to_sparse(), r"example_inputs\[0\]"),
    ],
    ids=str,
)
def test_inputs_that_do_not_fit_are_told_with_their_shape(inputs: Sequence[Tensor], text: str) -> None:
    with pytest.raises(ShrinkError, match=text):
        shrink(conv_net(), inputs)


def test_an_input_with_a_gradient_is_an_input() -> None:
    shrunk = shrink(net := conv_net(), torch.randn(1, 3, 8, 8, requires_grad=True))
    trial = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        assert relative_error(shrunk.model(trial), net(trial)) <= 1e-5


def test_a_function_is_no_network(x: Tensor) -> None:
    with pytest.raises(ShrinkError, match="function"):
        shrink(lambda x_NF: x_NF, x)  # type: ignore[arg-type]


# masks


@pytest.mark.parametrize(
    ("keep_by_group", "text"),
    [
        (
            {"9": torch.ones(3, dtype=torch.bool)},
            "group '9', which the model does not have\nhint: its groups: 0, 3, 6",
        ),
        ({"0": torch.ones(3, dtype=torch.bool)}, "group '0' has 3 channels, the group has 8"),
        (
            {"6": torch.arange(4) > 0},
            "drops 1 of 4 channels of group '6', which must stay whole: model output",
        ),
        ({"3": torch.zeros(6, dtype=torch.bool)}, "group '3' keeps 0 of 6 channels"),
    ],
)
def test_a_mask_that_does_not_fit_is_told_with_its_group(keep_by_group: dict[str, Tensor], text: str) -> None:
    with pytest.raises(ShrinkError, match=text):
        shrink(conv_net(), torch.zeros(1, 3, 8, 8), mask=Mask(keep_by_group))


@pytest.mark.parametrize(
    ("keep_C", "text"),
    [
        (torch.ones(6), r"group '3' is torch\.float32 with shape \(6,\)"),
        (torch.ones(2, 3, dtype=torch.bool), r"group '3' is torch\.bool with shape \(2, 3\)"),
    ],
)
def test_a_mask_that_is_none_is_told_when_it_is_made(keep_C: Tensor, text: str) -> None:
    with pytest.raises(ShrinkError, match=text):
        Mask({"3": keep_C})


# values, modes, precisions, devices


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["0.weight", "6.bias", "1.weight", "1.running_mean", "1.running_var"])
def test_a_value_that_is_not_finite_is_told_with_its_tensor(name: str, value: float) -> None:
    net = conv_net()
    net.state_dict()[name].flatten()[0] = value
    with pytest.raises(ShrinkError, match=f"'{name}' holds a value that is not finite"):
        shrink(net, torch.zeros(1, 3, 8, 8))


def test_a_variance_below_zero_is_told_by_what_the_network_gives() -> None:
    net = conv_net()
    net.state_dict()["1.running_var"][1] = -1.0
    with pytest.raises(
        ShrinkError, match="the network's own output on the example inputs 1x3x8x8 is not finite"
    ):
        shrink(net, torch.ones(1, 3, 8, 8))


class Causal(nn.Module):
    """Attention over earlier positions alone, by a mask of -inf that is not in the state dict."""

    def __init__(self, *, persistent: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)
        mask = torch.full((5, 5), float("-inf")).triu(1)
        self.register_buffer("mask", mask, persistent=persistent)
        with torch.no_grad():
            self.b.weight[::2] = 0.0

    def forward(self, x_NTF: Tensor) -> object:
        q = self.a(x_NTF)
        weights = (q @ q.transpose(1, 2) + self.mask).softmax(-1)
        return self.c(torch.relu(self.b(weights @ q)))


def test_a_mask_of_minus_infinity_is_told_or_shrunk_right() -> None:
    inputs = torch.randn(2, 5, 4)
    with pytest.raises(ShrinkError, match="'mask' holds a value that is not finite"):
        shrink(Causal(persistent=True), inputs)
    assert equal_result(Causal(persistent=False), inputs).report.widths["b"].after == 3


def test_training_mode_is_kept_module_by_module_and_the_function_is_that_of_evaluation() -> None:
    net = conv_net().train()
    net[1].eval()  # a frozen norm, as in fine-tuning
    shrunk = shrink(net, torch.randn(1, 3, 8, 8))
    modes = [module.training for module in net.modules()]
    assert modes == [True, True, False, *[True] * 5]
    assert [module.training for module in shrunk.model.modules()] == modes
    trial = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        assert relative_error(shrunk.model.eval()(trial), net.eval()(trial)) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_with_the_way_around_it(dtype: torch.dtype) -> None:
    with pytest.raises(ShrinkError, match=rf"the model is in {dtype}\nhint: shrink it in float32"):
        shrink(conv_net().to(dtype), torch.zeros(1, 3, 8, 8, dtype=dtype))


def test_a_network_that_mixes_precisions_and_cannot_run_is_told() -> None:
    net = conv_net()
    net[6].half()
    with pytest.raises(ShrinkError, match=r"float16|Half"):
        shrink(net, torch.zeros(1, 3, 8, 8))


class Widening(Small):
    def __init__(self) -> None:
        super().__init__()
        self.c.double()

    def forward(self, x_NF: Tensor) -> object:
        return self.c(self.hidden(x_NF).double())


def test_a_network_that_converts_between_precisions_keeps_each(x: Tensor) -> None:
    shrunk = equal_result(Widening(), x)
    assert hidden_width(shrunk) == 3
    assert [p.dtype for p in shrunk.model.parameters()] == [torch.float32] * 2 + [torch.float64] * 2


@pytest.mark.parametrize("parts", ["all", "last"])
def test_weights_without_values_are_told(parts: str) -> None:
    net = conv_net()
    (net if parts == "all" else net[6]).to("meta")
    device = "meta" if parts == "all" else "cpu"
    with pytest.raises(ShrinkError, match="meta"):
        shrink(net, torch.zeros(1, 3, 8, 8, device=device))


def test_a_lazy_network_that_has_seen_no_input_is_told(x: Tensor) -> None:
    with pytest.raises(ShrinkError, match=r"uninitialized|lazy"):
        shrink(nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.Linear(6, 2)), x)


def test_a_lazy_network_that_has_seen_an_input_is_like_any_other(x: Tensor) -> None:
    net = nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.LazyLinear(2))
    net(x)
    with torch.no_grad():
        net[0].weight[::2] = 0.0
    assert equal_result(net, x).report.widths["0"].after == 3


class Random(Small):
    def forward(self, x_NF: Tensor) -> object:
        return self.c(self.hidden(x_NF) + torch.rand(6))


def test_a_network_that_draws_numbers_is_no_function_and_is_refused(x: Tensor) -> None:
    with pytest.raises(DivergedError, match="differs from the dense one on the example inputs 2x4"):
        shrink(Random(), x)


@pytest.mark.parametrize("answer", [None, 3], ids=str)
def test_a_network_that_returns_no_tensor_is_told(answer: object, x: Tensor) -> None:
    class Silent(Small):
        def forward(self, x_NF: Tensor) -> object:
            return answer

    with pytest.raises(ShrinkError, match="tensor"):
        shrink(Silent(), x)
