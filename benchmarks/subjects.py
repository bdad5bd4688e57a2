"""The networks that are timed against one another, built and exported once into a folder, each checked.

Run:  python benchmarks/subjects.py CACHE [--networks NAME ...] [--densities D ...] [--forms F ...]

Per network and density (the share of its inner channels that stays, the first layer's left whole):

dense              the network itself
dense-again        the same file a second time: what two equal files differ by is what the method errs by
ticket-r1          irregular widths, each group's share drawn within 50 % of `density`, at the MACs of the
                   network that keeps exactly `density` of every inner group
ticket-r8 -r16 -r32   the same function, every kept width rounded up to a multiple of 8, 16, 32
uniform-r16        one width multiplier for all inner groups, at the MACs of ticket-r16
depgraph-r16       torch-pruning's magnitude pruner over all its groups, at the MACs of ticket-r16
unstructured-90    90 % of the weights of every layer but the first and last zero, nothing removed
unstructured-same  as many weights left as ticket-r1 has, nothing removed

Weights are random, norms have the statistics of real images where TICKET_EXPORT_DATA is set: latency knows
nothing of accuracy. Every fp32 file is compared with its torch source, every other file with its fp32 file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from speedup.masks import inner_groups, mask_of_cost, unstructured
from speedup.networks import NETWORKS, images, with_statistics
from torch import Tensor, nn

import ticket_export as te
from ticket_export.channels.costs import count_costs
from ticket_export.channels.graph import ChannelGroup
from ticket_export.channels.mask import Mask
from ticket_export.find.imp import prunable_weights
from ticket_export.seeds import stream
from ticket_export.shrink.surgery import small_from_mask

# N images, C channels, H W pixels

REVISION = 2  # of what is built here: a cache of another one is built anew
ROUNDINGS = (1, 8, 16, 32)
EQUAL_COST = "ticket-r16"  # what the baselines cost
SPREAD = 0.5  # a group's share lies within (1 -+ this) times the common factor
NUM_STATISTICS, NUM_CALIBRATION = 8, 64
SUBJECTS = (
    *("dense", "dense-again"),
    *(f"ticket-r{rounding}" for rounding in ROUNDINGS),
    *("uniform-r16", "depgraph-r16", "unstructured-90", "unstructured-same"),
)
# of a file; activations of INT8 are uint8 for processors and int8 around zero for GPUs
FORMS = ("fp32", "fp16", "int8", "int8-symmetric")
ALIASES = {"dense-again": "dense"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One network in its folder.

    Attributes:
        name: one of SUBJECTS.
        folder: holds `fp32.onnx`, the other precisions, and what rebuilds the module.
        facts: JSON values: params, nonzero, macs, macs_ratio (dense / own), widths, calibration.
    """

    name: str
    network: str
    folder: Path
    facts: Mapping[str, Any]  # Any: JSON

    def onnx(self, form: str) -> Path:
        """Return the path of its file in one of FORMS; `prepare` has made it."""
        return self.folder / f"{form}.onnx"

    def logits(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return what the module computes in torch, in fp32 on the CPU, for the first images."""
        return np.asarray(np.load(self.folder / "logits.npy"), dtype=np.float32)

    def module(self) -> nn.Module:
        """Return it as a module in fp32, in evaluation mode."""
        dense = NETWORKS[self.network].built()
        if (self.folder / "bundle").is_dir():
            return te.load_bundle(self.folder / "bundle", dense).eval()
        dense.load_state_dict(load_file(self.folder / "weights.safetensors"))
        return dense.eval()


def prepare(
    cache_folder: Path,
    network: str,
    density: float,
    *,
    names: Sequence[str] = SUBJECTS,
    forms: Sequence[str] = ("fp32",),
    tell: Callable[[str], None] = print,
) -> dict[str, Subject]:
    """Build what the cache lacks and return the subjects by name, in the order of `names`.

    A folder appears only when all in it is complete; one of another revision is built anew.

    Raises:
        TicketExportError: a network cannot be shrunk or exported, or its file does not compute the same.
    """
    found = {}
    for name in names:
        if name not in SUBJECTS:
            raise ValueError(f"{name!r} is not one of {', '.join(SUBJECTS)}")
        source = ALIASES.get(name, name)
        folder = _folder(cache_folder, network, density, source)
        if not _is_current(folder):
            tell(f"building {network} {source} at density {density:g}")
            _publish(folder, cache_folder, network, density, source)
        facts = json.loads((folder / "subject.json").read_text(encoding="utf-8"))
        subject = Subject(name=name, network=network, folder=folder, facts=facts)
        for form in forms:
            if not subject.onnx(form).is_file():
                tell(f"converting {network} {source} to {form}")
                _convert(subject, form)
        found[name] = subject
    return found


def _folder(cache_folder: Path, network: str, density: float, source: str) -> Path:
    shared = source in ("dense", "unstructured-90")  # equal at every density
    return cache_folder / network / ("any" if shared else f"density-{density:g}") / source


def _recipe() -> dict[str, object]:
    data = os.environ.get("TICKET_EXPORT_DATA")
    return {"revision": REVISION, "torch": torch.__version__, "real_images": data is not None}


def _is_current(folder: Path) -> bool:
    path = folder / "subject.json"
    if not path.is_file():
        return False
    held = json.loads(path.read_text(encoding="utf-8"))
    return bool(held["recipe"] == _recipe())


def _publish(folder: Path, cache_folder: Path, network: str, density: float, name: str) -> None:
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        facts = _build(partial, cache_folder, network, density, name)
        text = json.dumps({"recipe": _recipe(), **facts}, indent=1)
        (partial / "subject.json").write_text(text, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@cache
def _dense(network: str) -> tuple[nn.Module, Tensor, list[ChannelGroup], int]:
    """Return the dense network with statistics, one image, its groups and its MACs."""
    x_NCHW, _ = images(network, NUM_STATISTICS)
    model = with_statistics(NETWORKS[network].built(), x_NCHW)
    image = x_NCHW[:1]
    return model, image, te.channel_groups(model, image), count_costs(model, image).macs


def _macs_of(network: str) -> Callable[[Mask], int]:
    model, image, groups, _ = _dense(network)
    return lambda mask: count_costs(small_from_mask(model, groups, mask), image).macs


def _build(
    folder: Path, cache_folder: Path, network: str, density: float, name: str
) -> dict[str, Any]:  # Any: JSON
    model, image, groups, macs_dense = _dense(network)
    facts: dict[str, Any] = {"name": name, "network": network, "density": density}  # Any: JSON
    if name == "dense" or name.startswith("unstructured"):
        held = NETWORKS[network].built()
        held.load_state_dict(model.state_dict())
        if name != "dense":
            held = unstructured(held, _keep_fraction(held, cache_folder, network, density, name))
        save_file({key: value.contiguous() for key, value in held.state_dict().items()},
                  folder / "weights.safetensors")  # fmt: skip
        facts["widths"] = {group.name: group.width for group in groups}
    else:
        mask = _mask(cache_folder, network, density, name)
        rounding = int(name.rpartition("-r")[2]) if name.startswith("ticket") else 1
        shrunk = te.shrink(model, image, mask=mask, round_to=rounding)
        te.save_bundle(shrunk, folder / "bundle", origin={"builder": NETWORKS[network].builder})
        held = shrunk.model
        facts["widths"] = {key: width.after for key, width in shrunk.report.widths.items()}
        facts["shrink_rel_error"] = shrunk.report.rel_error
    te.onnx_from_module(held, folder / "fp32.onnx", image, metadata={"ticket_export.subject": name})
    costs = count_costs(held, image)
    x_NCHW, words = images(network, NUM_STATISTICS)
    with torch.no_grad():
        np.save(folder / "logits.npy", held.eval()(x_NCHW).numpy())
    return facts | {
        "params": costs.params,
        "nonzero": sum(int(torch.count_nonzero(parameter)) for parameter in held.parameters()),
        "macs": costs.macs,
        "macs_ratio": macs_dense / costs.macs,
        "images": words,
    }


def _keep_fraction(model: nn.Module, cache_folder: Path, network: str, density: float, name: str) -> float:
    if name == "unstructured-90":
        return 0.1
    (ticket,) = prepare(cache_folder, network, density, names=("ticket-r1",)).values()
    sizes = {key: tensor.numel() for key, tensor in model.named_parameters()}
    num_prunable = sum(sizes[key] for key in prunable_weights(model))
    num_others = sum(sizes.values()) - num_prunable
    return max(1, int(ticket.facts["params"]) - num_others) / num_prunable


def _mask(cache_folder: Path, network: str, density: float, name: str) -> Mask:
    model, image, groups, _ = _dense(network)
    inner, macs_of = inner_groups(groups), _macs_of(network)
    if name.startswith("ticket"):
        halves = {g.name: torch.arange(g.width) < max(1, round(density * g.width)) for g in inner}
        draws = 2 * torch.rand(len(inner), generator=stream(0, "widths")) - 1
        return mask_of_cost(
            model, inner, [1 + SPREAD * draw for draw in draws.tolist()],
            round_to=1, target_macs=macs_of(Mask(halves)), macs_of=macs_of,
        )  # fmt: skip
    (ticket,) = prepare(cache_folder, network, density, names=(EQUAL_COST,)).values()
    target, rounding = int(ticket.facts["macs"]), int(name.rpartition("-r")[2])
    if name.startswith("uniform"):
        return mask_of_cost(
            model, inner, [1.0] * len(inner), round_to=rounding, target_macs=target, macs_of=macs_of
        )
    from ticket_export.find.depgraph import depgraph_mask

    # random weights are no judge between layers: the package's default takes the same share of each
    return depgraph_mask(model, image, groups, target_macs=target, round_to=rounding, ranking="local")


def _convert(subject: Subject, form: str) -> None:
    source, path = subject.onnx("fp32"), subject.onnx(form)
    if form == "fp16":
        from ticket_export.export.precision import fp16_from_onnx

        fp16_from_onnx(source, path)
    elif form.startswith("int8"):
        from ticket_export.export.quantize import int8_from_onnx

        x_NCHW, words = images(subject.network, NUM_CALIBRATION)
        int8_from_onnx(
            source, path, {"input": x_NCHW.numpy()},
            min_top1_agreement=0.0,  # random weights agree on little; the page tells how little
            activations="int8" if form == "int8-symmetric" else "uint8",
        )  # fmt: skip
        (subject.folder / "calibration.txt").write_text(words + "\n", encoding="utf-8")
    else:
        raise ValueError(f"no conversion to {form!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cache", type=Path, help="folder that keeps what is built")
    parser.add_argument("--networks", nargs="+", choices=tuple(NETWORKS), default=["resnet50"])
    parser.add_argument("--densities", nargs="+", type=float, default=[0.5])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=["fp32"])
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    for network in arguments.networks:
        for density in arguments.densities:
            built = prepare(
                arguments.cache,
                network,
                density,
                names=arguments.subjects,
                forms=arguments.forms,
                tell=lambda words: print(words, file=sys.stderr, flush=True),
            )
            for subject in built.values():
                print(
                    f"{network:16} {subject.name:18} {subject.facts['macs'] / 1e6:9.1f} M MACs "
                    f"({subject.facts['macs_ratio']:.2f}x fewer), {subject.facts['params'] / 1e6:.2f} M "
                    f"parameters, {subject.facts['nonzero'] / 1e6:.2f} M not zero"
                )


if __name__ == "__main__":
    main()
