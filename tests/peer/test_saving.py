"""A disk that refuses in the middle of a run: training goes on, and nothing that is told is untrue."""

from __future__ import annotations

import dataclasses
import errno
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trio
from faulty_disk import FaultyDisk, installed
from light_peers import SPEC, Quadratic, Running, memory
from safetensors.torch import load_file
from test_runtime import flat

from gossip.adapter import AdapterState
from peer import saving
from peer.checkpoints import HomeError, HomeGone, open_home
from peer.journal_events import Finished, Note, RoundDone
from peer.training.frames import Export, OnStep, Trained

ROUNDS = 8
Happening = Callable[[], None]


class Eventful(Quadratic):
    """A training process at the beginning of some of whose rounds something happens."""

    def __init__(self, happenings: Mapping[int, Happening], unsaved: Mapping[int, str]) -> None:
        super().__init__(1.0)
        self._happenings, self._unsaved = happenings, unsaved

    async def train(
        self, state: AdapterState, round: int, save_to: Path | None, on_step: OnStep, *settings: Any
    ) -> Trained:
        if round in self._happenings:
            self._happenings[round]()
        trained = await super().train(state, round, None, on_step, *settings)
        unsaved = self._unsaved.get(round, "")
        try:
            if save_to is not None and not unsaved:
                save_to.write_bytes(b"state")
        except OSError as error:
            unsaved = str(error)
        return dataclasses.replace(trained, unsaved=unsaved)


@dataclass(frozen=True)
class Lived:
    """What became of a peer that was alone on a network."""

    running: Running
    errors: list[BaseException]

    @property
    def saved(self) -> str:
        """A letter for each round that was told: s for saved, u for unsaved."""
        return "".join("s" if event.saved else "u" for event in self.running.events(RoundDone))

    @property
    def notes(self) -> str:
        """All notes, in their order."""
        return "\n".join(event.text for event in self.running.events(Note))


def live(
    path: Path,
    happenings: Mapping[int, Happening] | None = None,
    unsaved: Mapping[int, str] | None = None,
    *,
    every: int = 1,
) -> Lived:
    """Let a peer live in the home ``path``, saving each so many rounds."""

    async def main() -> Lived:
        running = Running(1, home, 1.0, rounds=ROUNDS, checkpoint_every=every)
        running.trainer = Eventful(happenings or {}, unsaved or {})
        with trio.fail_after(60):
            try:
                await running.run(memory()(running.key))
            except BaseExceptionGroup as group:
                return Lived(running, flat(group))
        return Lived(running, [])

    with open_home(path) as home:
        return trio.run(main)


def rounds_on_disk(path: Path) -> tuple[int, float]:
    """Return the round of the newest checkpoint, and the value in the exported adapter."""
    with open_home(path) as home:
        checkpoint, complaints = home.newest()
        assert complaints == []
        exported = load_file(home.adapter / "adapter_model.safetensors")["x"]
        return checkpoint.round if checkpoint else 0, float(exported[0])


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FaultyDisk]:
    (tmp_path / "home").mkdir()
    with installed(FaultyDisk(tmp_path)) as disk:
        yield disk


# It recovers in the middle of round 5: too late for a checkpoint whose folder could not even be begun.
@pytest.mark.parametrize(
    ("code", "told"),
    [
        (errno.ENOSPC, "ssuuuuss"),
        (errno.EROFS, "ssuuuuss"),
        (errno.EIO, "ssuuuuss"),
        (errno.EMFILE, "ssuuusss"),
    ],
)
def test_training_goes_on_over_a_disk_that_refuses_and_is_saved_when_it_recovers(
    tmp_path: Path, disk: FaultyDisk, code: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "RETRY_S_MAX", 0.0)
    lived = live(tmp_path / "home", {2: lambda: disk.refuse(code), 5: disk.recover})
    assert lived.errors == []
    assert lived.saved == told
    refusals = lived.notes.count("Training goes on unsaved (the last complete checkpoint is of round 2)")
    assert refusals == told.count("u")
    assert f"the checkpoint of round {3 + refusals} is saved; all is well again" in lived.notes
    assert lived.running.events(Finished)[0].complete
    assert rounds_on_disk(tmp_path / "home") == (ROUNDS, pytest.approx(1 - 0.5**ROUNDS))


def test_a_training_process_that_cannot_save_costs_its_round_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "RETRY_S_MAX", 0.0)
    lived = live(tmp_path, unsaved={3: "cannot write trainer.safetensors: No space left"})
    assert lived.saved == "sssussss"
    assert "cannot write trainer.safetensors: No space left. Training goes on unsaved" in lived.notes
    assert rounds_on_disk(tmp_path)[0] == ROUNDS


def test_the_next_try_waits_and_the_end_saves_what_is_left(
    tmp_path: Path, disk: FaultyDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "trio", SimpleNamespace(**{**vars(trio), "current_time": lambda: 7.0}))
    lived = live(tmp_path / "home", {3: lambda: disk.refuse(errno.ENOSPC), 4: disk.recover})
    assert lived.errors == []
    assert lived.saved == "sssuuuuu"  # on a clock that stands still no second try is due
    assert lived.notes.count("the next try is in 1 s") == 1
    assert rounds_on_disk(tmp_path / "home") == (ROUNDS, pytest.approx(1 - 0.5**ROUNDS))


@pytest.mark.parametrize("rounds_saved", [0, 2])
def test_who_cannot_save_for_long_ends_with_what_to_do(
    tmp_path: Path, disk: FaultyDisk, rounds_saved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "RETRY_S_MAX", 0.0)
    monkeypatch.setattr(saving, "REFUSALS_MAX", 4)
    (error,) = live(tmp_path / "home", {rounds_saved: lambda: disk.refuse(errno.ENOSPC)}).errors
    assert isinstance(error, HomeError)
    assert error.exit_code == 7
    assert "No space left on device: free some space" in str(error)
    assert "tried 4 times" in str(error)
    assert ("checkpoint is of round 2" if rounds_saved else "No checkpoint is complete") in str(error)
    disk.recover()
    assert live(tmp_path / "home").errors == []
    assert rounds_on_disk(tmp_path / "home")[0] == ROUNDS


def test_a_disk_that_still_refuses_at_the_end_is_an_error_though_all_rounds_are_done(
    tmp_path: Path, disk: FaultyDisk
) -> None:
    lived = live(tmp_path / "home", {ROUNDS - 1: lambda: disk.refuse(errno.ENOSPC)})
    assert [type(error) for error in lived.errors] == [HomeError]
    assert lived.running.events(Finished) == []
    disk.recover()
    assert live(tmp_path / "home").saved == "s"


def test_a_home_removed_under_a_running_peer_is_no_bug(tmp_path: Path) -> None:
    errors = live(tmp_path / "home", {3: lambda: shutil.rmtree(tmp_path / "home")}).errors
    assert {type(error) for error in errors} == {HomeGone}
    assert errors[0].exit_code == 7  # type: ignore[attr-defined]
    assert "start with another --home" in str(errors[0])


def test_checkpoints_removed_under_a_running_peer_are_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "RETRY_S_MAX", 0.0)
    lived = live(tmp_path, {3: lambda: shutil.rmtree(tmp_path / "checkpoints")})
    assert lived.errors == []
    assert rounds_on_disk(tmp_path)[0] == ROUNDS


def test_killed_between_the_last_checkpoint_and_the_export_a_restart_exports(tmp_path: Path) -> None:
    """The restart has no round left to do: nothing but its start and end can mend the adapter."""
    live(tmp_path)
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    newest, config = weights.read_bytes(), (tmp_path / "adapter" / "adapter_config.json").read_text()
    with open_home(tmp_path) as home:
        stale = AdapterState(SPEC, torch.zeros(4))
        assert home.export(home.adapter, stale, Export(weights.name, {"adapter_config.json": config}))
    assert weights.read_bytes() != newest
    again = live(tmp_path)
    assert again.saved == ""
    assert weights.read_bytes() == newest


def test_an_adapter_folder_that_cannot_be_written_costs_no_checkpoint_and_is_told_once(
    tmp_path: Path,
) -> None:
    adapter = tmp_path / "adapter"
    weights = adapter / "adapter_model.safetensors"

    def block() -> None:
        weights.unlink()
        weights.mkdir()

    lived = live(tmp_path, {2: block, 6: weights.rmdir})
    assert lived.errors == []
    assert lived.saved == "s" * ROUNDS
    assert lived.notes.count("cannot write the adapter to") == 1
    assert lived.notes.count(f"{adapter} is up to date again") == 1
    assert rounds_on_disk(tmp_path) == (ROUNDS, pytest.approx(1 - 0.5**ROUNDS))


def test_each_third_round_is_saved_and_the_last_and_a_killed_peer_loses_two(tmp_path: Path) -> None:
    class Killed(BaseException):
        """Nothing of ours runs after it, as after kill -9."""

    def kill() -> None:
        raise Killed

    lived = live(tmp_path / "whole", every=3)
    assert lived.saved == "uusuusus"
    assert rounds_on_disk(tmp_path / "whole")[0] == ROUNDS
    killed = live(tmp_path / "killed", {5: kill}, every=3)
    assert [type(error) for error in killed.errors] == [Killed]
    assert rounds_on_disk(tmp_path / "killed")[0] == 3
    again = live(tmp_path / "killed", every=3)
    assert again.saved == "uusus"
    assert rounds_on_disk(tmp_path / "killed") == (ROUNDS, pytest.approx(1 - 0.5**ROUNDS))


def test_a_refused_checkpoint_is_tried_again_in_the_next_round_not_in_the_next_turn(
    tmp_path: Path, disk: FaultyDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "RETRY_S_MAX", 0.0)
    lived = live(tmp_path / "home", {2: lambda: disk.refuse(errno.ENOSPC), 3: disk.recover}, every=3)
    assert lived.errors == []
    assert lived.saved == "uuuussus", (
        "refused in rounds 3 and 4, saved in 5, which is no turn, and in 6, which is"
    )
