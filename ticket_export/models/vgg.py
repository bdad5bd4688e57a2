"""VGG-16 with batch norms, as the papers on pruning build it for CIFAR: one linear layer instead of three."""

# N images, C channels, H W pixels, K classes
from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from ticket_export.models.resnet import initialise_he

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions, each with norm and ReLU, a 2x2 max pool between stages, mean, linear.

    It has 14,724,042 parameters for 10 classes of RGB images; its convolutions cost 313.2 million MACs on a
    32x32 image. Its norms make biases of the convolutions superfluous. The mean takes the 2x2 pixels that
    four pools leave of 32x32, as in the code of Chen et al. 2022 (arXiv 2202.04736); so it accepts images of
    any size from 16 pixels on.
    Source: Simonyan & Zisserman 2015 (arXiv 1409.1556), table 1, configuration D.
    """

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = in_channels
        for stage, widths in enumerate(_STAGES):
            if stage > 0:
                layers.append(nn.MaxPool2d(2))
            for out_width in widths:
                layers += [
                    nn.Conv2d(width, out_width, 3, 1, 1, bias=False),
                    nn.BatchNorm2d(out_width),
                    nn.ReLU(),
                ]
                width = out_width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, num_classes)
        initialise_he(self)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the logits, [N, K]."""
        return cast(Tensor, self.classifier(self.features(x_NCHW).mean((2, 3))))
