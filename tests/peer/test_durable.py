"""Whatever fails, wherever: after a restart all that was reported saved is there, and the peer goes on.

Every story is told once on a good disk to count its calls, and then again for each of them: with the power gone there,
and with each error that a disk can give there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from faulty_disk import FOR_EVER, SURVIVAL, FaultyDisk, PowerOff, installed
from safetensors.torch import load_file

from gossip.adapter import AdapterSpec, AdapterState
from gossip.errors import LocalError
from gossip.settings import NodeSnapshot
from peer.checkpoint_files import TRAINER_STATE
from peer.checkpoints import PEERS, Home, open_home
from peer.incarnation import FILE, begin_life
from peer.network.group import SECRET_FILE, secret_of
from peer.network.identity import KEY_FILE, load_or_create_identity, peer_id
from peer.training.frames import Export

SPEC = AdapterSpec((("base.lora_A.weight", (2, 3)), ("base.lora_B.weight", (4,))))
ANNA, BERT = (f"/ip4/10.0.0.{number}/tcp/4001/p2p/{peer_id(bytes([number]) * 32)}" for number in (1, 2))
TOKENIZER = {"tokenizer.json": b"{}" * 400, "merges.txt": b"a b\n"}
Reported = dict[str, object]
"""What the story reported as saved before it ended."""


def lora(base: Path) -> Export:
    return Export("adapter_model.safetensors", {"adapter_config.json": "{}"})


def full(base: Path) -> Export:
    """A whole model goes with the tokenizer of its base."""
    return Export("model.safetensors", {"config.json": "{}"}, tuple(str(base / name) for name in TOKENIZER))


def state(round: int) -> AdapterState:
    return AdapterState(SPEC, torch.full((10,), float(round)))


def trainer_saves(path: Path, content: bytes) -> None:
    """Do what a careless trainer does, in a process of its own: the file is there, but nobody has synced it."""
    path.write_bytes(content)


def save(home: Home, round: int, export: Export, reported: Reported) -> None:
    trainer_saves(home.begin(round) / TRAINER_STATE, b"optimizer %d" % round)
    home.commit(state(round), NodeSnapshot(round, round, [3, [1], None], [0.5]), {"seed": 1}, export, 2)
    reported["round"] = round
    home.export(home.adapter, state(round), export)
    reported["exported"] = round


@dataclass(frozen=True)
class Story:
    """What happens on a good disk before, what is tried on a bad one, and what must be true after a restart."""

    before: Callable[[Path, Export], None]
    tried: Callable[[Path, Export, Reported], None]
    after: Callable[[Path, Export, Reported], None]
    export: Callable[[Path], Export] = lora


def two_rounds(path: Path, export: Export) -> None:
    with open_home(path) as home:
        save(home, 1, export, {})
        save(home, 2, export, {})


def nothing(path: Path, export: Export) -> None:
    path.mkdir()


def third_round(path: Path, export: Export, reported: Reported) -> None:
    with open_home(path) as home:
        save(home, 3, export, reported)


def first_round(path: Path, export: Export, reported: Reported) -> None:
    with open_home(path) as home:
        save(home, 1, export, reported)


def it_goes_on(path: Path, export: Export, reported: Reported) -> None:
    with open_home(path) as home:
        checkpoint, complaints = home.newest()
        assert complaints == []
        round = checkpoint.round if checkpoint else 0
        assert round >= reported.get("round", reported.get("before", 0))  # type: ignore[operator]
        if checkpoint:
            assert torch.equal(checkpoint.state.flat, state(round).flat)
            assert checkpoint.trainer_state.read_bytes() == b"optimizer %d" % round
            stale = home.export(home.adapter, checkpoint.state, export)
            assert not stale or reported.get("exported") != round
            exported_is(home.adapter, round, export)
        save(home, round + 1, export, {})
        exported_is(home.adapter, round + 1, export)
        left_over = [found for found in path.rglob("*") if found.suffix in (".tmp", ".partial", ".gone")]
        assert left_over == []


def exported_is(folder: Path, round: int, export: Export) -> None:
    names = {Path(source).name for source in export.copies}
    assert {found.name for found in folder.iterdir()} == {*export.files, export.weights, *names}
    assert torch.equal(AdapterState.from_tensors(load_file(folder / export.weights)).flat, state(round).flat)
    assert all((folder / name).read_bytes() == TOKENIZER[name] for name in names)


def two_rounds_and_litter(path: Path, export: Export) -> None:
    two_rounds(path, export)
    with open_home(path) as home:
        trainer_saves(home.begin(3) / TRAINER_STATE, b"half of a ro")
    for folder in (path, path / "adapter"):
        (folder / ".peers.json.0123.partial").write_bytes(b"[")
    (path / ".adapter.partial").mkdir()
    (path / ".adapter.partial" / "config.json").write_text("{")
    shutil.copytree(path / "checkpoints" / "round-000001", path / "checkpoints" / "round-000000.gone")


def only_opened(path: Path, export: Export, reported: Reported) -> None:
    reported["before"] = 2
    with open_home(path):
        pass


def two_rounds_the_second_damaged(path: Path, export: Export) -> None:
    two_rounds(path, export)
    (path / "checkpoints" / "round-000002" / TRAINER_STATE).write_bytes(b"optimizer 1")


def put_aside(path: Path, export: Export, reported: Reported) -> None:
    with open_home(path) as home:
        assert home.newest()[0].round == 1  # type: ignore[union-attr]


def the_first_is_found(path: Path, export: Export, reported: Reported) -> None:
    with open_home(path) as home:
        assert home.newest()[0].round == 1  # type: ignore[union-attr]
    it_goes_on(path, export, {"before": 1})


def first_start(path: Path, export: Export, reported: Reported) -> None:
    with open_home(path):
        reported["key"] = load_or_create_identity(path)
        reported["secret"] = secret_of(path, is_open=False, begins=True)
        reported["life"] = begin_life(path)


def who_we_are(path: Path, export: Export, reported: Reported) -> None:
    with open_home(path):
        key, secret = load_or_create_identity(path), secret_of(path, is_open=False, begins=True)
        assert key == reported.get("key", key)
        assert secret == reported.get("secret", secret)
        assert begin_life(path) > reported.get("life", 0)  # type: ignore[operator]
        assert {found.name for found in path.iterdir()} == {
            "lock",
            "checkpoints",
            KEY_FILE,
            SECRET_FILE,
            FILE,
        }


def a_peer_is_known(path: Path, export: Export) -> None:
    with open_home(path) as home:
        home.remember_peers([ANNA])


def another_is_met(path: Path, export: Export, reported: Reported) -> None:
    with open_home(path) as home:
        home.remember_peers([ANNA, BERT])
        reported["peers"] = (ANNA, BERT)


def peers_are_remembered(path: Path, export: Export, reported: Reported) -> None:
    with open_home(path) as home:
        found, complaints = home.remembered_peers()
    assert complaints == []
    assert found == reported.get("peers", found)
    assert found in {(ANNA,), (ANNA, BERT)}
    assert {entry.name for entry in path.iterdir()} == {"lock", "checkpoints", PEERS}


STORIES = {
    "first round of a whole model": Story(nothing, first_round, it_goes_on, full),
    "third round": Story(two_rounds, third_round, it_goes_on),
    "clearing up": Story(two_rounds_and_litter, only_opened, it_goes_on),
    "putting aside": Story(two_rounds_the_second_damaged, put_aside, the_first_is_found),
    "identity and secret": Story(nothing, first_start, who_we_are),
    "remembered peers": Story(a_peer_is_known, another_is_met, peers_are_remembered),
}


@pytest.fixture(params=STORIES)
def story(request: pytest.FixtureRequest) -> Story:
    return STORIES[request.param]


class Stage:
    """Where a story is told again and again.

    Attributes:
        calls: what it asks of a good disk.
    """

    def __init__(self, folder: Path, story: Story) -> None:
        self._folder, self._story = folder, story
        (folder / "base").mkdir()
        for name, content in TOKENIZER.items():
            (folder / "base" / name).write_bytes(content)
        self.export = story.export(folder / "base")
        story.before(folder / "prepared", self.export)
        with installed(FaultyDisk(self.home())) as disk:
            story.tried(folder / "home", self.export, {})
        self.calls = disk.calls
        story.after(folder / "home", self.export, {})

    def home(self) -> Path:
        """Return the home as it was before."""
        home = self._folder / "home"
        shutil.rmtree(home, ignore_errors=True)
        return Path(shutil.copytree(self._folder / "prepared", home))


@pytest.fixture
def stage(tmp_path: Path, story: Story) -> Stage:
    return Stage(tmp_path, story)


def test_the_power_goes_at_every_call_and_nothing_that_was_reported_saved_is_lost(
    tmp_path: Path, story: Story, stage: Stage
) -> None:
    assert len(stage.calls) > 2
    for number, call in enumerate(stage.calls):
        disk = FaultyDisk(stage.home(), fail_at=number)
        reported: Reported = {}
        with installed(disk), pytest.raises(PowerOff):
            story.tried(tmp_path / "home", stage.export, reported)
        for name, survival in SURVIVAL.items():
            found = tmp_path / "found"
            disk.after_power_off(found, survival())
            try:
                with installed(FaultyDisk(found)):  # a good one, quicker than a real one
                    story.after(found, stage.export, reported)
            except Exception as error:
                raise AssertionError(f"power off at call {number} ({call}), survives: {name}") from error
            shutil.rmtree(found)


@pytest.mark.parametrize(
    ("code", "times"),
    [(errno.ENOSPC, FOR_EVER), (errno.EROFS, FOR_EVER), (errno.EIO, 1), (errno.EMFILE, 1)],
    ids=["full for ever", "read-only for ever", "fails once", "too many files once"],
)
def test_an_error_at_any_call_is_a_refusal_and_loses_nothing(
    tmp_path: Path, story: Story, stage: Stage, code: int, times: int
) -> None:
    for number, call in enumerate(stage.calls):
        reported: Reported = {}
        with installed(FaultyDisk(stage.home(), number, code, times)), contextlib.suppress(LocalError):
            story.tried(tmp_path / "home", stage.export, reported)
        try:
            with installed(FaultyDisk(tmp_path / "home")):
                story.after(tmp_path / "home", stage.export, reported)
        except Exception as error:
            raise AssertionError(f"{os.strerror(code)} at call {number} ({call})") from error


def test_processes_killed_with_9_at_random_instants_lose_nothing_they_reported() -> None:
    """A few; many more are a matter of ``python tests/peer/killed_savers.py KILLS SEED``."""
    script = Path(__file__).with_name("killed_savers.py")
    ended = subprocess.run(
        [sys.executable, str(script), "10", "1"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
