"""The plain networks of the lottery ticket paper (arXiv 1803.03635, figure 2): LeNet-300-100, Conv-2/4/6."""

# N images, C channels, H W pixels, K classes
from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional


class LeNet300100(nn.Module):
    """Linear layers 300, 100, K over the flattened image; 266,200 weights on 28x28 and 10 classes.

    Biases apart. The paper's network for MNIST.
    """

    def __init__(self, *, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.fc1 = nn.Linear(channels * height * width, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, num_classes)
        _initialise_glorot(self)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the logits, [N, K]."""
        hidden_NC = functional.relu(self.fc1(x_NCHW.flatten(1)))
        return cast(Tensor, self.fc3(functional.relu(self.fc2(hidden_NC))))


class ConvNet(nn.Module):
    """Pairs of 3x3 convolutions, each pair followed by a 2x2 max pool, then linear layers 256, 256, K.

    `num_pairs` 1, 2 and 3 give Conv-2, Conv-4 and Conv-6 of the paper, with 64, 128 and 256 channels in
    the pairs. Weights (biases apart) on 32x32 RGB and 10 classes: 4,300,992, 2,425,024 and 2,261,184. The
    paper prints 1.7 million for Conv-6; the layers it lists hold 2.26 million.
    """

    def __init__(self, num_pairs: int, *, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = image_shape
        layers: list[nn.Module] = []
        for out_channels in (64, 128, 256)[:num_pairs]:
            for in_channels in (channels, out_channels):
                layers += [nn.Conv2d(in_channels, out_channels, 3, 1, 1), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
            channels, height, width = out_channels, height // 2, width // 2
        self.features = nn.Sequential(*layers)
        self.fc1 = nn.Linear(channels * height * width, 256)
        self.fc2 = nn.Linear(256, 256)
        self.fc3 = nn.Linear(256, num_classes)
        _initialise_glorot(self)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the logits, [N, K]."""
        hidden_NC = functional.relu(self.fc1(self.features(x_NCHW).flatten(1)))
        return cast(Tensor, self.fc3(functional.relu(self.fc2(hidden_NC))))


def _initialise_glorot(model: nn.Module) -> None:
    # Gaussian Glorot, the paper's choice (arXiv 1803.03635, figure 2); biases start at zero
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
