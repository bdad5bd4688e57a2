from __future__ import annotations

import os
from pathlib import Path

import pytest
from torch import nn

from ticket_export.models.load import build


@pytest.fixture
def trained_resnet20(data_folder: Path) -> nn.Module:
    """The published CIFAR-10 ResNet-20 with option-A shortcuts, in evaluation mode."""
    named = os.environ.get("TICKET_EXPORT_RESNET20")
    path = Path(named) if named else data_folder / "resnet20_cifar10.npz"
    if not path.is_file():
        pytest.skip(f"{path} is missing; TICKET_EXPORT_RESNET20 may name the trained resnet20_cifar10.npz")
    return build("zoo:resnet20", {"shortcut": "pad"}, path, image_shape=(3, 32, 32)).eval()
