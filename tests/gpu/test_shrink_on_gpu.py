from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

import ticket_export as te
from ticket_export.channels.mask import Mask
from ticket_export.runtime.registry import open_runner


def dead_filters(model: nn.Module) -> None:
    """Zero filters inside and at the end of a block; their norms then emit constants, not zeros."""
    tensors = model.state_dict()
    for name, num_kept in (("conv1.weight", 2), ("conv3.weight", 6)):
        tensors[name][num_kept:] = 0.0


def relative_error(result: Tensor, reference: Tensor) -> float:
    return float((result - reference).abs().max() / reference.abs().max())


def outputs(model: nn.Module, x_NCHW: Tensor) -> Tensor:
    """Return what the model computes in full fp32, which a GPU does when asked."""
    flags = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with torch.no_grad(), flags:
        result: Tensor = model(x_NCHW)
    return result.cpu()


def test_a_model_on_the_gpu_is_shrunk_there_and_computes_the_same(
    residual_net: nn.Module, images: Tensor, device: torch.device
) -> None:
    dead_filters(residual_net)
    on_cpu = te.shrink(copy.deepcopy(residual_net), images)
    dense, x_NCHW = residual_net.to(device), images.to(device)
    shrunk = te.shrink(dense, x_NCHW)  # as torch ships, TF32 included
    for model in (dense, shrunk.model):
        assert {tensor.device.type for tensor in model.state_dict().values()} == {device.type}
    assert relative_error(outputs(shrunk.model, x_NCHW), outputs(dense, x_NCHW)) <= 1e-5
    assert shrunk.report.rel_error <= 1e-5
    assert shrunk.report.widths == on_cpu.report.widths
    assert shrunk.report.macs == on_cpu.report.macs < on_cpu.report.macs_dense


def test_a_mask_shrinks_a_model_on_the_gpu(
    residual_net: nn.Module, images: Tensor, device: torch.device
) -> None:
    dense, x_NCHW = residual_net.to(device), images.to(device)
    groups = te.channel_groups(dense, x_NCHW)
    mask = Mask({g.name: torch.arange(g.width) % 2 == 0 for g in groups if g.pinned is None})
    shrunk = te.shrink(dense, x_NCHW, mask=mask)
    after = {name: shrunk.report.widths[name].after for name in mask.keep_by_group}
    assert after == mask.kept_widths()
    assert next(shrunk.model.parameters()).device.type == device.type


def test_a_model_on_the_gpu_is_exported_from_where_it_is(
    residual_net: nn.Module, images: Tensor, device: torch.device, tmp_path: Path
) -> None:
    expected = outputs(residual_net, images)
    path = te.onnx_from_module(residual_net.to(device), tmp_path / "model.onnx", images.to(device))
    assert next(residual_net.parameters()).device.type == device.type
    with open_runner(path, "ort-cpu") as runner:
        logits = torch.from_numpy(runner.infer({"input": images.numpy()})["logits"])
    assert relative_error(logits, expected) < 1e-4
