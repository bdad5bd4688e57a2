"""Random networks for the shrink: a seed gives a graph of small layers with random zeros in their weights."""

from __future__ import annotations

import copy
import random
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from random_layers import Apply, fill
from random_moves import JOINS, MOVES, POOLS
from random_steps import COMPUTED, CONVOLUTIONS, FLAT, IDS, MAP, Draw, MisfitError, Step, Value
from torch import Tensor, nn

from ticket_export.shrink.equivalence import FORWARD_ERRORS
from ticket_export.shrink.exact import Shrunk, shrink

# N images, C channels, T tokens; "s" stands for one to three axes of pixels

STEPS: dict[str, tuple[float, Callable[[Draw], Step]]] = {**COMPUTED, **MOVES, **POOLS, **JOINS}
FIRST = {kind: STEPS[kind] for kind in ("convolution", "linear", "embedding", "tokens from map")}
BAR = 1e-9
FAINT = 1e-6  # an output no larger than this is compared to this instead of to itself


class Network(nn.Module):
    """Layers, each with the values that it reads: inputs first, then one value per layer."""

    def __init__(self, steps: list[Step], outputs: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(step.module for step in steps)
        self.sources = [step.sources for step in steps]
        self.outputs = outputs

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        values = [x] if y is None else [x, y]
        for layer, sources in zip(self.layers, self.sources, strict=True):
            values.append(layer(*(values[source] for source in sources)))
        results = tuple(values[output] for output in self.outputs)
        return results[0] if len(results) == 1 else results


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A random network in float64 and evaluation mode, with its example inputs.

    Attributes:
        seed: what gives it again.
        options: of the shrink; none for most networks.
        kinds: the kind of every layer, in order; the number of inputs and outputs among them.
    """

    seed: int
    net: Network
    inputs: tuple[Tensor, ...]
    kinds: tuple[str, ...]
    options: dict[str, Any]  # Any: keywords of `shrink`

    def words(self) -> str:
        """Return one line per layer: its kind, what it reads, and its arguments."""
        first = len(self.inputs)
        shapes = [tuple(x.shape) for x in self.inputs]
        lines = [f"seed {self.seed}, inputs {shapes}, options {self.options}"]
        for position, (layer, sources) in enumerate(zip(self.net.layers, self.net.sources, strict=True)):
            text = " ".join(repr(layer).split())
            lines.append(f"  {first + position} = {self.kinds[position]} {sources}: {text}")
        return "\n".join([*lines, f"  returns {self.net.outputs}"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the check of one network saw: the largest error, and the shrink's result."""

    error: float
    num_trials: int
    shrunk: Shrunk = field(repr=False)


def random_network(seed: int) -> Drawn:
    """Return the network of a seed: the same in every run and on every machine."""
    for attempt in range(100):
        drawn = _drawn(seed, random.Random(f"shrink-{seed}-{attempt}"))
        if _means_something(drawn):
            return drawn
    raise AssertionError(f"seed {seed} gives no network with an output that means anything")


def _means_something(drawn: Drawn) -> bool:
    """Return whether the network takes a batch of 1, and no output is the rounding of a sum that is zero."""
    with torch.no_grad():
        try:
            drawn.net(*(x[:1] for x in drawn.inputs))
        except FORWARD_ERRORS:
            return False  # torch refuses to normalise a single number
        result = drawn.net(*drawn.inputs)
    sizes = [float(x.abs().max()) for x in ((result,) if isinstance(result, Tensor) else result)]
    return all(size == 0 or size > FAINT for size in sizes)


def _drawn(seed: int, rng: random.Random) -> Drawn:
    draw = Draw(rng=rng)
    inputs = _inputs(draw)
    draw.values = [*inputs]
    steps: list[Step] = []
    wanted = draw.rng.randint(4, 8)
    with torch.no_grad():
        while len(steps) < wanted:
            table = STEPS if steps or draw.coin(0.2) else FIRST  # most networks begin with a layer
            kind = draw.rng.choices(list(table), [weight for weight, _ in table.values()])[0]
            _take(draw, steps, kind, STEPS[kind][1])
        outputs = [_ended(draw, steps, len(draw.values) - 1)]
        if draw.rng.random() < 0.3:
            outputs.append(_ended(draw, steps, draw.rng.randrange(len(inputs), len(draw.values))))
    kinds = [step.kind for step in steps]
    kinds += ["several inputs"] * (len(inputs) > 1) + ["several outputs"] * (len(set(outputs)) > 1)
    net = Network(steps, outputs).double().eval()
    return Drawn(
        seed=seed,
        net=net,
        inputs=tuple(value.x for value in inputs),
        kinds=tuple(kinds),
        options=_options(draw),
    )


def _options(draw: Draw) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if draw.coin(0.2):
        options["round_to"] = draw.rng.choice((2, 4))
    if draw.coin(0.15):
        options["residual"] = "index"
    if draw.coin(0.3):
        options["padded_constants"] = draw.rng.choice(("carrier", "term"))
    return options


def _inputs(draw: Draw) -> list[Value]:
    rank = draw.rng.choices((1, 2, 3), (2, 7, 1))[0]
    low, high = {1: (8, 12), 2: (6, 9), 3: (4, 6)}[rank]
    shape = (2, draw.rng.randint(3, 4), *(draw.rng.randint(low, high) for _ in range(rank)))
    generator = torch.Generator().manual_seed(draw.rng.randrange(2**31))
    image = Value(MAP, torch.randn(shape, generator=generator, dtype=torch.float64))
    extra = draw.rng.random()
    if extra < 0.15:
        second = Value(MAP, torch.randn(shape, generator=generator, dtype=torch.float64))
        return [image, second]
    if extra < 0.3:
        ids = torch.randint(0, 10, (2, draw.rng.randint(5, 8)), generator=generator)
        return [image, Value(IDS, ids)] if draw.rng.random() < 0.5 else [Value(IDS, ids)]
    return [image]


def _take(draw: Draw, steps: list[Step], kind: str, propose: Callable[[Draw], Step]) -> int | None:
    """Append a step where it fits and its values stay sane; return the place of its value."""
    with torch.random.fork_rng(devices=[]):
        try:
            step = propose(draw)
            if step.is_new:
                fill(step.module, draw.rng)
            x = step.module(*(draw.values[source].x for source in step.sources))
        except (MisfitError, *FORWARD_ERRORS):
            return None  # the shapes do not fit each other
    largest = float(x.abs().max()) if x.numel() else 0.0
    if not 0 < x[0].numel() <= 4000 or not largest < 1e3:
        return None
    step.kind = kind
    steps.append(step)
    draw.values.append(Value(step.layout, x))
    return len(draw.values) - 1


def _ended(draw: Draw, steps: list[Step], source: int) -> int:
    """Return where the output made from a value stands: behind a classifier, a last layer, or itself."""
    if draw.rng.random() < 0.1:
        return source  # its channels are the output's and stay
    if draw.values[source].layout == MAP and draw.coin():
        flat = _take(draw, steps, "head", partial(_flat, at=source))
        source = source if flat is None else flat
    last = _take(draw, steps, "head", partial(_last, at=source))
    return source if last is None else last


def _flat(draw: Draw, *, at: int) -> Step:
    if draw.coin(0.3):
        return Step(nn.Flatten(1), (at,), FLAT)
    return Step(Apply("mean of pixels", lambda x: x.flatten(2).mean(2)), (at,), FLAT)


def _last(draw: Draw, *, at: int) -> Step:
    value = draw.values[at]
    if value.layout != MAP:
        return Step(nn.Linear(value.channels, 3), (at,), value.layout)
    size = draw.rng.choice((1, 3))
    return Step(CONVOLUTIONS[value.rank](value.channels, 3, size, padding=size // 2), (at,), MAP)


# ---------------------------------------------------------------------- the check


def check(net: nn.Module, inputs: tuple[Tensor, ...], *, seed: int = 0, **options: Any) -> Outcome:
    """Shrink a network in float64 and return the largest error on inputs that the shrink has not seen.

    Raises:
        AssertionError: an output differs, the given network was changed, or the parameters grew.
        Whatever the shrink raises: a random network is valid, so none of that is expected.
    """
    before = copy.deepcopy(net.state_dict())
    shrunk = shrink(net, inputs, **options)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} of the given network was changed"
    trials = fresh_inputs(net, inputs, seed, open_size=shrunk.report.open_size)
    worst = max(error_on(trial, shrunk.model, net) for trial in trials)
    assert worst <= BAR, f"relative error {worst:.3g} in the {shrunk.report.form} form"
    count, allowed = num_params(shrunk.model), num_params(net) + _new_biases(shrunk)
    assert count <= allowed, f"{count} parameters, at most {allowed} expected"
    assert count == shrunk.report.params
    return Outcome(error=worst, num_trials=len(trials), shrunk=shrunk)


def fresh_inputs(
    net: nn.Module, inputs: tuple[Tensor, ...], seed: int, *, open_size: bool = True
) -> list[tuple[Tensor, ...]]:
    """Return inputs at batch 1 and 3, and at a larger resolution where the network accepts one."""
    generator = torch.Generator().manual_seed(seed + 1)
    trials = [tuple(_like(x, (batch, *x.shape[1:]), generator) for x in inputs) for batch in (1, 3)]
    if open_size and all(x.is_floating_point() for x in inputs):
        larger = tuple(
            _like(x, (2, x.shape[1], *(size + 4 for size in x.shape[2:])), generator) for x in inputs
        )
        try:
            with torch.no_grad():
                net(*larger)
        except FORWARD_ERRORS:
            return trials  # flattened, or with a parameter per position
        trials.append(larger)
    return trials


def _like(x: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if x.is_floating_point():
        return torch.randn(shape, generator=generator, dtype=x.dtype)
    return torch.randint(0, 10, shape, generator=generator)


def error_on(trial: tuple[Tensor, ...], small: nn.Module, dense: nn.Module) -> float:
    """Return the largest max|a - b| / max|b| over the outputs; faint outputs count as `FAINT`."""
    with torch.no_grad(), warnings.catch_warnings():
        references = dense(*trial)
        warnings.simplefilter("error")  # what torch finds odd in the small network alone
        results = small(*trial)
    pairs = (
        [(results, references)] if isinstance(references, Tensor) else zip(results, references, strict=True)
    )
    worst = 0.0
    for result, reference in pairs:
        assert result.shape == reference.shape, f"{tuple(result.shape)}, not {tuple(reference.shape)}"
        assert torch.isfinite(reference).all(), "the given network overflows"
        assert torch.isfinite(result).all(), "a result is not finite"
        scale = max(float(reference.abs().max()), FAINT)
        worst = max(worst, float((result - reference).abs().max()) / scale)
    return worst


def num_params(net: nn.Module) -> int:
    """Return how many numbers the network's parameters hold."""
    return sum(parameter.numel() for parameter in net.parameters())


def _new_biases(shrunk: Shrunk) -> int:
    named = dict(shrunk.model.named_parameters())
    biases = [weight.removesuffix("weight") + "bias" for weight in shrunk.plan.new_biases]
    return sum(named[bias].numel() for bias in biases if bias in named)  # a layer may have gone whole


def histogram(kinds: list[str]) -> dict[str, int]:
    """Return how often each kind of layer occurs, most frequent first."""
    return dict(Counter(kinds).most_common())
