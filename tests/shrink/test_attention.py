"""Attention: a head goes as a whole, when nothing reads it or what it emits is constant."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ticket_export.shrink.equivalence import relative_error
from ticket_export.shrink.exact import shrink

# N images, T tokens, D features
HEADS, D = 4, 32


class Separate(nn.Module):
    """Projections apart, products written out, sizes held by the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(D, D) for _ in range(4))

    def heads(self, x_NTD: Tensor) -> Tensor:
        return x_NTD.reshape(x_NTD.shape[0], -1, HEADS, D // HEADS).transpose(1, 2)

    def forward(self, x_NTD: Tensor) -> Tensor:
        q, k, v = self.heads(self.q(x_NTD)), self.heads(self.k(x_NTD)), self.heads(self.v(x_NTD))
        weights = torch.softmax(q @ k.transpose(-2, -1) * (D // HEADS) ** -0.5, dim=-1)
        return self.out((weights @ v).transpose(1, 2).reshape(x_NTD.shape))


class Packed(nn.Module):
    """`nn.MultiheadAttention`: one weight for q, k and v."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(D, HEADS, batch_first=True)
        self.out = self.attention.out_proj

    def forward(self, x_NTD: Tensor) -> Tensor:
        return self.attention(x_NTD, x_NTD, x_NTD, need_weights=False)[0]


class Block(nn.Module):
    """Attention and an MLP around a stream that a LayerNorm keeps whole."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Linear(D, D)
        self.norm, self.attention = nn.LayerNorm(D), attention
        self.norm_mlp, self.mlp = (
            nn.LayerNorm(D),
            nn.Sequential(nn.Linear(D, 48), nn.GELU(), nn.Linear(48, D)),
        )

    def forward(self, x_NTD: Tensor) -> Tensor:
        x_NTD = self.embed(x_NTD)
        x_NTD = x_NTD + self.attention(self.norm(x_NTD))
        return x_NTD + self.mlp(self.norm_mlp(x_NTD))


def built(attention: type[nn.Module]) -> Block:
    torch.manual_seed(3)
    net = Block(attention()).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net.eval()


def tokens(num_images: int = 2) -> Tensor:
    return torch.randn(num_images, 7, D, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.mark.parametrize("attention", [Separate, Packed])
def test_a_head_that_nothing_reads_goes_with_its_queries_keys_and_values(attention):
    net = built(attention)
    net.attention.out.weight.data[:, 8:16] = 0.0
    shrunk = shrink(net, tokens())
    # rows of q, k and v with their biases, and the columns that read them
    assert shrunk.report.params_dense - shrunk.report.params == 3 * 8 * (D + 1) + 8 * D
    assert shrunk.report.rel_error <= 1e-9
    with torch.no_grad():
        assert relative_error(shrunk.model(tokens(5)), net(tokens(5))) <= 1e-9


def test_a_head_whose_values_are_constant_goes_and_its_constant_is_folded():
    net = built(Packed)
    net.attention.attention.in_proj_weight.data[2 * D + 16 : 2 * D + 24] = 0.0  # v of head 2; its bias lives
    shrunk = shrink(net, tokens())
    assert shrunk.report.params_dense - shrunk.report.params == 3 * 8 * (D + 1) + 8 * D
    assert [fold.kind for fold in shrunk.plan.folds] == ["bias"]
    assert shrunk.report.rel_error <= 1e-9


def test_part_of_a_head_stays():
    net = built(Separate)
    net.attention.out.weight.data[:, 8:12] = 0.0
    assert shrink(net, tokens()).report.params == shrink(built(Separate), tokens()).report.params_dense


@pytest.mark.parametrize("attention", [Separate, Packed])
def test_hidden_units_of_the_mlp_go_in_module_form(attention):
    net = built(attention)
    net.mlp[0].weight.data[::2] = 0.0
    shrunk = shrink(net, tokens())
    assert shrunk.model.mlp[0].out_features == 24
    assert shrunk.report.form == "module"


def test_a_stream_that_a_norm_mixes_stays_with_its_reason():
    report = shrink(built(Separate), tokens()).report
    assert any("layer_norm mixes its channels" in change.how for change in report.widths.values())
