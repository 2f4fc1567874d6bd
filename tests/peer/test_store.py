"""A checkpoint is whole or it is not there, whenever the process dies; one process per home; damage is found."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from faulty_disk import FOR_EVER, FaultyDisk, installed

from gossip.adapter import AdapterSpec, AdapterState
from gossip.membership_limits import REMEMBERED
from gossip.settings import NodeSnapshot
from peer import checkpoint_files, checkpoints
from peer.checkpoint_files import Checkpoint, OtherVersion
from peer.checkpoints import Home, HomeError, HomeGone, open_home
from peer.training.frames import Export

SPEC = AdapterSpec((("base.lora_A.weight", (2, 3)), ("base.lora_B.weight", (4,))))
RUN = {"seed": 1}


EXPORT = Export("adapter_model.safetensors", {"adapter_config.json": "{}"})


def state(round: int) -> AdapterState:
    return AdapterState(SPEC, torch.full((10,), float(round)))


def save(home: Home, round: int, keep: int = 2, *, is_healthy: bool = False) -> None:
    (home.begin(round) / checkpoint_files.TRAINER_STATE).write_bytes(b"optimizer %d" % round)
    home.commit(
        state(round), NodeSnapshot(round, 2 * round, [3, [1, 2], None], [0.5]), RUN, EXPORT, keep, is_healthy
    )
    home.export(home.adapter, state(round), EXPORT)


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    with open_home(tmp_path) as home:
        save(home, 1)
        checkpoint, complaints = home.newest()
    assert complaints == []
    assert checkpoint is not None
    assert checkpoint.round == 1
    assert checkpoint.state.spec == SPEC
    assert torch.equal(checkpoint.state.flat, state(1).flat)
    assert checkpoint.snapshot == NodeSnapshot(1, 2, [3, [1, 2], None], [0.5])
    assert checkpoint.run == RUN
    assert checkpoint.trainer_state.read_bytes() == b"optimizer 1"


def test_an_empty_home_has_none(tmp_path: Path) -> None:
    with open_home(tmp_path / "new" / "home") as home:
        assert home.newest() == (None, [])


def test_old_ones_are_pruned_and_the_adapter_is_the_newest(tmp_path: Path) -> None:
    with open_home(tmp_path) as home:
        for round in range(1, 5):
            save(home, round)
        kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["round-000003", "round-000004"]
    exported = checkpoint_files.load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert torch.equal(AdapterState.from_tensors(exported).flat, state(4).flat)


def test_the_newest_one_in_order_is_kept_beside_the_newest(tmp_path: Path) -> None:
    with open_home(tmp_path) as home:
        assert home.healthy() is None
        for round in range(1, 8):
            save(home, round, is_healthy=round in (2, 4))
        kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
        assert kept == ["round-000004", "round-000006", "round-000007"]
        healthy = home.healthy()
        assert healthy is not None
        assert torch.equal(healthy.flat, state(4).flat)
        save(home, 8, is_healthy=True)
        assert len(list((tmp_path / "checkpoints").iterdir())) == 2
        weights = tmp_path / "checkpoints" / "round-000008" / checkpoint_files.ADAPTER_WEIGHTS
        weights.write_bytes(weights.read_bytes()[:-1])
        assert home.healthy() is None, "a damaged one is in order for nobody"


def test_of_whole_models_only_the_newest_has_its_optimizer_and_the_others_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "EXPORT", Export("model.safetensors", {"config.json": "{}"}))
    with open_home(tmp_path) as home:
        for round in range(1, 5):
            save(home, round, keep=1, is_healthy=round == 2)
        folders = sorted((tmp_path / "checkpoints").iterdir())
        assert [folder.name for folder in folders] == ["round-000002", "round-000004"]
        has = [(folder / checkpoint_files.TRAINER_STATE).exists() for folder in folders]
        assert has == [False, True]
        assert checkpoint_files.load(folders[0]).trainer_state is None
        (folders[1] / checkpoint_files.ADAPTER_WEIGHTS).write_bytes(b"damaged")
        older, complaints = home.newest()
        assert len(complaints) == 1
        assert older is not None
        assert (older.round, older.trainer_state) == (2, None)


def test_what_a_kill_left_inside_of_a_checkpoint_goes_at_the_next_start(tmp_path: Path) -> None:
    """An older checkpoint's manifest is written anew when it loses its optimizer."""
    with open_home(tmp_path) as home:
        save(home, 1)
    (folder,) = (tmp_path / "checkpoints").glob("round-*")
    left = folder / ".manifest.json.0123abcd.partial"
    left.write_bytes(b"{")
    with open_home(tmp_path) as home:
        assert not left.exists()
        checkpoint, complaints = home.newest()
    assert checkpoint is not None
    assert not complaints


@pytest.mark.parametrize(
    "name",
    [
        checkpoint_files.ADAPTER_WEIGHTS,
        checkpoint_files.NODE_STATE,
        checkpoint_files.TRAINER_STATE,
        checkpoint_files.MANIFEST,
    ],
)
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_newest_falls_back_to_the_one_before_and_says_so(
    tmp_path: Path, name: str, damage: str
) -> None:
    with open_home(tmp_path) as home:
        save(home, 1)
        save(home, 2)
        path = tmp_path / "checkpoints" / "round-000002" / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content if damage == "flip" else content[: len(content) // 2])
        if damage == "remove":
            path.unlink()
        checkpoint, complaints = home.newest()
        assert checkpoint is not None
        assert checkpoint.round == 1
        assert len(complaints) == 1
        assert "round-000002 is damaged" in complaints[0]
        assert (tmp_path / "checkpoints" / "round-000002.damaged").is_dir()
        save(home, 2)
        assert home.newest()[0].round == 2  # type: ignore[union-attr]


def test_no_whole_checkpoint_left_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    with open_home(tmp_path) as home:
        save(home, 1)
        (tmp_path / "checkpoints" / "round-000001" / checkpoint_files.MANIFEST).unlink()
        with pytest.raises(HomeError, match="no whole checkpoint"):
            home.newest()


def test_a_second_process_is_refused_with_the_first_one_s_pid(tmp_path: Path) -> None:
    code = "import sys, pathlib, peer.checkpoints\nwith peer.checkpoints.open_home(pathlib.Path(sys.argv[1])): pass"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with open_home(tmp_path):
        second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode != 0
    assert f"in use by process {os.getpid()}" in second.stderr
    subprocess.run(command, check=True)


def test_a_home_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(HomeError, match="choose another --home"), open_home(blocker / "home"):
        pass


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOSPC, "No space left on device: free some space"),
        (errno.EMFILE, "Too many open files: too many files are open in this process: raise the limit"),
        (errno.EROFS, "Read-only file system: make the disk writable again"),
    ],
)
def test_a_disk_that_refuses_leaves_earlier_checkpoints_alone_and_the_remedy_is_named(
    tmp_path: Path, code: int, remedy: str
) -> None:
    with open_home(tmp_path) as home:
        save(home, 1)
        with (
            installed(FaultyDisk(tmp_path, 0, code, FOR_EVER)),
            pytest.raises(HomeError, match=remedy) as told,
        ):
            save(home, 2)
        assert told.value.exit_code == 7
        assert home.newest()[0].round == 1  # type: ignore[union-attr]
        save(home, 2)
        assert home.newest()[0].round == 2  # type: ignore[union-attr]


@pytest.mark.parametrize("is_replaced", [False, True], ids=["removed", "replaced"])
def test_a_home_that_is_removed_under_us_is_an_error_that_says_so(tmp_path: Path, is_replaced: bool) -> None:
    with open_home(tmp_path / "home") as home, ExitStack() as stack:
        save(home, 1)
        home.begin(2)
        shutil.rmtree(tmp_path / "home")
        if is_replaced:
            stack.enter_context(open_home(tmp_path / "home"))
        with pytest.raises(HomeGone, match="was removed or replaced while this peer ran"):
            home.begin(3)
        snapshot = NodeSnapshot(2, 2, [3, [1], None], [0.5])
        with pytest.raises(HomeGone, match="was removed or replaced while this peer ran"):
            home.commit(state(2), snapshot, RUN, EXPORT, 2)
        if is_replaced:
            assert {found.name for found in (tmp_path / "home").iterdir()} == {"lock", "checkpoints"}


def test_a_checkpoint_that_cannot_be_read_just_now_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> Checkpoint:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    with open_home(tmp_path) as home:
        save(home, 1)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "load", refuse)
            with pytest.raises(HomeError, match="ulimit"):
                home.newest()
        assert home.newest()[0].round == 1  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "kept", "complaint"),
    [
        ('["/memory/a/p2p/a", "/memory/b/p2p/b"]', ("/memory/a/p2p/a", "/memory/b/p2p/b"), ""),
        (
            '["/memory/a/p2p/a", "nonsense", 5, null, ["/memory/b/p2p/b"]]',
            ("/memory/a/p2p/a",),
            "skipped 4 entries",
        ),
        ('{"/memory/a/p2p/a": 1}', (), "skipped 1 entries"),
        ("5", (), "skipped 1 entries"),
        ("[" * 20_000, (), "is damaged"),
        ('["/memory/a/p2p/a"', (), "is damaged"),
        ("\udcff", (), "is damaged"),
    ],
)
def test_what_is_wrong_with_remembered_peers_is_told_and_the_rest_is_used(
    tmp_path: Path, text: str, kept: tuple[str, ...], complaint: str
) -> None:
    with open_home(tmp_path) as home:
        assert home.remembered_peers() == ((), [])
        (tmp_path / checkpoints.PEERS).write_bytes(text.encode(errors="surrogateescape"))
        addresses, complaints = home.remembered_peers()
    assert addresses == kept
    assert [complaint in line and str(tmp_path / checkpoints.PEERS) in line for line in complaints] == (
        [True] if complaint else []
    )


def test_no_more_peers_are_remembered_than_were_kept(tmp_path: Path) -> None:
    with open_home(tmp_path) as home:
        home.remember_peers([f"/memory/{number}/p2p/{number}" for number in range(100)])
        addresses, complaints = home.remembered_peers()
    assert len(addresses) == REMEMBERED
    assert complaints == []


def test_a_checkpoint_of_another_version_is_left_where_it_is(tmp_path: Path) -> None:
    with open_home(tmp_path) as home:
        save(home, 1)
        save(home, 2)
        folder = tmp_path / "checkpoints" / "round-000002"
        node = json.loads((folder / checkpoint_files.NODE_STATE).read_text())
        node["node"]["of the future"] = 1
        (folder / checkpoint_files.NODE_STATE).write_text(json.dumps(node))
        digests = json.loads((folder / checkpoint_files.MANIFEST).read_text())
        digests[checkpoint_files.NODE_STATE] = hashlib.sha256(json.dumps(node).encode()).hexdigest()
        (folder / checkpoint_files.MANIFEST).write_text(json.dumps(digests))
        with pytest.raises(OtherVersion, match="go on with the version that wrote it"):
            home.newest()
        assert folder.is_dir()


@pytest.mark.parametrize("content", ["[]", "{}", '"x"', "3", "\x00", "[1, 2]", "[" * 100_000])
def test_a_manifest_that_is_none_is_damage_and_no_bug(tmp_path: Path, content: str) -> None:
    with open_home(tmp_path) as home:
        save(home, 1)
        save(home, 2)
        (tmp_path / "checkpoints" / "round-000002" / checkpoint_files.MANIFEST).write_text(content)
        assert home.newest()[0].round == 1  # type: ignore[union-attr]


def test_damaged_checkpoints_do_not_pile_up(tmp_path: Path) -> None:
    with open_home(tmp_path) as home:
        save(home, 1)
        for round in range(2, 6):
            save(home, round, keep=9)
            (tmp_path / "checkpoints" / f"round-{round:06d}" / checkpoint_files.NODE_STATE).write_text("{}")
            assert home.newest()[0].round == 1  # type: ignore[union-attr]
        names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["round-000001", "round-000004.damaged", "round-000005.damaged"]


def test_an_adapter_that_lost_a_file_or_is_of_another_run_is_mended_and_other_files_stay(
    tmp_path: Path,
) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    export = dataclasses.replace(EXPORT, copies=(str(tmp_path / "tokenizer.json"),))
    with open_home(tmp_path / "home") as home:
        assert home.export(home.adapter, state(1), export)
        assert not home.export(home.adapter, state(1), export)
        (home.adapter / "notes.txt").write_text("mine")
        for name in ("tokenizer.json", "adapter_config.json", "adapter_model.safetensors"):
            whole = (home.adapter / name).read_bytes()
            (home.adapter / name).unlink()
            assert home.export(home.adapter, state(1), export)
            (home.adapter / name).write_bytes(b"x" * len(whole))
            assert home.export(home.adapter, state(1), export)
            assert (home.adapter / name).read_bytes() == whole
        assert (home.adapter / "notes.txt").read_text() == "mine"
