"""The zoo: the papers' networks by name, each built dense for a number of classes and an image shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from ticket_export.errors import DataError, RecipeError
from ticket_export.models.facts import ZOO_FACTS
from ticket_export.models.mobilenet import MobileNetV1
from ticket_export.models.plain import ConvNet, LeNet300100
from ticket_export.models.resnet import cifar_resnet, resnet18, resnet50, wrn_32_2
from ticket_export.models.supernet import SuperNet
from ticket_export.models.vgg import VGG16

ImageShape = tuple[int, int, int]  # channels, height, width


def _resnet(
    depth: int, *, num_classes: int, image_shape: ImageShape, shortcut: str = "projection"
) -> nn.Module:
    return cifar_resnet(depth, num_classes=num_classes, in_channels=image_shape[0], shortcut=shortcut)


def _resnet18(*, num_classes: int, image_shape: ImageShape, stem: str = "cifar") -> nn.Module:
    return resnet18(num_classes=num_classes, in_channels=image_shape[0], stem=stem)


def _resnet50(*, num_classes: int, image_shape: ImageShape, stem: str = "imagenet") -> nn.Module:
    return resnet50(num_classes=num_classes, in_channels=image_shape[0], stem=stem)


def _supernet(
    *, num_classes: int, image_shape: ImageShape, plan: str = "resnet20", expansion: str = "2"
) -> nn.Module:
    return SuperNet(plan=plan, expansion=int(expansion), num_classes=num_classes, in_channels=image_shape[0])


def _any_size(network: Callable[..., nn.Module], *, num_classes: int, image_shape: ImageShape) -> nn.Module:
    return network(num_classes=num_classes, in_channels=image_shape[0])


ZOO: Mapping[str, Callable[..., nn.Module]] = {
    "lenet300_100": LeNet300100,
    "conv2": partial(ConvNet, 1),
    "conv4": partial(ConvNet, 2),
    "conv6": partial(ConvNet, 3),
    "resnet20": partial(_resnet, 20),
    "resnet32": partial(_resnet, 32),
    "resnet44": partial(_resnet, 44),
    "resnet56": partial(_resnet, 56),
    "resnet18": _resnet18,
    "resnet50": _resnet50,
    "wrn_32_2": partial(_any_size, wrn_32_2),
    "vgg16": partial(_any_size, VGG16),
    "mobilenet_v1": partial(_any_size, MobileNetV1),
    "supernet": _supernet,
}

# Each pooling must leave at least one pixel
_MIN_PIXELS = {"conv2": 2, "conv4": 4, "conv6": 8, "vgg16": 16}


def zoo_network(
    name: str, args: Mapping[str, object], *, num_classes: int, image_shape: ImageShape
) -> nn.Module:
    """Return the dense network `name` with freshly drawn weights.

    Args:
        name: a key of ZOO.
        args: the network's own arguments, as ZOO_FACTS lists them.
        num_classes: width of the output.
        image_shape: channels, height, width of one image.

    Raises:
        RecipeError: the name, an argument or its value is unknown.
        DataError: the image is too small for the network.
    """
    if name not in ZOO:
        raise RecipeError(f"the zoo holds no network {name!r}", hint=f"it holds {', '.join(ZOO)}")
    allowed = ZOO_FACTS[name].args
    texts = {arg: str(value) for arg, value in args.items()}  # `expansion: 4` reads as a number
    for arg, value in texts.items():
        if arg not in allowed:
            known = ", ".join(allowed) if allowed else "none"
            raise RecipeError(f"zoo:{name} takes no argument {arg!r}", hint=f"its arguments: {known}")
        if value not in allowed[arg]:
            raise RecipeError(
                f"zoo:{name}: {arg} is {value!r}", hint=f"it may be {' or '.join(allowed[arg])}"
            )
    smallest = min(image_shape[1:])
    if name in _MIN_PIXELS and smallest < _MIN_PIXELS[name]:
        raise DataError(
            f"zoo:{name} needs images of at least {_MIN_PIXELS[name]} pixels a side, got {smallest}",
            hint="use larger images or a network with fewer poolings",
        )
    return ZOO[name](num_classes=num_classes, image_shape=image_shape, **texts)
