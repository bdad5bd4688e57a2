"""A trained CIFAR-10 ResNet-20 with whole filters at zero, before and after the shrink, on all test images.

Run:  python benchmarks/shrink_trained.py --data FOLDER --out FOLDER [--machine NAME]

The data folder holds `cifar10.npz` and `resnet20_cifar10.npz`, the trained network with option-A shortcuts.
Filters of the smallest l1 norm become zero, betas stay, and the statistics of the norms are measured again on
2,000 training images; no weight is trained afterwards, so accuracy falls, and has to fall the same. `inner`:
the first convolution of each block. `coupled`: every group, the residual streams with it, scored by the l1
norm summed over all layers that write a channel. The folder receives
`shrink_trained_resnet20_<machine>_<yyyy-mm>.md` and `.json`.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from pathlib import Path
from typing import Any

import torch
from result_files import write_results
from tabulate import tabulate
from torch import Tensor, nn

from ticket_export.data.sources import Images, load_images
from ticket_export.models.load import build
from ticket_export.shrink.equivalence import relative_error
from ticket_export.shrink.exact import shrink
from ticket_export.store.machine import machine_facts

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "shrink"))
from trained_network import (
    BATCH,
    logits,
    logits_in_onnxruntime,
    measure_statistics_again,
    zero_smallest_filters,
)

# N images, C channels, H W pixels, K classes
KINDS, RATES = ("inner", "coupled"), (0.2, 0.5, 0.8)
Row = dict[str, Any]  # Any: JSON


def row(dense: nn.Module, images: Images, kind: str, rate: float) -> Row:
    zero_smallest_filters(dense, rate, inner_only=kind == "inner")
    measure_statistics_again(dense, images)
    shrunk = shrink(dense, torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    small, report = shrunk.model.eval(), shrunk.report
    before_NK, after_NK = logits(dense, images.test_x), logits(small, images.test_x)
    ort_NK = logits_in_onnxruntime(small, images.test_x)

    def accuracy(logits_NK: Tensor) -> float:
        return float((logits_NK.argmax(1) == images.test_y).double().mean())

    def num_differing(logits_NK: Tensor) -> int:
        return int((logits_NK.argmax(1) != before_NK.argmax(1)).sum())

    return {
        "kind": kind,
        "rate": rate,
        "accuracy_before": accuracy(before_NK),
        "accuracy_after": accuracy(after_NK),
        "params": report.params,
        "params_dense": report.params_dense,
        "macs": report.macs,
        "macs_dense": report.macs_dense,
        "predictions_differing_torch": num_differing(after_NK),
        "predictions_differing_onnxruntime": num_differing(ort_NK),
        "rel_error_torch": relative_error(after_NK, before_NK),
        "rel_error_onnxruntime": relative_error(ort_NK, before_NK),
        "num_carriers": report.num_carriers,
        "num_folds": report.num_folds,
        "form": report.form,
    }


def shown(one: Row) -> dict[str, str]:
    """The columns of the table."""
    differing = (one["predictions_differing_torch"], one["predictions_differing_onnxruntime"])
    return {
        "filters at zero": f"{100 * one['rate']:.0f} %, {one['kind']}",
        "accuracy before": f"{100 * one['accuracy_before']:.2f} %",
        "after": f"{100 * one['accuracy_after']:.2f} %",
        "parameters": f"{one['params']} ({100 * one['params'] / one['params_dense']:.1f} %)",
        "MACs": f"{one['macs'] / 1e6:.2f} M ({100 * one['macs'] / one['macs_dense']:.1f} %)",
        "predictions that differ, torch / ORT": f"{differing[0]} / {differing[1]}",
        "rel. error, torch": f"{one['rel_error_torch']:.1e}",
        "ORT": f"{one['rel_error_onnxruntime']:.1e}",
        "carriers": str(one["num_carriers"]),
        "form": one["form"],
    }


def written(rows: list[Row], out: Path, machine: str) -> str:
    """Write both files and return the markdown."""
    facts = machine_facts()
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    words = inspect.cleandoc(__doc__ or "").split("\n\n")
    markdown = "\n\n".join(
        (
            f"# {words[0]}",
            f"`python benchmarks/shrink_trained.py`, {facts['cpu']} ({facts['os']}, Python "
            f"{facts['python']}, {packages}), one thread, {BATCH} images per batch.",
            words[2].partition(" The folder")[0].replace("The data folder holds", "Data:"),
            tabulate([shown(one) for one in rows], headers="keys", tablefmt="github", disable_numparse=True),
            "Predictions and relative errors (max|a-b| / max|b| over all logits) are of the shrunk network "
            "in torch and of its exported file in ONNX Runtime, both against the network with its zeros in "
            "torch, over 10,000 images.",
        )
    )
    document = {"schema": 1, "machine": facts, "rows": rows}
    write_results(out, "shrink_trained_resnet20", machine, markdown + "\n", document)
    return markdown


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the images and the network")
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files")
    parser.add_argument("--machine", default="local", help="its name in the names of the files")
    given = parser.parse_args()
    torch.set_num_threads(1)
    images = load_images("arrays", given.data / "cifar10.npz", holdout_fraction=0.1, seed=0)
    rows: list[Row] = []
    for kind in KINDS:
        for rate in RATES:
            weights = given.data / "resnet20_cifar10.npz"
            net = build("zoo:resnet20", {"shortcut": "pad"}, weights, image_shape=(3, 32, 32))
            rows.append(row(net, images, kind, rate))
            print(shown(rows[-1]), flush=True)
    print(written(rows, given.out, given.machine))


if __name__ == "__main__":
    main()
