"""Small layers for random networks: those torch has no module for, and random weights with random zeros."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

# N images, C channels, H W pixels, T tokens, D channels of one head

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
LAWS = ("nothing", "rows", "rows and biases", "columns", "elements", "layer", "one left")
LAW_WEIGHTS = (28, 28, 10, 16, 10, 3, 5)


class Apply(nn.Module):
    """A function of tensors as a layer; `words` names it in a failure."""

    def __init__(self, words: str, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.words, self.function = words, function

    def extra_repr(self) -> str:
        return self.words

    def forward(self, *xs: Tensor) -> Tensor:
        return self.function(*xs)


class Scale(nn.Module):
    """A free parameter that multiplies ("mul") or shifts ("add"): layer scale, position embedding."""

    def __init__(self, *shape: int, how: str) -> None:
        super().__init__()
        self.how, self.gamma = how, nn.Parameter(torch.zeros(shape))

    def extra_repr(self) -> str:
        return f"{self.how} {tuple(self.gamma.shape)}"

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma if self.how == "mul" else x + self.gamma


class ChannelsLast(nn.Module):
    """A layer on the last axis (linear, LayerNorm) applied to the channels of a feature map."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x_NCs: Tensor) -> Tensor:
        return self.layer(x_NCs.movedim(1, -1)).movedim(-1, 1)


class Gate(nn.Module):
    """Squeeze and excitation: each channel times a number made from the means of all."""

    def __init__(self, channels: int, hidden: int, gate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.gate = gate

    def forward(self, x_NCs: Tensor) -> Tensor:
        means_NC = x_NCs.flatten(2).mean(2)
        gates_NC = self.gate(self.up(functional.relu(self.down(means_NC))))
        return x_NCs * gates_NC.reshape(x_NCs.shape[0], -1, *([1] * (x_NCs.dim() - 2)))


class SelfAttention(nn.Module):
    """Attention over tokens [N, T, C], with packed or separate projections, in one of three spellings."""

    def __init__(self, channels: int, heads: int, depth: int, *, packed: bool, spelling: str) -> None:
        super().__init__()
        self.heads, self.depth, self.spelling = heads, depth, spelling
        width = heads * depth
        sizes = (3 * width,) if packed else (width, width, width)
        self.projections = nn.ModuleList(nn.Linear(channels, size) for size in sizes)
        self.out = nn.Linear(width, channels)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, {self.spelling}"

    def forward(self, x_NTC: Tensor) -> Tensor:
        n, t, _ = x_NTC.shape
        if len(self.projections) == 1:
            packed = self.projections[0](x_NTC).reshape(n, t, 3, self.heads, self.depth)
            q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (
                layer(x_NTC).view(n, t, self.heads, self.depth).transpose(1, 2) for layer in self.projections
            )
        mixed = self._mixed(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(n, t, self.heads * self.depth))

    def _mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.spelling == "sdpa":
            return functional.scaled_dot_product_attention(q, k, v)
        if self.spelling == "einsum":
            weights = torch.einsum("nhid,nhjd->nhij", q, k).mul(self.depth**-0.5).softmax(-1)
            return torch.einsum("nhij,nhjd->nhid", weights, v)
        if self.spelling == "bmm":
            n = q.shape[0]
            q, k, v = (part.reshape(n * self.heads, -1, self.depth) for part in (q, k, v))
            weights = (torch.bmm(q, k.transpose(1, 2)) * self.depth**-0.5).softmax(-1)
            return torch.bmm(weights, v).reshape(n, self.heads, -1, self.depth)
        return (q * self.depth**-0.5 @ k.transpose(-2, -1)).softmax(dim=-1) @ v


class MultiheadAttention(nn.Module):
    """torch's own attention module as self-attention."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)

    def forward(self, x_NTC: Tensor) -> Tensor:
        mixed: Tensor = self.attention(x_NTC, x_NTC, x_NTC, need_weights=False)[0]
        return mixed


class Windowed(nn.Module):
    """A layer on the tokens of each square window of a feature map, with or without a shift."""

    def __init__(self, layer: nn.Module, window: int, shift: int) -> None:
        super().__init__()
        self.layer, self.window, self.shift = layer, window, shift

    def extra_repr(self) -> str:
        return f"window={self.window}, shift={self.shift}"

    def forward(self, x_NCHW: Tensor) -> Tensor:
        n, _, h, w = x_NCHW.shape
        side = self.window
        x = torch.roll(x_NCHW.permute(0, 2, 3, 1), (-self.shift, -self.shift), (1, 2))
        c = x.shape[3]
        x = x.view(n, h // side, side, w // side, side, c).permute(0, 1, 3, 2, 4, 5)
        x = self.layer(x.reshape(n * (h // side) * (w // side), side * side, c))
        x = x.view(n, h // side, w // side, side, side, -1).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(n, h, w, -1)
        return torch.roll(x, (self.shift, self.shift), (1, 2)).permute(0, 3, 1, 2)


class FreeProduct(nn.Module):
    """The last axis times a free matrix, as `matmul` or as `einsum`."""

    def __init__(self, columns: int, rows: int, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling
        shape = (columns, rows) if spelling == "matmul" else (rows, columns)
        self.weight = nn.Parameter(torch.zeros(shape))

    def extra_repr(self) -> str:
        return f"{self.spelling} {tuple(self.weight.shape)}"

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight if self.spelling == "matmul" else torch.einsum("...i,oi->...o", x, self.weight)


class ClassToken(nn.Module):
    """One learned token before the others: [N, T, C] -> [N, T + 1, C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, channels))

    def forward(self, x_NTC: Tensor) -> Tensor:
        return torch.cat((self.gamma.expand(x_NTC.shape[0], -1, -1), x_NTC), dim=1)


class Indexed(nn.Module):
    """Channels picked by a constant index, which is a buffer, a list, or an `index_select`."""

    def __init__(self, index: list[int], how: str) -> None:
        super().__init__()
        self.how, self.listed = how, index
        self.register_buffer("index", torch.tensor(index))

    def extra_repr(self) -> str:
        return f"{self.how} {self.listed}"

    def forward(self, x_NCs: Tensor) -> Tensor:
        if self.how == "list":
            return x_NCs[:, self.listed]
        return x_NCs[:, self.index] if self.how == "buffer" else x_NCs.index_select(1, self.index)


# ---------------------------------------------------------------------- weights


def fill(net: nn.Module, draw: random.Random, *, with_zeros: bool = True) -> nn.Module:
    """Give every tensor random values of a sane scale, then random zeros, layer by layer; in place."""
    generator = torch.Generator().manual_seed(draw.randrange(2**31))
    with torch.no_grad():
        for module in net.modules():
            _randomise(module, generator)
            if with_zeros and isinstance(module, NORMS):
                _zero_gammas(module, draw, generator)
            elif with_zeros:
                _zero_weights(module, draw, generator)
    return net.double().eval()


def _randomise(module: nn.Module, generator: Generator) -> None:
    is_norm = isinstance(module, NORMS)
    for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
        if tensor is None or not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name == "running_var" or (is_norm and name == "weight"):
            noise = torch.rand(tensor.shape, generator=generator) + 0.5
        elif isinstance(module, nn.PReLU):
            noise = torch.rand(tensor.shape, generator=generator) * 0.4
        elif tensor.dim() > 1 and name != "gamma" and not isinstance(module, nn.Embedding):
            noise = noise * 1.3 / max(1, tensor[0].numel()) ** 0.5
        else:
            noise = noise * 0.5
        tensor.copy_(noise)


def _some(count: int, generator: Generator) -> Tensor:
    return torch.rand(count, generator=generator) < 0.5


def _zero_gammas(norm: nn.Module, draw: random.Random, generator: Generator) -> None:
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if weight is None or draw.random() > 0.6:
        return
    dead = torch.rand(weight.shape, generator=generator) < 0.4
    weight[dead] = 0.0
    if bias is not None and draw.random() < 0.4:
        bias[dead & (torch.rand(dead.shape, generator=generator) < draw.choice((0.5, 1.0)))] = 0.0


def _zero_weights(module: nn.Module, draw: random.Random, generator: Generator) -> None:
    if isinstance(module, SelfAttention):
        _zero_heads(module, draw)
    parameters = {name: p for name, p in module._parameters.items() if p is not None}
    for name, tensor in parameters.items():
        if name == "gamma" and draw.random() < 0.4:
            tensor[torch.rand(tensor.shape, generator=generator) < 0.3] = 0.0
        if name == "gamma" or tensor.dim() < 2:
            continue
        law = draw.choices(LAWS, LAW_WEIGHTS)[0]
        if law == "columns" or isinstance(module, nn.Embedding):
            tensor[:, _some(tensor.shape[1], generator)] = 0.0
        elif law == "elements":
            tensor[torch.rand(tensor.shape, generator=generator) < 0.85] = 0.0
        elif law != "nothing":
            _zero_rows(tensor, parameters.get("bias"), law, generator)
    bias = parameters.get("bias")
    if bias is not None and draw.random() < 0.15:
        bias.zero_()


def _zero_rows(weight: Tensor, bias: Tensor | None, law: str, generator: Generator) -> None:
    dead = _some(len(weight), generator)
    if law == "layer":
        dead[:] = True
    elif law == "one left":
        dead[:] = True
        dead[0] = False
    weight[dead] = 0.0
    if law == "rows and biases" and bias is not None and len(bias) == len(weight):
        bias[dead] = 0.0


def _zero_heads(attention: SelfAttention, draw: random.Random) -> None:
    """Zero what reads some heads, or the values that they emit, one head at a time."""
    rows = attention.projections[-1].weight[-attention.heads * attention.depth :]
    for head in range(attention.heads):
        place = slice(head * attention.depth, (head + 1) * attention.depth)
        how = draw.choice(("alive", "alive", "unread", "silent"))
        if how == "unread":
            attention.out.weight[:, place] = 0.0
        elif how == "silent":
            rows[place] = 0.0
