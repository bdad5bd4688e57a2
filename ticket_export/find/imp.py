"""Iterative magnitude pruning with rewinding: what it may prune, and how much is left after each round."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from ticket_export.channels.mask import ElementMask
from ticket_export.errors import ShrinkError
from ticket_export.find.magnitude import magnitude_mask

_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def prunable_weights(model: nn.Module, *, unpruned: Collection[str] | None = None) -> tuple[str, ...]:
    """Return the convolution and linear weights that magnitude pruning may drop, in module order.

    Shortcut and depthwise convolutions are among them (Chen et al., arXiv 2202.04736, released code).
    Norms and biases never are. A weight that two modules share is named once.

    Args:
        model: any network.
        unpruned: weights to leave whole; for a network of the zoo `ZOO_FACTS[name].unpruned`. None leaves the
            first convolution (the stem) whole, where there are several, and the last linear layer (the
            classifier), where it is not the only layer.

    Raises:
        ShrinkError: `unpruned` names no weight of the model, or nothing is left to prune.
    """
    held: dict[str, nn.Module] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, (*_CONVOLUTIONS, nn.Linear)) and id(module.weight) not in seen:
            seen.add(id(module.weight))
            held[f"{name}.weight" if name else "weight"] = module
    unknown = [name for name in unpruned or () if name not in held]
    if unknown:
        raise ShrinkError(f"{unknown[0]!r} is no convolution or linear weight of {type(model).__name__}")
    whole = _stem_and_classifier(held) if unpruned is None else set(unpruned)
    names = tuple(name for name in held if name not in whole)
    if not names:
        raise ShrinkError(f"{type(model).__name__} has no weights to prune")
    return names


def _stem_and_classifier(held: Mapping[str, nn.Module]) -> set[str]:
    convolutions = [name for name, module in held.items() if isinstance(module, _CONVOLUTIONS)]
    linears = [name for name in held if name not in convolutions]
    stem = convolutions[:1] if len(convolutions) > 1 else []
    classifier = linears[-1:] if len(held) > 1 else []
    return {*stem, *classifier}


def layer_drop_fractions(
    model: nn.Module,
    names: Collection[str],
    *,
    drop_fraction: float,
    conv: float | None = None,
    classifier: tuple[str, float] | None = None,
) -> dict[str, float]:
    """Return the share that a round drops of each weight, where layers differ.

    Source: Frankle & Carbin 2019 (arXiv 1803.03635), figure 2: convolutions of Conv-2/4/6 lose less than
    linear layers, and the last layer loses half as much.

    Args:
        model: the network.
        names: the weights that may be dropped.
        drop_fraction: of the others.
        conv: of convolutions; None = `drop_fraction`.
        classifier: name and share of the last layer; it joins the names.
    """
    fractions = {}
    for name in names:
        is_conv = isinstance(model.get_submodule(name.rpartition(".")[0]), _CONVOLUTIONS)
        fractions[name] = conv if is_conv and conv is not None else drop_fraction
    return fractions if classifier is None else {**fractions, classifier[0]: classifier[1]}


def last_linear(model: nn.Module) -> str:
    """Return the name of the weight of the last linear layer: the classifier.

    Raises:
        ShrinkError: the network has none.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ShrinkError(f"{type(model).__name__} has no linear layer", hint="leave its drop fraction out")
    return f"{linear[-1]}.weight" if linear[-1] else "weight"


def imp_mask(
    weights: Mapping[str, Tensor],
    names: Collection[str],
    *,
    level: int,
    drop_fraction: float | Mapping[str, float],
    scope: str = "global",
    previous: ElementMask | None = None,
) -> ElementMask:
    """Return the element mask of one round: `(1 - drop_fraction) ** level` of the named weights are kept.

    Each round drops `drop_fraction` of what the round before kept. Source: arXiv 1803.03635, section 2.

    Args:
        weights: the state dict trained under `previous`.
        names: the weights that may be dropped.
        level: the round, from 1.
        drop_fraction: in (0, 1); with scope `layer` also one for each name (`layer_drop_fractions`).
        scope: `global` or `layer`.
        previous: the mask of the round before; None in round 1.

    Raises:
        ShrinkError: level, rate or masks do not fit, or the round leaves nothing of a layer.
    """
    fractions = {
        name: drop_fraction[name] if isinstance(drop_fraction, Mapping) else drop_fraction for name in names
    }
    if level < 1 or not all(0 < fraction < 1 for fraction in fractions.values()):
        raise ShrinkError(
            f"level {level} at a drop_fraction of {drop_fraction}",
            hint="levels count from 1 and the fraction lies between 0 and 1",
        )
    if (previous is None) != (level == 1):
        raise ShrinkError(
            f"level {level} {'without' if previous is None else 'with'} a mask of the round before"
        )
    kept = {name: (1 - fraction) ** level for name, fraction in fractions.items()}
    mask = magnitude_mask(
        {name: weights[name] for name in names},
        keep_fraction=kept if isinstance(drop_fraction, Mapping) else (1 - drop_fraction) ** level,
        scope=scope,
        previous=previous,
    )
    require_no_empty_layer(mask, f"level {level}")
    return mask


def require_no_empty_layer(mask: ElementMask, what: str) -> None:
    """Raise ShrinkError where the mask keeps nothing of a layer: nothing would pass through it."""
    for name, keep in mask.keep_by_parameter.items():
        if not keep.any():
            raise ShrinkError(
                f"{what} keeps 0 of the {keep.numel()} weights of {name!r}",
                hint="use fewer find.levels, a smaller find.drop_fraction, or find.magnitude_scope layer",
            )
