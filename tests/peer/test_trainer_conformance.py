"""What every trainer promises (``peer/training/trainers.py``): ours, and one of the tests that one line makes known."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import pkgutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import trio

from gossip.adapter import AdapterState
from gossip.errors import LocalError
from gossip.manifest import first_difference
from peer.cli import main
from peer.config import OPTIONS, PeerConfig
from peer.options import Role
from peer.run_manifest import join_line, manifest_of
from peer.run_plan import plan_run
from peer.training import trainers
from peer.training.frames import PREFIX_BYTES, RowLosses, Step, Trained, decode_header
from peer.training.process import TrainerDied, TrainerProcess
from peer.training.schedules import Position
from peer.training.trainers import TRAINERS, MakeTrainer, MeasuresRows, Trainer
from peer.training.worker import Server

HERE = Path(__file__).parent
PLUG_IN = "least-squares"
Configure = Callable[..., PeerConfig]


@pytest.fixture(scope="session")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of the plug-in: y = W x + noise, with W of rank 2."""
    draw = np.random.default_rng(0)
    weight = draw.standard_normal((3, 2)) @ draw.standard_normal((2, 5))
    x = draw.standard_normal((60, 5))
    y = x @ weight.T + 0.01 * draw.standard_normal((60, 3))
    file = tmp_path_factory.mktemp("numbers") / "rows.jsonl"
    pairs = zip(x.tolist(), y.tolist(), strict=True)
    file.write_text("".join(json.dumps({"x": inputs, "y": outputs}) + "\n" for inputs, outputs in pairs))
    return file


@pytest.fixture(params=[*TRAINERS, PLUG_IN])
def configure(
    request: pytest.FixtureRequest, quick: Configure, numbers: Path, monkeypatch: pytest.MonkeyPatch
) -> Configure:
    """Return what makes a configuration for the trainer under test."""
    name: str = request.param
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(HERE)
    if name == "grpo":
        model = request.getfixturevalue("half_taught")
        agent = {
            "task": "agent",
            "tasks": ("wants_two:WantsTwo",),
            "data": (),
            "model": str(model),
            "eval_blocks_max": 64,
        }
        agent |= {"learning_rate": 1e-2, "max_length": 32}
        return lambda **options: quick(**{"trainer": name, **agent, **options})
    if name != PLUG_IN:
        return lambda **options: quick(trainer=name, **options)
    monkeypatch.setitem(TRAINERS, PLUG_IN, "least_squares:make_trainer")  # the one line
    settings = {"data": (numbers,), "trainer": name, "lora_r": 2, "learning_rate": 0.05, "local_steps": 3}
    return lambda **options: PeerConfig.of(**{**settings, **options})


def trainer_of(config: PeerConfig) -> Trainer:
    """Return the trainer in this process, where looking at it costs no pipe."""
    make_trainer: MakeTrainer = pkgutil.resolve_name(trainers.entry_point(config.training.trainer))
    return make_trainer(config, lambda stage, done: None)


def scattered(state: AdapterState) -> AdapterState:
    """No tensor is zero any more, so that every gradient is there to be seen."""
    noise = torch.randn(state.spec.size, generator=torch.Generator().manual_seed(3))
    return AdapterState(state.spec, state.flat + 0.01 * noise)


def test_it_learns_and_another_process_goes_on_to_the_bit(configure: Configure, tmp_path: Path) -> None:
    config, saved = configure(), tmp_path / "trainer"

    async def scenario() -> list[Trained]:
        process, ready = await TrainerProcess.start(config)
        steps: list[Step] = []
        first = await process.train(ready.initial, 1, saved, steps.append)
        assert [(step.step, step.steps) for step in steps] == [(1, 3), (2, 3), (3, 3)]
        assert (first.steps, first.tokens > 0, first.sequences > 0) == (3, True, True)
        before, after = [(await process.evaluate(state)).own for state in (ready.initial, first.state)]
        assert after < before
        second = await process.train(first.state, 2, tmp_path / "removed" / "trainer")
        assert (first.unsaved, "No such file" in second.unsaved) == ("", True), "it says so, and lives on"
        await process.stop()

        resumed, again = await TrainerProcess.start(config, saved)
        assert again.manifest == ready.manifest
        assert torch.equal(again.initial.flat, ready.initial.flat)
        third = await resumed.train(first.state, 2)
        await resumed.stop()
        return [first, second, third]

    first, second, third = trio.run(scenario)
    assert third.state.digest() == second.state.digest() != first.state.digest()
    assert third.loss == second.loss
    here = trainer_of(config)
    start = here.ready(0.0).initial
    kept = start.digest()
    assert here.train(start).state.digest() == first.state.digest(), "equal seeds, equal adapters"
    assert start.digest() == kept, "what is given is not written into"
    without = trainer_of(config).train(first.state)
    assert without.state.digest() != second.state.digest(), "what was saved must matter"


def test_the_process_is_told_where_in_the_run_it_is(configure: Configure) -> None:
    config = configure(schedule="linear", rounds=4)

    async def scenario() -> tuple[AdapterState, Trained]:
        process, ready = await TrainerProcess.start(config)
        trained = await process.train(ready.initial, 2)
        await process.stop()
        return ready.initial, trained

    start, trained = trio.run(scenario)
    here = trainer_of(config).train(start, position=Position(2, 4)).state
    assert here.digest() == trained.state.digest()
    first = trainer_of(config).train(start, position=Position(0, 4)).state
    assert (first.flat - start.flat).norm() > 1.5 * (here.flat - start.flat).norm() > 0


def test_a_trainer_that_follows_no_schedule_is_served(numbers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
    config = PeerConfig.of(
        data=(numbers,), trainer="least_squares:make_of_one_rate", lora_r=2, schedule="linear"
    )

    async def scenario() -> list[Trained]:
        process, ready = await TrainerProcess.start(config)
        trained = await process.train(ready.initial, 2)
        await process.stop()
        return [trained]

    (trained,) = trio.run(scenario)
    assert trained.steps == config.training.local_steps


def test_it_says_all_that_a_run_wants_to_know(configure: Configure) -> None:
    config = configure()
    ready = trainer_of(config).ready(1.5)
    assert ready.seconds == 1.5
    assert ready.manifest["adapter_digest"] == ready.initial.digest()
    assert ready.manifest["adapter_spec"] == ready.initial.spec.fingerprint
    assert ready.rows >= 0  # 0 = questions without end
    assert ready.rows_held_out > 0
    assert ready.data_report
    assert ready.export.weights.endswith(".safetensors")
    manifest = manifest_of(plan_run(config), ready, plan_run(config).methods(ready.initial.spec))
    assert len(manifest.fingerprint) > 0
    other = trainer_of(config.with_options(seed=1)).ready(0.0)
    assert other.initial.digest() != ready.initial.digest(), "the run's seed draws the first adapter"


@pytest.mark.parametrize("trainable", ["a", "b"])
def test_only_the_part_asked_for_moves(configure: Configure, trainable: trainers.TrainableFactors) -> None:
    trainer = trainer_of(configure(weight_decay=0.1))
    start = scattered(trainer.ready(0.0).initial)
    correction = torch.full((start.spec.size,), 0.001)
    trained = dict(trainer.train(start, trainable, correction).state.tensors())
    for name, before in start.tensors():
        moved = not torch.equal(trained[name], before)
        assert moved == trainers.selects(trainable, name), name
    everything = dict(trainer.train(start).state.tensors())
    assert all(not torch.equal(everything[name], before) for name, before in start.tensors())


def test_a_correction_is_added_after_every_step(configure: Configure) -> None:
    """With hardly any step size, three steps are three times the correction."""
    trainer = trainer_of(configure(learning_rate=1e-12))
    start = trainer.ready(0.0).initial
    correction = torch.linspace(-0.01, 0.01, start.spec.size)
    moved = trainer.train(start, correction=correction).state.flat - start.flat
    torch.testing.assert_close(moved, 3 * correction, rtol=0, atol=1e-6)
    with pytest.raises(LocalError, match="an adapter needs"):
        trainer.train(start, correction=correction[1:])


def test_measuring_leaves_no_trace(configure: Configure) -> None:
    measured, other = trainer_of(configure()), trainer_of(configure())
    start = measured.ready(0.0).initial
    evaluated = measured.evaluate(start)
    assert measured.probe(start, 10**6) == pytest.approx(evaluated.own, rel=1e-5)
    assert math.isfinite(measured.probe(start, 1))
    first = measured.train(start).state
    assert measured.evaluate(start) == evaluated
    kept = first.digest()
    measured.evaluate(first)
    assert first.digest() == kept
    assert first.digest() == other.train(start).state.digest()
    assert measured.train(first).state.digest() == other.train(first).state.digest()


def test_single_rows_are_measured_or_it_says_that_it_cannot(configure: Configure) -> None:
    """Answered by the training process's server, here without a process."""
    config = configure()
    if config.training.trainer == "local-steps":
        config = config.with_options(audit=True)
    trainer = trainer_of(config)
    start = trainer.ready(0.0).initial
    answers = io.BytesIO()
    server = Server(answers, 0.0)
    named = trainers.entry_point(config.training.trainer)
    server.handle(
        {"kind": "start", "trainer": named, "config": config.to_json(), "resume": None}, bytearray()
    )
    answers.truncate(0)
    answers.seek(0)
    server.handle({"kind": "row_losses"}, bytearray(start.flat.numpy().tobytes()))
    answer = decode_header(answers.getvalue()[PREFIX_BYTES:])
    if not isinstance(trainer, MeasuresRows):
        assert config.training.trainer != "local-steps"
        assert answer["losses"] is None
        return
    losses = RowLosses(**{rows: tuple(values) for rows, values in answer["losses"].items()})
    assert losses == trainer.row_losses(start)
    assert losses.members
    assert losses.held_out
    assert not losses.canaries


def test_what_the_user_can_mend_reaches_the_parent(configure: Configure, tmp_path: Path) -> None:
    nothing = configure(data=(tmp_path / "none.jsonl",))
    with pytest.raises(LocalError) as here:
        trainer_of(nothing)
    with pytest.raises(LocalError) as there:
        trio.run(TrainerProcess.start, nothing)
    assert (str(there.value), there.value.exit_code) == (str(here.value), here.value.exit_code)
    assert "none.jsonl" in str(there.value)

    (tmp_path / "torn").write_bytes(b"{")
    trainer = trainer_of(configure())
    for path in (tmp_path / "torn", tmp_path / "missing"):
        with pytest.raises(LocalError, match="cannot resume"):
            trainer.load(path)
    with pytest.raises(LocalError, match="cannot write"):
        trainer.save(tmp_path / "no folder" / "trainer")


def test_a_failure_in_training_and_a_death_are_told_apart(configure: Configure, tmp_path: Path) -> None:
    async def scenario() -> None:
        process, ready = await TrainerProcess.start(configure(local_steps=1000))
        broken = AdapterState(ready.initial.spec, torch.full_like(ready.initial.flat, torch.nan))
        with pytest.raises(LocalError, match="learning_rate"):
            await process.train(broken, 1)
        with pytest.raises(TrainerDied):
            await process.evaluate(ready.initial)
        await process.stop()

        process, ready = await TrainerProcess.start(configure(local_steps=1000))
        with pytest.raises(TrainerDied, match="SIGKILL"):
            await process.train(ready.initial, 1, on_step=lambda step: os.kill(process.pid, signal.SIGKILL))
        await process.stop()

    trio.run(scenario)


# -- who chooses


def test_an_unknown_trainer_is_refused_with_the_known_ones(
    quick: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    config = quick(trainer="nobody")
    for start in (lambda: plan_run(config), lambda: trio.run(TrainerProcess.start, config)):
        with pytest.raises(LocalError, match="unknown --trainer 'nobody'; known: local-steps"):
            start()
    with pytest.raises(SystemExit):
        main(["run", "--data", str(config.data.data[0]), "--trainer", "nobody"])
    printed = capsys.readouterr()
    assert "known: local-steps" in printed.out + printed.err


def test_only_the_local_configuration_chooses(quick: Configure) -> None:
    """Neither the manifest nor the line with which a friend joins speaks of a trainer."""
    assert OPTIONS["trainer"].roles == Role.BOUNDED
    ours, other = quick(learning_rate=0.0), quick(learning_rate=0.0, trainer=PLUG_IN)
    address = ("/ip4/1.2.3.4/tcp/5/p2p/x",)
    assert join_line(other, address) == join_line(ours, address)
    ready = trainer_of(ours).ready(0.0)
    plan = plan_run(ours)
    methods = plan.methods(ready.initial.spec)
    manifests = [manifest_of(one, ready, methods) for one in (plan, dataclasses.replace(plan, config=other))]
    assert manifests[0].fingerprint == manifests[1].fingerprint
    assert first_difference(manifests[0].fields(), manifests[1].fields()) is None
