"""A checkpoint is whole or it is not there, whenever the process dies; one process per home; damage is found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gossip.adapter import AdapterSpec, AdapterState
from gossip.membership_limits import REMEMBERED
from gossip.settings import NodeSnapshot
from peer import checkpoints, durable
from peer.checkpoints import Home, HomeError, open_home
from peer.training.frames import Export

SPEC = AdapterSpec((("base.lora_A.weight", (2, 3)), ("base.lora_B.weight", (4,))))
RUN = {"seed": 1}


EXPORT = Export("adapter_model.safetensors", {"adapter_config.json": "{}"})


class Crash(BaseException):
    """Power off: nothing after it is executed."""


def state(round: int) -> AdapterState:
    return AdapterState(SPEC, torch.full((10,), float(round)))


def save(home: Home, round: int, keep: int = 2) -> None:
    (home.begin(round) / checkpoints.TRAINER_STATE).write_bytes(b"optimizer %d" % round)
    home.commit(state(round), NodeSnapshot(round, 2 * round, [3, [1, 2], None], [0.5]), RUN, EXPORT, keep)


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
    exported = checkpoints.load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert torch.equal(AdapterState.from_tensors(exported).flat, state(4).flat)


STEPS = ("write_bytes", "write_text", "rename", "replace")


def operations(monkeypatch: pytest.MonkeyPatch, stop_at: int | None) -> list[str]:
    """Count every step that touches the disk, and crash instead of the ``stop_at``-th."""
    seen: list[str] = []

    def counted(name: str, original):  # type: ignore[no-untyped-def]
        def step(*args, **kwargs):  # type: ignore[no-untyped-def]
            if len(seen) == stop_at:
                raise Crash
            seen.append(name)
            return original(*args, **kwargs)

        return step

    for name in STEPS:
        monkeypatch.setattr(Path, name, counted(name, getattr(Path, name)))
    for module in (checkpoints, durable):
        monkeypatch.setattr(module, "sync", counted("sync", durable.sync))
    monkeypatch.setattr(checkpoints.shutil, "rmtree", counted("rmtree", checkpoints.shutil.rmtree))
    return seen


def test_killed_at_every_step_of_a_save_one_whole_checkpoint_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, open_home(tmp_path / "count") as home:
        for round in (1, 2):
            save(home, round)
        steps = operations(patch, None)
        save(home, 3)
    assert len(steps) > 15
    for stop_at in range(len(steps)):
        path = tmp_path / str(stop_at)
        with open_home(path) as home:
            for round in (1, 2):
                save(home, round)
        with monkeypatch.context() as patch, open_home(path) as home:
            operations(patch, stop_at)
            with pytest.raises(Crash):
                save(home, 3)
        with open_home(path) as home:
            checkpoint, complaints = home.newest()
            assert checkpoint is not None, steps[stop_at]
            assert complaints == []
            assert checkpoint.round in (2, 3)
            assert torch.equal(checkpoint.state.flat, state(checkpoint.round).flat)
            exported = AdapterState.from_tensors(
                checkpoints.load_file(path / "adapter" / "adapter_model.safetensors")
            )
            assert float(exported.flat[0]) in (2.0, 3.0)
            assert not list(path.glob("checkpoints/*.tmp"))
            save(home, checkpoint.round + 1)  # and life goes on


@pytest.mark.parametrize(
    "name",
    [checkpoints.ADAPTER_WEIGHTS, checkpoints.NODE_STATE, checkpoints.TRAINER_STATE, checkpoints.MANIFEST],
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
        (tmp_path / "checkpoints" / "round-000001" / checkpoints.MANIFEST).unlink()
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


def test_a_full_disk_leaves_earlier_checkpoints_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    with open_home(tmp_path) as home:
        save(home, 1)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "sync", full)
            with pytest.raises(HomeError, match="No space left"):
                save(home, 2)
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
