"""Networks from stored results: weights and masks on disk become modules."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ticket_export.channels.graph import ChannelGroup
from ticket_export.channels.mask import ElementMask, Mask, held_elements, zero_dropped
from ticket_export.models.facts import ZOO_FACTS
from ticket_export.pipeline.context import Context
from ticket_export.pipeline.nodes import Node
from ticket_export.recipe.schema import ZOO_PREFIX
from ticket_export.shrink.blocks import BlockForm, block_form
from ticket_export.shrink.bundle import load_bundle
from ticket_export.shrink.surgery import small_from_mask
from ticket_export.stages import Subject, subject_from_text

WEIGHTS_FILE = "weights.safetensors"  # of a training: at its end
REWIND_FILE = "rewind.safetensors"  # of the dense training: at the start of the rewind epoch
BUNDLE_FOLDER = "bundle"  # of a shrink
MASK_FILE = "mask.json"  # of a finder: channels kept
ELEMENTS_FILE = "elements.safetensors"  # of a finder: single weights kept


def save_state(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a state dict; tensors that share memory are written apart."""
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}, path)


def load_state(path: Path) -> dict[str, Tensor]:
    """Return the state dict that `save_state` wrote."""
    state: dict[str, Tensor] = load_file(path)
    return state


def save_mask(mask: Mask, folder: Path) -> None:
    """Write a mask as JSON into `folder`."""
    (folder / MASK_FILE).write_text(json.dumps(mask.to_json()), encoding="utf-8")


def mask_of(context: Context, node: Node) -> Mask:
    """Return the mask a finder published."""
    return Mask.from_json(json.loads(context.file(node, MASK_FILE).read_text(encoding="utf-8")))


def elements_of(context: Context, node: Node) -> ElementMask | None:
    """Return the element mask a finder published, or None where it decides on whole channels alone."""
    path = context.file(node, ELEMENTS_FILE)
    return ElementMask.load(path) if path.exists() else None


def dense_network(context: Context, replicate: int) -> nn.Module:
    """Return the dense network of a replicate as it is before any training."""
    return context.fresh_network(replicate, Subject("dense"))


def unpruned_weights(context: Context) -> tuple[str, ...] | None:
    """Return the weights that a network of the zoo leaves whole; for a foreign one the finder has a rule."""
    builder = context.recipe.model.builder
    return ZOO_FACTS[builder.removeprefix(ZOO_PREFIX)].unpruned if builder.startswith(ZOO_PREFIX) else None


def trained_network(context: Context, node: Node) -> nn.Module:
    """Return the network that a training published, in its own form: dense shape or small."""
    assert node.replicate is not None  # trainings have one
    model = dense_network(context, node.replicate)
    if "mask" in node.parents and is_small(context, node):
        model = small_from_mask(model, context.groups, mask_of(context, node.parents["mask"]))
    model.load_state_dict(load_state(context.file(node, WEIGHTS_FILE)))
    return model


def network_of(context: Context, node: Node) -> nn.Module:
    """Return the network that a training or a shrink published."""
    if node.stage == "train":
        return trained_network(context, node)
    assert node.replicate is not None  # shrinks have one
    dense = dense_network(context, node.replicate)
    shrunk = load_bundle(context.file(node, BUNDLE_FOLDER), dense)
    return blocks_of(context, shrunk.eval()).model if in_blocks(context, node) else shrunk


def is_small(context: Context, node: Node) -> bool:
    """Return whether a subject is trained in its small form."""
    whole = subject_from_text(node.subject).kind in ("unstructured", "search")
    return context.recipe.find.form == "small" and not whole


def dense_form(context: Context, node: Node) -> nn.Module:
    """Return the network that a training published in the dense shape, zeros where channels were cut."""
    network = trained_network(context, node)
    if "mask" not in node.parents or not is_small(context, node):
        return network
    dense = dense_network(context, node.replicate or 0)
    return scattered(network, dense, context.groups, mask_of(context, node.parents["mask"]))


def in_blocks(context: Context, node: Node) -> bool:
    """Return whether the shrink of a subject runs its convolutions block by block."""
    kinds = ("ticket", "random", "reinit")
    return context.recipe.find.method == "regroup" and subject_from_text(node.subject).kind in kinds


def blocks_of(context: Context, network: nn.Module) -> BlockForm:
    """Return the network in block form, with as many rows to a block as the recipe asks for."""
    find = context.recipe.find
    assert find.method == "regroup"  # no other has blocks
    return block_form(network, context.example_inputs, min_rows=find.min_rows)


def block_facts(form: BlockForm) -> dict[str, dict[str, Any]]:  # Any: JSON values
    """Return how each convolution is executed."""
    return {
        name: {
            "blocks": layer.num_blocks,
            "form": layer.form,
            "reason": layer.reason,
            "dense_macs": layer.macs_dense,
            "executed_macs": layer.macs,
        }
        for name, layer in form.layers.items()
    }


def small_elements(
    elements: ElementMask, dense: nn.Module, groups: list[ChannelGroup], mask: Mask
) -> dict[str, Tensor]:
    """Return an element mask of the dense network cut down to the small one: name -> bool, True = keep."""
    carrier = copy.deepcopy(dense)
    with torch.no_grad():
        for name, parameter in carrier.named_parameters():
            keep = elements.keep_by_parameter.get(name)
            parameter.copy_(torch.ones_like(parameter) if keep is None else keep.to(parameter.dtype))
    cut = dict(small_from_mask(carrier, groups, mask).named_parameters())
    return {name: cut[name].detach() != 0 for name in elements.keep_by_parameter if name in cut}


def scattered(small: nn.Module, dense: nn.Module, groups: list[ChannelGroup], mask: Mask) -> nn.Module:
    """Return the masked dense network that computes what `small` does: its values in place, zeros elsewhere.

    Args:
        small: cut out of a network like `dense` by `mask`.
        dense: gives the shapes; not changed.
        groups: of `dense`.
        mask: what `small` kept.
    """
    masked = copy.deepcopy(dense)
    state = masked.state_dict()
    keep_by_tensor = held_elements(groups, mask, {name: tensor.shape for name, tensor in state.items()})
    held = small.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            keep = keep_by_tensor.get(name)
            if name not in held:  # of a branch or a block that is gone
                if not name.endswith("running_var"):
                    tensor.zero_()
            elif keep is None:
                tensor.copy_(held[name])
            else:  # what is kept is a product of one set per axis, so both run through it in the same order
                tensor[keep] = held[name].flatten()
    zero_dropped(masked, groups, mask)
    return masked
