"""Outputs, inputs and parameters of every kind, none and zero size included, are shrunk right."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from small_networks import Small, equal_result, hidden_width
from torch import Tensor, nn

# N batch, F features


@pytest.fixture(autouse=True)
def _equal_in_every_run() -> None:
    torch.manual_seed(0)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 4)


# outputs, inputs and sizes


class Pair(NamedTuple):
    logits: object
    features: object


OUTPUTS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "dict": lambda logits, x: {"logits": logits, "x": x},
    "tuple": lambda logits, x: (logits, [x, 3]),
    "named tuple": Pair,
    "with None": lambda logits, _: (logits, None),
    "with text": lambda logits, _: (logits, "ok"),
    "class numbers": lambda logits, _: logits.argmax(1),
    "yes or no": lambda logits, _: logits > 0,
    "one number": lambda logits, _: logits.sum(),
    "complex": lambda logits, _: torch.complex(logits, -logits),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_of_every_kind_keep_their_structure(name: str, x: Tensor) -> None:
    class Returning(Small):
        def forward(self, x_NF: Tensor) -> object:
            return OUTPUTS[name](self.c(self.hidden(x_NF)), x_NF)

    assert hidden_width(equal_result(Returning(), x)) == 3


def test_hidden_units_that_are_an_output_too_stay(x: Tensor) -> None:
    class Showing(Small):
        def forward(self, x_NF: Tensor) -> object:
            hidden = self.hidden(x_NF)
            return {"logits": self.c(hidden), "hidden": hidden}

    assert hidden_width(equal_result(Showing(), x)) == 6


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_integer_inputs_are_inputs(dtype: torch.dtype) -> None:
    class Scaling(Small):
        def forward(self, x_NF: Tensor) -> object:
            return self.c(self.hidden(x_NF.float() / 255))

    assert hidden_width(equal_result(Scaling(), torch.randint(0, 255, (2, 4), dtype=dtype))) == 3


def test_a_constant_times_a_bool_input_is_no_constant(x: Tensor) -> None:
    class Gated(Small):
        def forward(self, x_NF: Tensor, keep_N: Tensor) -> object:
            return self.c(self.hidden(x_NF) * keep_N[:, None])

    assert hidden_width(equal_result(Gated(), x, torch.tensor([True, False]))) == 5  # the zero alone goes


@pytest.mark.parametrize(("factor", "width"), [(1.7, 3), (0.0, 1)])
def test_a_scalar_parameter_scales_and_at_zero_leaves_one_channel(
    factor: float, width: int, x: Tensor
) -> None:
    class Scaled(Small):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(factor))

        def forward(self, x_NF: Tensor) -> object:
            return self.c(self.hidden(x_NF) * self.factor)

    assert hidden_width(equal_result(Scaled(), x)) == width


def test_buffers_without_elements_are_no_hindrance(x: Tensor) -> None:
    net = Small()
    net.register_buffer("empty", torch.zeros(0, 3))
    assert hidden_width(equal_result(net, x)) == 3


def test_a_parameter_without_elements_that_is_read_is_no_hindrance(x: Tensor) -> None:
    class Empty(Small):
        def __init__(self) -> None:
            super().__init__()
            self.empty = nn.Parameter(torch.zeros(0))

        def forward(self, x_NF: Tensor) -> object:
            return self.c(self.hidden(x_NF)) + self.empty.sum()

    assert hidden_width(equal_result(Empty(), x)) == 3


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_a_layer_without_channels_is_no_hindrance(x: Tensor) -> None:
    net = nn.Sequential(nn.Linear(4, 0), nn.ReLU(), nn.Linear(0, 2))
    assert equal_result(net, x).report.params == 2


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning")
@pytest.mark.parametrize("kind", ["parameter", "layer"])
def test_complex_weights_stay_whole_and_right(kind: str, x: Tensor) -> None:
    class Complex(Small):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Linear(6, 6, dtype=torch.complex64)
            with torch.no_grad():
                self.w.weight[::2] = 0.0

        def forward(self, x_NF: Tensor) -> object:
            hidden = self.hidden(x_NF).to(torch.complex64)
            mixed = self.w(hidden) if kind == "layer" else hidden @ self.w.weight
            return self.c(torch.view_as_real(mixed).sum(-1))

    assert equal_result(Complex(), x).model.w.weight.dtype == torch.complex64


@pytest.mark.parametrize("network", [nn.Identity, nn.Flatten, nn.Softmax])
def test_a_network_without_parameters_comes_back(network: type[nn.Module]) -> None:
    net = nn.Softmax(dim=1) if network is nn.Softmax else network()
    assert equal_result(net, torch.randn(2, 3, 4)).report.params == 0
