"""Widths by measurement: every width grid and form of one ticket beside the dense network, in one run each.

Run:  python benchmarks/widths.py --out FOLDER [--network resnet50] [--precisions fp32 int8] [--batches 1 8]

The ticket keeps irregular widths, each inner group's share drawn within 50 % of a half, at the MACs of the
network that keeps exactly half of every inner group. The gammas of dropped channels are zero and their betas
stay, as training tools leave them, so that constants reach zero-padded layers and their form matters. All
candidates compute the same function. ResNet-50 at 224 pixels takes about six minutes per precision on one
quiet core. A precision that is done is kept; a second run takes up where the first one ended, and
`--force` makes it again. The folder receives `widths_<network>_<machine>_<yyyy-mm>.md` and `.json`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from result_files import write_results
from speedup.masks import inner_groups, mask_of_cost
from speedup.networks import NETWORKS, images, with_statistics
from torch import Tensor, nn

import ticket_export as te
from ticket_export.channels.costs import count_costs
from ticket_export.channels.mask import Mask
from ticket_export.find.control import macs_of_masks
from ticket_export.measure.speedup import mean_interval
from ticket_export.pipeline.widths import fastest_widths, name_of
from ticket_export.report.widths import choice_markdown
from ticket_export.seeds import stream

# N images, C channels, H W pixels

SPREAD = 0.5  # a group's share lies within (1 -+ this) times a half
BETA = 0.2  # spread of the betas
NUM_STATISTICS, NUM_CALIBRATION = 8, 64


def pruned(network: str) -> tuple[nn.Module, Tensor, float]:
    """Return the network whose dropped inner channels have zero gammas, an image, and the share of MACs."""
    x_NCHW, _ = images(network, NUM_STATISTICS)
    model, image = NETWORKS[network].built(), x_NCHW[:1]
    with torch.no_grad():
        for norm in (layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)):
            norm.bias.normal_(0.0, BETA, generator=stream(0, "beta", len(norm.bias)))
    model = with_statistics(model, x_NCHW)
    groups = te.channel_groups(model, image)
    inner, macs_of = inner_groups(groups), macs_of_masks(model, image, groups)
    half = Mask({group.name: torch.arange(group.width) < group.width // 2 for group in inner})
    shares = 0.5 * (1 + SPREAD * (2 * torch.rand(len(inner), generator=stream(0, "shares")) - 1))
    mask = mask_of_cost(model, inner, shares.tolist(), round_to=1, target_macs=macs_of(half), macs_of=macs_of)
    norms = {f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    tensors = dict(model.named_parameters())
    with torch.no_grad():
        for group in inner:
            for member in group.members:
                if member.tensor in norms:
                    tensors[member.tensor][member.indices[~mask.keep_by_group[group.name]].flatten()] = 0.0
    return model, image, macs_of(mask) / count_costs(model, image).macs


def kept_alone(done: Mapping[str, Any]) -> list[str]:  # Any: JSON
    """Return for each batch what would be kept if it were measured for that batch alone, by the same rule."""
    sizes = {
        name_of(one["round_to"], one["form"]): (one["file_bytes"], one["macs"])
        for one in done["choice"]["candidates"]
    }
    kept = list(sizes)[done["choice"]["chosen"]]
    lines = []
    for batch, medians_s in zip(done["choice"]["batches"], done["round_medians_s"], strict=True):
        logs = {name: np.log(medians_s[name]) for name in sizes}

        def is_beaten(name: str, logs: Mapping[str, Any] = logs) -> bool:  # Any: arrays
            intervals = [mean_interval(logs[name] - logs[other]) for other in logs if other != name]
            return any(center - half_width > 0.0 for center, half_width in intervals)

        alone = min((name for name in sizes if not is_beaten(name)), key=lambda name: sizes[name])
        lines.append(f"for batch {batch} alone {'the same' if alone == kept else alone}")
    return lines


def page(document: Mapping[str, Any]) -> str:  # Any: JSON
    """Return the results as markdown."""
    parts = [
        f"# Widths by measurement: {document['network']}",
        (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip(),
        f"The ticket keeps {100 * document['mac_density']:.1f} % of the MACs before any rounding.",
    ]
    for precision, done in document["precisions"].items():
        facts = done["choice"]["machine"]
        parts += [
            f"## {precision}",
            f"`{done['command']}`, {done['ended']}, {done['seconds']:.0f} s; {facts['cpu']}, "
            f"{facts['num_usable_cores']} cores; "
            + ", ".join(f"{name} {number}" for name, number in facts["packages"].items()),
            choice_markdown(done["choice"]),
            f"By the same rule would be kept {', '.join(kept_alone(done))}.",
        ]
    return "\n\n".join(parts) + "\n"


def measured(given: argparse.Namespace, model: nn.Module, image: Tensor, precision: str) -> dict[str, Any]:
    """Return the choice for one precision with its samples' medians, as JSON values."""
    calibration = images(given.network, NUM_CALIBRATION)[0] if precision == "int8" else None
    start_s = time.perf_counter()
    choice = fastest_widths(
        model,
        image,
        runtime=given.runtime,
        precision=precision,
        batches=given.batches,
        threads=given.threads,
        rounds=given.rounds,
        candidates=given.candidates,
        calibration=calibration,
        min_top1_agreement=0.0,  # weights are random here, and classes nearly tied
        on_progress=lambda line: print(f"{time.perf_counter() - start_s:6.0f} s  {line}", flush=True),
    )
    return {
        "choice": choice.to_json(),
        "round_medians_s": [
            {name: one.round_medians_s.tolist() for name, one in run.items()} for run in choice.runs
        ],
        "seconds": time.perf_counter() - start_s,
        "ended": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "command": _command(given),
    }


def _command(given: argparse.Namespace) -> str:
    return (
        f"python benchmarks/widths.py --network {given.network} --runtime {given.runtime} "
        f"--batches {' '.join(map(str, given.batches))} --threads {given.threads} --rounds {given.rounds}"
    )


def _arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files")
    parser.add_argument("--machine", default="local", help="its name in the names of the files")
    parser.add_argument("--network", choices=tuple(NETWORKS), default="resnet50")
    parser.add_argument("--runtime", default="ort-cpu")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--candidates", nargs="+", type=int, help="width grids [default: the library's]")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--force", action="store_true", help="measure precisions again that are in the file")
    return parser.parse_args(words)


def main() -> None:
    given = _arguments()
    torch.set_num_threads(1)
    theme = f"widths_{given.network}"
    written = given.out / f"{theme}_{given.machine}_{datetime.datetime.now(datetime.UTC):%Y-%m}.json"
    document: dict[str, Any] = {"schema": 1, "network": given.network, "precisions": {}}  # Any: JSON
    if written.is_file():
        document = json.loads(written.read_text(encoding="utf-8"))
    missing = [name for name in given.precisions if given.force or name not in document["precisions"]]
    if missing:
        model, image, document["mac_density"] = pruned(given.network)
        for precision in missing:
            document["precisions"][precision] = measured(given, model, image, precision)
            write_results(given.out, theme, given.machine, page(document), document)
    print(page(document))


if __name__ == "__main__":
    main()
