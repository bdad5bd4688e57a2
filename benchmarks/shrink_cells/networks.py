"""The networks of the coverage table, each at small resolutions, and the cells of each."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from costs.shrink import torchvision_schemas
from torch import nn

from ticket_export.models.zoo import zoo_network

# they last as long as the reference; who imports this may have declared them
TORCHVISION_SCHEMAS = None if hasattr(torch.ops.torchvision, "nms") else torchvision_schemas()


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """How to build one network.

    Attributes:
        source: "torchvision", "timm" or "zoo".
        name: its name there.
        size: height and width of the example images.
        other_size: of the second trial, where the network takes it.
        kwargs: of its factory.
    """

    source: str
    name: str
    size: int
    other_size: int
    kwargs: Mapping[str, Any] = field(default_factory=dict)  # Any: what the factories take
    channels: int = 3

    @property
    def key(self) -> str:
        """Its name in the table."""
        words = "".join(f", {value}" for name, value in self.kwargs.items() if name == "shortcut")
        return f"{self.source}:{self.name}{words}"

    def built(self) -> nn.Module:
        """Return it with fresh weights, equal in every run, in evaluation mode."""
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about initial weights and old names
            torch.manual_seed(0)
            with contextlib.redirect_stdout(io.StringIO()):
                return self._fresh().eval()

    def _fresh(self) -> nn.Module:
        if self.source == "zoo":
            shape = (self.channels, self.size, self.size)
            return zoo_network(self.name, self.kwargs, num_classes=10, image_shape=shape)
        if self.source == "timm":
            import timm

            model: nn.Module = timm.create_model(self.name, pretrained=False, **self.kwargs)
            return model
        import torchvision

        if self.name == "maxvit_t":
            # the factory fixes windows of 7, which needs 224 pixels; this is maxvit_t with windows of 2
            maxvit: nn.Module = torchvision.models.maxvit.MaxVit(
                stem_channels=64,
                block_channels=[64, 128, 256, 512],
                block_layers=[2, 2, 5, 2],
                head_dim=32,
                stochastic_depth_prob=0.2,
                partition_size=2,
                input_size=(self.size, self.size),
            )
            return maxvit
        built: nn.Module = torchvision.models.get_model(self.name, weights=None, **self.kwargs)
        return built


def _vision(name: str, size: int = 64, other_size: int = 80, **kwargs: object) -> Network:
    return Network(source="torchvision", name=name, size=size, other_size=other_size, kwargs=kwargs)


def _timm(name: str, size: int = 64, other_size: int = 96, **kwargs: object) -> Network:
    return Network(source="timm", name=name, size=size, other_size=other_size, kwargs=kwargs)


def _zoo(name: str, size: int = 16, other_size: int = 24, channels: int = 3, **kwargs: object) -> Network:
    return Network(
        source="zoo", name=name, size=size, other_size=other_size, kwargs=kwargs, channels=channels
    )


TORCHVISION = (
    _vision("alexnet"),
    _vision("vgg11", 32, 48),
    _vision("vgg16_bn", 32, 48),
    _vision("resnet18"),
    _vision("resnet50"),
    _vision("resnext50_32x4d"),
    _vision("wide_resnet50_2"),
    _vision("densenet121"),
    _vision("googlenet", init_weights=False),
    _vision("inception_v3", 75, 96, init_weights=False),
    _vision("squeezenet1_1"),
    _vision("mobilenet_v2"),
    _vision("mobilenet_v3_large"),
    _vision("mnasnet1_0"),
    _vision("efficientnet_b0"),
    _vision("efficientnet_v2_s"),
    _vision("regnet_x_400mf"),
    _vision("regnet_y_400mf"),
    _vision("shufflenet_v2_x1_0"),
    _vision("convnext_tiny"),
    _vision("vit_b_16", 32, 48, image_size=32),
    _vision("swin_t", 64, 96),
    _vision("swin_v2_t", 64, 96),
    _vision("maxvit_t", 64, 128),
    _vision("fcn_resnet50", weights_backbone=None),
    _vision("deeplabv3_resnet50", weights_backbone=None),
    _vision("lraspp_mobilenet_v3_large", weights_backbone=None),
)

TIMM = (
    _timm("resnetv2_50"),
    _timm("resnetv2_50x1_bit"),
    _timm("rexnet_100"),
    _timm("ghostnet_100"),
    _timm("hrnet_w18_small"),
    _timm("dla34"),
    _timm("res2net50_14w_8s"),
    _timm("cspresnet50"),
    _timm("skresnet18"),
    _timm("nf_regnet_b0"),
    _timm("resnest14d"),
    _timm("ecaresnet26t"),
    _timm("repvgg_a0"),
    _timm("tresnet_m"),
    _timm("ese_vovnet19b_dw"),
    _timm("hardcorenas_a"),
    _timm("mixnet_s"),
    _timm("xception41"),
    _timm("mobileone_s0"),
    _timm("repvit_m0_9"),
    _timm("mobilenetv4_conv_small"),
    _timm("botnet26t_256", 64, 96, img_size=64),
    _timm("mixer_s16_224", 32, 48, img_size=32),
    _timm("resmlp_12_224", 32, 48, img_size=32),
    _timm("poolformer_s12"),
    _timm("deit_tiny_patch16_224", 32, 48, img_size=32),
    _timm("cait_xxs24_224", 32, 48, img_size=32),
    _timm("xcit_nano_12_p16_224", 32, 48, img_size=32),
    _timm("coat_lite_tiny", 64, 96, img_size=64),
    _timm("mobilevit_xxs"),
    _timm("edgenext_xx_small"),
    _timm("efficientformer_l1", 224, 256),
    _timm("levit_128s", 64, 96, img_size=64),
    _timm("pvt_v2_b0"),
    _timm("visformer_tiny", 64, 96, img_size=64),
    _timm("focalnet_tiny_srf"),
)

ZOO = (
    _zoo("lenet300_100", channels=1),
    _zoo("conv2"),
    _zoo("conv4"),
    _zoo("conv6"),
    *(
        _zoo(name, shortcut=shortcut)
        for name in ("resnet20", "resnet32", "resnet44", "resnet56")
        for shortcut in ("projection", "pad")
    ),
    _zoo("resnet18"),
)

NETWORKS: Mapping[str, Network] = {network.key: network for network in (*TORCHVISION, *ZOO, *TIMM)}

# one of each kind: plain, bottleneck, grouped, concatenation, depthwise, gates, groups with gates,
# channel shuffle, layer norms with depthwise, attention
ALL_LAWS_ON = tuple(
    f"torchvision:{name}"
    for name in (
        *("resnet18", "resnet50", "resnext50_32x4d", "densenet121", "mobilenet_v2"),
        *("efficientnet_b0", "regnet_y_400mf", "shufflenet_v2_x1_0", "convnext_tiny", "vit_b_16"),
    )
)
LAWS = ("both", "columns", "rows", "gammas", "layer", "one_left", "nothing", "elements")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One line of the table: a network, its zeros, its biases (kept or zero), its dtype."""

    network: str
    law: str
    biases: str
    dtype: str

    @property
    def key(self) -> str:
        """What tells this cell from all others."""
        return "|".join((self.network, self.law, self.biases, self.dtype))


def cells() -> Iterator[Cell]:
    """Yield all cells: the most telling one of every network first."""
    for network in NETWORKS:
        yield Cell(network=network, law="both", biases="kept", dtype="float32")
    for network in NETWORKS:
        yield Cell(network=network, law="columns", biases="kept", dtype="float32")
        yield Cell(network=network, law="both", biases="kept", dtype="float64")
    for network in ALL_LAWS_ON:
        for law in LAWS:
            for biases in ("kept", "zero"):
                if biases == "zero" or law not in ("both", "columns"):
                    yield Cell(network=network, law=law, biases=biases, dtype="float32")
