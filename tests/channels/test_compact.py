from __future__ import annotations

import torch

from ticket_export.channels.compact import aligned_cores, compact, core, varying_axes


def test_compact_stores_an_unchanging_axis_once_and_keeps_every_value():
    t = torch.arange(3).reshape(1, 3, 1).expand(4, 3, 5).clone()
    packed = compact(t)
    assert core(packed).shape == (1, 3, 1)
    assert torch.equal(packed, t)


def test_compact_keeps_an_axis_with_a_single_deviating_element():
    t = torch.zeros(4, 3)
    t[3, 2] = 1.0
    assert varying_axes(compact(t)) == [0, 1]


def test_cores_align_tensors_of_different_rank():
    cores, shape = aligned_cores([torch.zeros(2, 3, 4), torch.ones(4)])
    assert shape == (2, 3, 4)
    assert [c.dim() for c in cores] == [3, 3]
