from __future__ import annotations

import pytest
import torch

from ticket_export.channels.graph import channel_groups
from ticket_export.channels.mask import ElementMask, Mask, check_mask, zero_dropped
from ticket_export.errors import ShrinkError

KEEP_3_OF_8 = torch.tensor([True, False, True, False, False, True, False, False])


def test_a_mask_counts_what_it_keeps_and_survives_json():
    mask = Mask({"conv1": KEEP_3_OF_8, "conv2": torch.ones(2, dtype=torch.bool)})
    assert mask.kept_widths() == {"conv1": 3, "conv2": 2}
    assert mask.channel_density == 0.5
    again = Mask.from_json(mask.to_json())
    assert torch.equal(again.keep_by_group["conv1"], KEEP_3_OF_8)


def test_a_mask_that_empties_a_group_outside_every_branch_is_refused(plain_net, images):
    mask = Mask({"conv1": torch.zeros(8, dtype=torch.bool)})
    with pytest.raises(ShrinkError, match="'conv1' keeps 0 of 8 channels"):
        check_mask(channel_groups(plain_net, images), mask)


def test_a_mask_that_keeps_nothing_survives_json():
    mask = Mask({"branch": torch.zeros(8, dtype=torch.bool)})
    again = Mask.from_json(mask.to_json())
    assert again.kept_widths() == {"branch": 0}
    assert len(again.keep_by_group["branch"]) == 8
    assert mask.channel_density == 0


def test_a_mask_of_numbers_is_refused():
    with pytest.raises(ShrinkError, match=r"torch.float32 with shape \(8,\)"):
        Mask({"conv1": torch.ones(8)})


def test_a_damaged_json_mask_is_refused():
    with pytest.raises(ShrinkError, match=r"width 2, kept \[5\]"):
        Mask.from_json({"conv1": {"width": 2, "kept": [5]}})


@pytest.mark.parametrize(
    ("name", "keep", "text"),
    [
        ("conv9", torch.ones(8, dtype=torch.bool), "names group 'conv9'"),
        ("conv1", torch.ones(7, dtype=torch.bool), "has 7 channels, the group has 8"),
        ("linear", torch.tensor([True, True, True, False]), "must stay whole: model output"),
    ],
)
def test_a_mask_that_does_not_fit_the_model_is_refused(plain_net, images, name, keep, text):
    with pytest.raises(ShrinkError, match=text):
        check_mask(channel_groups(plain_net, images), Mask({name: keep}))


def test_dropped_channels_are_zero_in_every_member_and_the_rest_is_untouched(plain_net, images):
    before = {name: tensor.clone() for name, tensor in plain_net.state_dict().items()}
    zero_dropped(plain_net, channel_groups(plain_net, images), Mask({"conv1": KEEP_3_OF_8}))
    after = plain_net.state_dict()
    for name in ("conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean"):
        assert not after[name][~KEEP_3_OF_8].any()
        assert torch.equal(after[name][KEEP_3_OF_8], before[name][KEEP_3_OF_8])
    assert not after["conv2.weight"][:, ~KEEP_3_OF_8].any()
    assert torch.equal(after["bn1.running_var"], before["bn1.running_var"])
    assert torch.equal(after["bn2.weight"], before["bn2.weight"])


def test_an_element_mask_survives_the_disk(tmp_path):
    mask = ElementMask({"conv1.weight": torch.rand(4, 3, 3, 3) > 0.5})
    mask.save(tmp_path / "mask.safetensors")
    again = ElementMask.load(tmp_path / "mask.safetensors")
    assert torch.equal(again.keep_by_parameter["conv1.weight"], mask.keep_by_parameter["conv1.weight"])
    assert again.element_density == mask.element_density
