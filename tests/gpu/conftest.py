"""Tests that need a GPU: without one each skips with the reason; under REQUIRE_GPU=1 each fails instead."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

_NO_GPU = "torch.cuda is not available: this machine has no NVIDIA GPU, or its torch is built without CUDA"


@pytest.fixture(scope="session", autouse=True)
def device() -> torch.device:
    """The GPU, or the end of every test of this folder."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if os.environ.get("REQUIRE_GPU") == "1":
        pytest.fail(f"REQUIRE_GPU=1, but {_NO_GPU}")
    pytest.skip(_NO_GPU)


@pytest.fixture
def full_fp32() -> Iterator[None]:
    """Convolutions in full fp32: as torch ships, a GPU rounds their inputs to the 10 bits of TF32."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield
