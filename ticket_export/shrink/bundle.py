"""A bundle: a folder with the plan, the small weights and their hashes, that any dense model of its class
takes in.

`plan.json` holds the kept positions in dense numbering, `weights.safetensors` the small tensors,
`manifest.json` the hashes and what the network was. Nothing is pickled, and loading needs no training code.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ticket_export.errors import ShrinkError, StoreError
from ticket_export.shrink.bundle_files import MANIFEST, PLAN, WEIGHTS
from ticket_export.shrink.exact import Shrunk
from ticket_export.shrink.graph_form import graph_form, open_graph
from ticket_export.shrink.permanent import make_standard
from ticket_export.shrink.plan import Plan
from ticket_export.shrink.surgery import model_from_plan

SCHEMA = 2  # of the manifest and the plan


def save_bundle(shrunk: Shrunk, folder: str | Path, *, origin: Mapping[str, object] | None = None) -> None:
    """Write the bundle of `shrunk` into `folder`; the manifest is written last, so an unfinished one is seen.

    Args:
        shrunk: the result of `shrink`.
        folder: made if it does not exist; files of an older bundle in it are replaced.
        origin: where the dense network came from, e.g. {"builder": "zoo:resnet20"}; kept in the manifest.

    Raises:
        StoreError: the weights cannot be written, for example on a full disk.
        OSError: the folder cannot be made.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    _write_json(folder / PLAN, shrunk.plan.to_json())
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in shrunk.model.state_dict().items()}
    shared = {tensor.data_ptr() for tensor in tensors.values()}
    if len(shared) < len(tensors):  # safetensors refuses tensors that share memory
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    partial = folder / f"{WEIGHTS}.partial"
    try:
        save_file(tensors, partial)
    except SafetensorError as error:  # its own kind, also when the disk is full
        raise StoreError(
            f"{partial}: {error}", hint="if the disk is full, free some space or choose another folder"
        ) from error
    partial.replace(folder / WEIGHTS)
    manifest = {
        "schema": SCHEMA,
        "model_class": type(shrunk.model).__name__,
        "origin": dict(origin or {}),
        "report": asdict(shrunk.report),
        "sha256": {name: _sha256(folder / name) for name in (PLAN, WEIGHTS)},
    }
    _write_json(folder / MANIFEST, manifest)


def bundle_manifest(folder: Path) -> dict[str, object]:
    """Return the manifest of a bundle whose files are the ones that it was written with.

    Raises:
        ShrinkError: a file is missing or damaged, or of another schema.
    """
    manifest = _read_json(folder / MANIFEST)
    if manifest.get("schema") != SCHEMA:
        raise ShrinkError(
            f"{folder / MANIFEST} has schema {manifest.get('schema')!r}, this version reads {SCHEMA}"
        )
    hashes = manifest["sha256"]
    assert isinstance(hashes, dict)
    for name, expected in hashes.items():
        found = _sha256(folder / name) if (folder / name).is_file() else "no file"
        if found != expected:
            raise ShrinkError(
                f"{folder / name} is damaged: sha256 {found[:12]}, the manifest says {expected[:12]}",
                hint="copy the bundle again or shrink the network again",
            )
    return manifest


def load_bundle(folder: str | Path, dense_model: nn.Module) -> nn.Module:
    """Return the small network of a bundle, built from a fresh dense model, which is not changed.

    Args:
        folder: what `save_bundle` wrote.
        dense_model: a network of the class and sizes that was shrunk; its weights do not matter.

    Raises:
        ShrinkError: a file is missing or damaged, or the dense model is another network.
    """
    folder = Path(folder)
    small = network_of_plan(folder, dense_model)
    try:
        tensors = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ShrinkError(f"{folder / WEIGHTS} cannot be read: {error}") from error
    own = small.state_dict()
    wrong = [
        f"{name}: {tuple(tensors[name].shape) if name in tensors else 'missing'} in the bundle, "
        f"{tuple(own[name].shape) if name in own else 'missing'} in the model"
        for name in sorted(tensors.keys() | own.keys())
        if name not in tensors or name not in own or tensors[name].shape != own[name].shape
    ]
    if wrong:
        raise ShrinkError(
            f"{folder} does not fit {type(dense_model).__name__}: " + "; ".join(wrong[:5]),
            hint="build the dense network that was shrunk, with the same arguments",
        )
    small.load_state_dict({name: tensors[name].to(own[name].dtype) for name in own})
    return small


def network_of_plan(folder: Path, dense_model: nn.Module) -> nn.Module:
    """Return the network of a bundle's widths that has the weights of `dense_model` where they are kept.

    What the shrink pass folded is not in it: biases that it added are zero.

    Raises:
        ShrinkError: a file is missing or damaged, or the dense model is another network.
    """
    bundle_manifest(folder)
    plan = Plan.from_json(_read_json(folder / PLAN))
    if plan.standard:
        dense_model = copy.deepcopy(dense_model)
        for path in plan.standard:
            make_standard(dense_model.get_submodule(path))
    small = model_from_plan(dense_model, plan)
    if plan.form == "graph":
        inputs = [torch.zeros(shape, dtype=getattr(torch, dtype)) for shape, dtype in plan.inputs]
        small = graph_form(small, open_graph(dense_model, plan, inputs), plan, type(dense_model).__name__)
    return small


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)


def _read_json(path: Path) -> dict[str, object]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ShrinkError(f"{path} does not exist", hint="is the folder a finished bundle?") from error
    except ValueError as error:
        raise ShrinkError(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ShrinkError(f"{path} holds a {type(value).__name__}, no object")
    return value


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
