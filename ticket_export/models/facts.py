"""What is known of each network of the zoo without building it: no torch, so that `check` answers at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

BUNDLE_PREFIX = "bundle:"  # before the folder of a bundle whose network is the builder's
BUNDLE_WEIGHTS = ("bundle", "fresh")  # what `weights` of such a builder may be, the default first


@dataclass(frozen=True, slots=True, kw_only=True)
class ZooFacts:
    """What recipe checks and finders may rely on for one network of the zoo.

    Attributes:
        args: name of each argument that `model.args` may hold -> the texts it may be, the default first.
        has_norm: it holds batch norms.
        has_residual: some channels are joined by an add.
        has_depthwise: it holds depthwise convolutions.
        has_branches: its blocks are sums of branches whose norm scales `supernet` decides by.
        fixed_size: its classifier reads a flattened map, so it accepts one image size alone.
        stem: name of the first layer when pruning leaves that layer whole, else None.
        classifier: name of the last linear layer.
        beyond_torch_pruning: arguments with which torch-pruning cuts other channels than belong together.
        source: the paper the network comes from.
    """

    args: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    has_norm: bool
    has_residual: bool
    has_depthwise: bool = False
    has_branches: bool = False
    fixed_size: bool
    stem: str | None
    classifier: str
    beyond_torch_pruning: Mapping[str, str] = field(default_factory=dict)
    source: str

    @property
    def unpruned(self) -> tuple[str, ...]:
        """Return the weights that magnitude pruning leaves whole: the stem's and the classifier's."""
        return tuple(f"{layer}.weight" for layer in (self.stem, self.classifier) if layer is not None)


_LTH = "Frankle & Carbin 2019 (arXiv 1803.03635), figure 2"
_CIFAR_RESNET = ZooFacts(
    args={"shortcut": ("projection", "pad")},
    has_norm=True,
    has_residual=True,
    fixed_size=False,
    stem="conv1",
    classifier="linear",
    beyond_torch_pruning={"shortcut": "pad"},
    source="He et al. 2016 (arXiv 1512.03385), section 4.2; `pad` is its option A, `projection` its option B",
)
_RESNET = (
    "He et al. 2016 (arXiv 1512.03385), table 1; the stem `cifar` is 3x3 with stride 1, without the max pool"
)
_CONV = ZooFacts(
    has_norm=False, has_residual=False, fixed_size=True, stem=None, classifier="fc3", source=_LTH
)

ZOO_FACTS: Mapping[str, ZooFacts] = {
    "lenet300_100": _CONV,
    "conv2": _CONV,
    "conv4": _CONV,
    "conv6": _CONV,
    "resnet20": _CIFAR_RESNET,
    "resnet32": _CIFAR_RESNET,
    "resnet44": _CIFAR_RESNET,
    "resnet56": _CIFAR_RESNET,
    "resnet18": ZooFacts(
        args={"stem": ("cifar", "imagenet")},
        has_norm=True,
        has_residual=True,
        fixed_size=False,
        stem="conv1",
        classifier="linear",
        source=_RESNET,
    ),
    "resnet50": ZooFacts(
        args={"stem": ("imagenet", "cifar")},
        has_norm=True,
        has_residual=True,
        fixed_size=False,
        stem="conv1",
        classifier="linear",
        source=_RESNET,
    ),
    "wrn_32_2": ZooFacts(
        has_norm=True,
        has_residual=True,
        fixed_size=False,
        stem="conv1",
        classifier="linear",
        source="Chen et al. 2022 (arXiv 2202.04736), released code: He et al.'s depth 32, twice as wide",
    ),
    "vgg16": ZooFacts(
        has_norm=True,
        has_residual=False,
        fixed_size=False,
        stem=None,
        classifier="classifier",
        source="Simonyan & Zisserman 2015 (arXiv 1409.1556), table 1, D, with norms and one linear layer",
    ),
    "mobilenet_v1": ZooFacts(
        has_norm=True,
        has_residual=False,
        has_depthwise=True,
        fixed_size=False,
        stem="conv1",
        classifier="linear",
        source="Howard et al. 2017 (arXiv 1704.04861), table 1, with a stem of stride 1",
    ),
    "supernet": ZooFacts(
        args={"plan": ("resnet20", "resnet18", "mobilenet_v1"), "expansion": ("2", "1", "4")},
        has_norm=True,
        has_residual=True,
        has_depthwise=True,
        has_branches=True,
        fixed_size=False,
        stem="conv1",
        classifier="linear",
        source="branches of the code of You et al. 2022 (arXiv 2207.03677), over the stages of `plan`",
    ),
}
