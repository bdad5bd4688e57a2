"""The store: complete or absent, damage named and redone, disks that refuse told in one error."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ticket_export.errors import StoreError, UnknownKeyError
from ticket_export.store.manifest import Manifest
from ticket_export.store.store import Damage, Store

STAGE, KEY = "train", "0123456789ab"
KILLED_IN_THE_MIDDLE = """
import os, signal, sys
from ticket_export.store.store import Store
claim = Store(sys.argv[1]).claim("train", "0123456789ab")
(claim.folder / "weights").write_text("half")
(claim.scratch / "checkpoint").write_text("epoch 3")
os.kill(os.getpid(), signal.SIGKILL)
"""


def publish(store: Store, *, text: str = "weights", key: str = KEY) -> Manifest:
    claim = store.claim(STAGE, key)
    assert claim is not None
    with claim:
        (claim.folder / "weights.bin").write_text(text)
        (claim.scratch / "checkpoint").write_text("left behind")
        return claim.publish(
            revision=1,
            item={"subject": "dense", "replicate": 0},
            parents={"start": "train/ba9876543210"},
            sections={"train": {"lr": 0.1}},
            facts={"params": 3},
        )


def test_a_published_result_is_found_with_all_it_says(tmp_path: Path) -> None:
    published = publish(Store(tmp_path))
    found = Store(tmp_path).look_up(STAGE, KEY)
    assert isinstance(found, Manifest)
    assert found == published
    assert found.facts == {"params": 3}
    assert list(found.files) == ["weights.bin"]
    assert found.files["weights.bin"].bytes == len("weights")
    folder = tmp_path / "store" / STAGE / KEY
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "weights.bin"]
    assert json.loads((folder / "manifest.json").read_text())["schema"] == 1


def test_what_is_not_published_does_not_exist(tmp_path: Path) -> None:
    store = Store(tmp_path)
    claim = store.claim(STAGE, KEY)
    assert claim is not None
    with claim:
        (claim.folder / "weights.bin").write_text("half")
        assert store.look_up(STAGE, KEY) is None
    assert store.look_up(STAGE, KEY) is None


def test_a_complete_result_is_not_claimed_again(tmp_path: Path) -> None:
    publish(Store(tmp_path))
    assert Store(tmp_path).claim(STAGE, KEY) is None


def test_a_result_has_one_maker_at_a_time(tmp_path: Path) -> None:
    first = Store(tmp_path).claim(STAGE, KEY)
    assert first is not None
    assert Store(tmp_path).claim(STAGE, KEY) is None
    lock = tmp_path / "store" / STAGE / f"{KEY}.lock"
    assert lock.exists()
    with first:
        pass
    assert not lock.exists()


@pytest.mark.parametrize("scratch", ["", "epoch 3"])
def test_an_error_inside_a_claim_gives_it_back_and_leaves_the_scratch_alone(
    tmp_path: Path, scratch: str
) -> None:
    claim = Store(tmp_path).claim(STAGE, KEY)
    assert claim is not None
    (claim.folder / "weights.bin").write_text("half")
    if scratch:
        (claim.scratch / "checkpoint").write_text(scratch)
    with pytest.raises(ZeroDivisionError), claim:
        raise ZeroDivisionError
    left = [path.name for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert left == (["checkpoint"] if scratch else [])
    again = Store(tmp_path).claim(STAGE, KEY)
    assert again is not None
    with again:
        assert [path.read_text() for path in again.scratch.iterdir()] == ([scratch] if scratch else [])


def test_after_a_kill_the_scratch_is_there_and_half_written_files_are_not(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED_IN_THE_MIDDLE, str(tmp_path)], check=False)
    assert killed.returncode == -9
    claim = Store(tmp_path).claim(STAGE, KEY)
    assert claim is not None
    with claim:
        assert (claim.scratch / "checkpoint").read_text() == "epoch 3"
        assert sorted(path.name for path in claim.folder.iterdir()) == ["scratch"]


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("weights.bin", "weightz", "weights.bin has changed since it was published (its sha256 differs)"),
        ("weights.bin", "weight", "weights.bin holds 6 bytes, not 7"),
        ("weights.bin", None, "weights.bin is missing"),
        ("manifest.json", None, "manifest.json is missing"),
        ("manifest.json", '{"schema": 1', "manifest.json cannot be read"),
        ("manifest.json", '{"schema": 2}', "the manifest is not of schema 1"),
        ("manifest.json", '{"schema": 1, "stage": "train"}', "the manifest is incomplete"),
    ],
)
def test_damage_is_named_and_made_good(tmp_path: Path, file: str, content: str | None, reason: str) -> None:
    publish(Store(tmp_path))
    path = tmp_path / "store" / STAGE / KEY / file
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    found = Store(tmp_path).look_up(STAGE, KEY)
    assert isinstance(found, Damage)
    assert reason in str(found)
    assert str(path.parent) in str(found)
    publish(Store(tmp_path))
    assert isinstance(Store(tmp_path).look_up(STAGE, KEY), Manifest)
    assert [path.name for path in (tmp_path / "store" / STAGE).glob("*damaged*")] == []


def test_a_result_moved_under_another_key_is_damage(tmp_path: Path) -> None:
    publish(Store(tmp_path))
    folder = tmp_path / "store" / STAGE
    (folder / KEY).rename(folder / "ffffffffffff")
    found = Store(tmp_path).look_up(STAGE, "ffffffffffff")
    assert isinstance(found, Damage)
    assert f"belongs to {STAGE}/{KEY}" in str(found)


def test_a_result_is_shown_by_the_start_of_its_key(tmp_path: Path) -> None:
    publish(Store(tmp_path))
    publish(Store(tmp_path), key="0999999999ab")
    assert Store(tmp_path).find("012")["key"] == KEY
    with pytest.raises(
        StoreError, match="'0' should start one key, got train/0123456789ab, train/0999999999ab"
    ):
        Store(tmp_path).find("0")
    with pytest.raises(UnknownKeyError, match="'7' should start one key, got nothing"):
        Store(tmp_path).find("7")
    for index in range(9):
        publish(Store(tmp_path), key=f"aaaaaaaaaaa{index}")
    with pytest.raises(UnknownKeyError, match=r"train/aaaaaaaaaaa7, 1 more"):
        Store(tmp_path).find("a")
    (tmp_path / "store" / STAGE / KEY / "weights.bin").write_text("other..")
    with pytest.raises(StoreError, match=r"damaged: .*weights\.bin has changed"):
        Store(tmp_path).find("012")


def test_a_work_taken_over_while_silent_is_not_published(tmp_path: Path) -> None:
    claim = Store(tmp_path).claim(STAGE, KEY)
    assert claim is not None
    lock = tmp_path / "store" / STAGE / f"{KEY}.lock"
    owner = json.loads(lock.read_text())
    lock.write_text(json.dumps({**owner, "host": "elsewhere", "token": "other"}))
    with pytest.raises(StoreError, match="another machine took this work over"), claim:
        claim.publish(revision=1, item={}, parents={}, sections={}, facts={})
    assert Store(tmp_path).look_up(STAGE, KEY) is None


def test_the_whole_store_can_be_locked_for_one(tmp_path: Path) -> None:
    entered: list[str] = []

    def enter(name: str) -> None:
        with Store(tmp_path).exclusively("latency"):
            entered.append(name)

    with Store(tmp_path).exclusively("latency"):
        second = threading.Thread(target=enter, args=("second",))
        second.start()
        second.join(0.3)
        assert second.is_alive()
        entered.append("first")
    second.join(5)
    assert entered == ["first", "second"]


def test_a_file_where_the_output_folder_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(StoreError, match=f"{tmp_path}/out.*Not a directory") as caught:
        Store(tmp_path / "out").claim(STAGE, KEY)
    assert caught.value.hint == "a file stands where a folder should be; choose another folder with --out"
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("code", "text", "hint"),
    [
        (errno.ENOSPC, "No space left on device", "free some space"),
        (errno.EROFS, "Read-only file system", "choose a folder that can be written"),
        (errno.EACCES, "Permission denied", "choose a folder that you may write"),
    ],
)
def test_a_disk_that_refuses_is_told_when_a_result_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, text: str, hint: str
) -> None:
    store = Store(tmp_path)
    claim = store.claim(STAGE, KEY)
    assert claim is not None

    def refuse(path: Path, *_: object, **__: object) -> int:
        raise OSError(code, text, str(path))

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(StoreError, match=text) as caught, claim:
        claim.publish(revision=1, item={}, parents={}, sections={}, facts={})
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(hint)
    assert f"{KEY}.partial/manifest.json" in str(caught.value)
    assert store.look_up(STAGE, KEY) is None
    assert list((tmp_path / "store" / STAGE).iterdir()) == []


def test_the_store_loads_no_torch(tmp_path: Path) -> None:
    code = "import sys; from ticket_export.store.store import Store, machine_facts; machine_facts(); "
    code += "Store(sys.argv[1]).look_up('train', 'x'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 0
