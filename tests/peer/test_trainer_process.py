"""The training process seen from its parent: it works, it says why it cannot, it dies when it should and is missed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
import trio
import trio.testing

from gossip.adapter import AdapterState
from gossip.errors import LocalError
from gossip.rollouts import Received, Rollout
from peer.config import PeerConfig
from peer.training import process
from peer.training.frames import Step
from peer.training.local_trainer import LocalTrainer
from peer.training.process import TrainerDied, TrainerProcess

Quick = Callable[..., PeerConfig]
ROOT = Path(__file__).resolve().parents[2]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def gone(pid: int) -> None:
    """Return once a process that is not our child has ended."""
    with trio.fail_after(20):
        while is_alive(pid):
            await trio.lowlevel.checkpoint()


def test_a_round_in_the_process_is_the_round_in_this_one_and_resumes(quick: Quick, tmp_path: Path) -> None:
    saved = tmp_path / "trainer.safetensors"
    steps: list[Step] = []
    stages: list[str] = []

    async def scenario() -> tuple[AdapterState, ...]:
        trainer, ready = await TrainerProcess.start(
            quick(), on_progress=lambda stage, done: stages.append(stage)
        )
        assert (ready.device, ready.model_name, ready.rows + ready.rows_held_out) == ("cpu", "tiny", 113)
        assert "german.jsonl: 113 rows of text" in ready.data_report
        assert ready.initial.digest() == ready.manifest["adapter_digest"]
        first = await trainer.train(ready.initial, 1, saved, steps.append)
        assert (await trainer.evaluate(first.state)).own < (await trainer.evaluate(ready.initial)).own
        second = await trainer.train(first.state, 2)
        await trainer.stop()
        assert not is_alive(trainer.pid)
        await trainer.stop()  # a second time is harmless

        resumed, again = await TrainerProcess.start(quick(), saved)
        assert again.manifest == ready.manifest
        third = await resumed.train(first.state, 2)
        await resumed.stop()
        return first.state, second.state, third.state

    first, second, third = trio.run(scenario)
    assert [step.step for step in steps] == [1, 2, 3]
    assert "load" in stages
    assert third.digest() == second.digest() != first.digest()


def test_trainable_factors_correction_and_frozen_factors_pass_the_pipe(quick: Quick) -> None:
    config = quick(adapter="lora-xs", lora_r=4)
    here = LocalTrainer(config)
    correction = torch.linspace(-0.1, 0.1, here.spec.size)

    async def scenario() -> list[AdapterState]:
        trainer, ready = await TrainerProcess.start(config)
        assert ready.export.weights == "adapter_model.safetensors"
        assert ready.export.files == here.model.export.files
        assert ready.export.files.keys() == {"adapter_config.json"}
        assert ready.export.frozen is not None
        assert here.model.export.frozen is not None
        assert ready.export.frozen.spec == here.model.export.frozen.spec
        assert ready.export.frozen.digest() == here.model.export.frozen.digest()
        corrected = await trainer.train(ready.initial, 1, trainable="b", correction=correction)
        without = await trainer.train(corrected.state, 2)
        with pytest.raises(LocalError, match="part 'a'"):
            await trainer.train(ready.initial, 3, trainable="a")
        await trainer.stop()
        return [corrected.state, without.state]

    first, second = trio.run(scenario)
    assert first.digest() == here.train(here.initial, "b", correction).state.digest()
    assert second.digest() == here.train(first).state.digest()


def test_a_dead_or_stopped_or_cancelled_process_is_reported_and_leaves_nothing(quick: Quick) -> None:
    async def scenario() -> None:
        trainer, ready = await TrainerProcess.start(quick(local_steps=1000))
        os.kill(trainer.pid, signal.SIGINT)  # Ctrl-C is the parent's to judge
        await trainer.evaluate(ready.initial)
        with pytest.raises(TrainerDied, match="SIGKILL"):
            await trainer.train(ready.initial, 1, on_step=lambda step: os.kill(trainer.pid, signal.SIGKILL))
        assert not is_alive(trainer.pid)
        with pytest.raises(TrainerDied):
            await trainer.evaluate(ready.initial)
        await trainer.stop()

        trainer, ready = await TrainerProcess.start(quick(local_steps=1000))
        with trio.CancelScope() as scope:
            await trainer.train(ready.initial, 1, on_step=lambda step: scope.cancel())
        assert scope.cancelled_caught
        assert not is_alive(trainer.pid)

    trio.run(scenario)


def test_what_the_child_refuses_arrives_with_its_exit_code(quick: Quick, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "good"}\n{"text": "good"}\n{"text":\n')
    with pytest.raises(LocalError, match=r"bad.jsonl:3: malformed JSON") as raised:
        trio.run(TrainerProcess.start, quick(data=(path,), bad_rows="refuse"))
    assert raised.value.exit_code == 6


def test_a_crash_is_reported_with_the_childs_last_words(
    quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(PeerConfig, "to_json", lambda self: "no json")
    with pytest.raises(TrainerDied, match="exit code 1") as raised:
        trio.run(TrainerProcess.start, quick())
    assert "JSONDecodeError" in raised.value.reason


def test_words_without_end_fill_no_disk(quick: Quick, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that warned at each step filled the disk for temporary files. What comes after a cut is kept."""
    monkeypatch.setattr(process, "STDERR_BYTES_MAX", 1000)

    async def scenario() -> None:
        trainer, ready = await TrainerProcess.start(quick())
        write = "import sys; sys.stderr.write('x' * 5000)"
        subprocess.run([sys.executable, "-c", write], stderr=trainer._stderr, check=True)
        await trainer.evaluate(ready.initial)
        subprocess.run(
            [sys.executable, "-c", "import sys; sys.exit('bye')"], stderr=trainer._stderr, check=False
        )
        assert os.fstat(trainer._stderr.fileno()).st_size < 100
        os.kill(trainer.pid, signal.SIGKILL)
        with pytest.raises(TrainerDied, match="bye"):
            await trainer.evaluate(ready.initial)

    trio.run(scenario)


def test_the_child_ends_when_its_parent_is_killed(quick: Quick, cache: Path) -> None:
    code = f"""
        import sys, trio
        from peer.config import PeerConfig
        from peer.training.process import TrainerProcess

        async def scenario():
            config = PeerConfig.from_json({quick(local_steps=100_000).to_json()!r})
            trainer, ready = await TrainerProcess.start(config)
            await trainer.train(ready.initial, 1, on_step=lambda step: print(trainer.pid, flush=True))

        trio.run(scenario)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    trio.run(gone, pid)


def test_a_process_that_is_stopped_for_a_while_is_waited_for(quick: Quick) -> None:
    """However long it is (nothing here looks at a clock), it goes on where it stood, and so does who waits for it."""

    async def scenario() -> tuple[AdapterState, AdapterState]:
        trainer, ready = await TrainerProcess.start(quick(local_steps=20))
        seen: list[Step] = []
        results: list[AdapterState] = []

        async def train() -> None:
            trained = await trainer.train(ready.initial, 1, on_step=stop_once)
            results.append(trained.state)

        def stop_once(step: Step) -> None:
            if not seen:
                os.kill(trainer.pid, signal.SIGSTOP)
            seen.append(step)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(train)
            while not seen or psutil.Process(trainer.pid).status() != psutil.STATUS_STOPPED:
                await trio.sleep(0.01)
            await trio.testing.wait_all_tasks_blocked(0.1)
            assert not results
            os.kill(trainer.pid, signal.SIGCONT)
        await trainer.stop()

        other, ready = await TrainerProcess.start(quick(local_steps=20))
        undisturbed = await other.train(ready.initial, 1)
        os.kill(other.pid, signal.SIGSTOP)
        await other.stop()  # which a stopped process cannot refuse
        assert not is_alive(other.pid)
        return results[0], undisturbed.state

    stopped, undisturbed = trio.run(scenario)
    assert stopped.digest() == undisturbed.digest()


def test_rollouts_pass_the_pipe_to_trainers_that_take_them(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"x": [{i}, 1], "y": [{2 * i}]}}\n' for i in range(10)))
    came = (
        Received("p1", 3, Rollout("own", 0, 2**53 - 1, "ä\x1b[2J")),
        Received("p2", 2, Rollout("own", 1, 0, "")),
    )

    async def scenario(trainer: str, rollouts: tuple[Received, ...]) -> tuple[bool, tuple[Rollout, ...]]:
        config = PeerConfig.of(data=(rows,), trainer=f"tests.peer.least_squares:{trainer}", local_steps=2)
        child, ready = await TrainerProcess.start(config)
        trained = await child.train(ready.initial, 0, rollouts=rollouts)
        await child.stop()
        return ready.takes_rollouts, trained.rollouts

    takes, (first, second, *told) = trio.run(scenario, "make_talkative", came)
    assert (takes, first.task, second.index) == (True, "own", 1)
    assert told == [Rollout("came", 3, 2**53 - 1, "p1: ä\x1b[2J"), Rollout("came", 2, 0, "p2: ")]
    assert trio.run(scenario, "make_trainer", came) == (False, ())
