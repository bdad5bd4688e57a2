from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

SCRIPT = Path(__file__).with_name("two_processes.py")


def run(folder: Path, num_processes: int) -> list[dict[str, Tensor]]:
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_processes)}
    places = [
        shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(num_processes)}
        for rank in range(num_processes)
    ]
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder)],
            env=os.environ | place,
            stderr=subprocess.PIPE,
            text=True,
        )
        for place in (places if num_processes > 1 else [{}])
    ]
    for process in processes:
        _, told = process.communicate(timeout=120)
        assert process.returncode == 0, told
    return [load_file(path) for path in sorted(folder.iterdir())]


@pytest.mark.slow
def test_two_processes_share_each_batch_and_train_the_same_weights_as_one(tmp_path: Path) -> None:
    (one,) = run(tmp_path / "one", 1)
    first, second = run(tmp_path / "two", 2)
    assert one.keys() == first.keys()
    for name, value in one.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-6, atol=1e-9)
    assert len(one["plain.losses"]) == 3
    assert len(one["additions.losses"]) == 2  # one process of them ended it
    assert len(one["additions.validations"]) == 4  # after steps 3, 4, 6 and 8
