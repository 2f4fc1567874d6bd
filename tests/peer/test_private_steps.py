"""Steps with differential privacy: each row's gradient by itself, what is added, and the ledger that comes first."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from gossip.adapter import AdapterState
from gossip.errors import LocalError
from peer.config import PeerConfig
from peer.privacy.accounting import epsilon, noise_multiplier_for
from peer.privacy.charge import Charge
from peer.privacy.ledger import Ledger
from peer.privacy.ledger_file import UnitDigests
from peer.training import private_steps
from peer.training.adapted_model import AdaptedModel
from peer.training.local_trainer import LocalTrainer
from peer.training.memory import OutOfMemory
from peer.training.per_sample import Recorder
from peer.training.private_steps import Part, PrivateSteps
from peer.training.secret_noise import SecretNoise
from peer.training.task import Output
from peer.training.units import Unit

Quick = Callable[..., PeerConfig]
KEY = bytes(range(32))
LINES = [
    "short",
    "a somewhat longer line of text",
    "third",
    "and one that is so long that it has to be cut into several sequences, as the model takes only sixty-four tokens "
    "at a time, and each of them belongs to the same row",
    *(f"line number {index} of a file" for index in range(20)),
]


@pytest.fixture
def private(quick: Quick, tmp_path: Path) -> Quick:
    """Return a configuration with a promise about some lines, and a home of its own."""
    file = tmp_path / "lines.jsonl"
    file.write_text("".join(json.dumps({"text": line, "author": line[:5]}) + "\n" for line in LINES))
    return lambda **options: quick(
        **{"data": (file,), "dp_epsilon": 8.0, "home": tmp_path / "home", "batch_size": 4, **options}
    )


@pytest.fixture(scope="module")
def model(quick: Quick) -> AdaptedModel:
    """The tiny model with LoRA, lent to most trainers here."""
    return AdaptedModel(quick())


def scattered(state: AdapterState) -> AdapterState:
    """No tensor is zero any more, so that every gradient is there to be seen."""
    generator = torch.Generator().manual_seed(3)
    return AdapterState(state.spec, state.flat + 0.05 * torch.randn(state.spec.size, generator=generator))


def steps_of(trainer: LocalTrainer) -> PrivateSteps:
    assert isinstance(trainer._steps, PrivateSteps)
    return trainer._steps


def by_micro_batches(trainer: LocalTrainer, units: Sequence[Unit]) -> Tensor:
    """Return float32[U, P]: the gradient of each unit's mean loss, each sequence by itself, as torch computes it."""
    rows = []
    for unit in units:
        total = torch.zeros(trainer.spec.size)
        for sequence in unit.sequences:
            batch, targets = trainer._batch([sequence])
            trainer.task.forward(trainer.model.module, batch).loss.backward()
            flat = torch.cat([parameter.grad.flatten() for parameter in trainer.model.parameters.values()])
            total += flat * targets / sum(unit.targets)
            trainer.model.module.zero_grad(set_to_none=True)
        rows.append(total)
    return torch.stack(rows)


def parts_of(units: Sequence[Unit]) -> list[Part]:
    return [Part(unit.sequences, sum(unit.targets)) for unit in units]


def gradients(trainer: LocalTrainer, units: Sequence[Unit]) -> Tensor:
    return steps_of(trainer)._gradients(parts_of(units), list(trainer.model.parameters))[0]


def relative(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"adapter": "rslora", "lora_target_modules": ("q_proj", "down_proj"), "lora_layers": "1"},
        {"adapter": "lora-xs", "lora_r": 4},
        {"dp_unit": "author"},
    ],
    ids=["lora", "rslora", "lora-xs", "authors"],
)
def test_gradients_of_units_are_those_of_micro_batches(private: Quick, settings: dict[str, Any]) -> None:
    """Of 24 lines, of which one gives several sequences; in float32, to 1e-5. Seen: 3e-7."""
    trainer = LocalTrainer(private(**settings))
    trainer.model.put(scattered(trainer.initial))
    units = trainer.shard.units
    assert max(len(unit.sequences) for unit in units) > 1
    found, wanted = gradients(trainer, units), by_micro_batches(trainer, units)
    assert relative(found, wanted) < 1e-5
    assert all(relative(one, other) < 1e-4 for one, other in zip(found, wanted, strict=True))
    assert all(parameter.grad is None for parameter in trainer.model.parameters.values())


def test_gradients_of_a_new_head_are_those_of_micro_batches(quick: Quick, tmp_path: Path) -> None:
    file = tmp_path / "labeled.jsonl"
    rows = [{"text": f"text {index} " * (index % 3 + 1), "label": "ab"[index % 2]} for index in range(12)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    labeled = {"data": (file,), "task": "classification", "labels": ("a", "b"), "home": tmp_path / "home"}
    trainer = LocalTrainer(quick(dp_epsilon=8.0, **labeled))
    trainer.model.put(scattered(trainer.initial))
    found, wanted = gradients(trainer, trainer.shard.units), by_micro_batches(trainer, trainer.shard.units)
    assert relative(found, wanted) < 1e-5
    assert any("score" in name for name in trainer.model.parameters), "the head is among them"


def test_gradients_add_up_with_dropout_and_checkpointing(private: Quick) -> None:
    """The same masks: the sum over sequences is what torch makes of the whole batch."""
    trainer = LocalTrainer(private(lora_dropout=0.3))
    trainer.model.put(scattered(trainer.initial))
    module, units = trainer.model.module, trainer.shard.units[4:12]
    module.train()
    for checkpointing in (False, True):
        if checkpointing:
            module.enable_input_require_grads()
            module.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(5)
        each = gradients(trainer, units)
        weights = torch.tensor([float(sum(unit.targets)) for unit in units])
        torch.manual_seed(5)
        batch, targets = trainer._batch([unit.sequences[0] for unit in units])
        trainer.task.forward(module, batch).loss.backward()
        whole = torch.cat([parameter.grad.flatten() for parameter in trainer.model.parameters.values()])
        module.zero_grad(set_to_none=True)
        assert relative(weights @ each / targets, whole) < 1e-5


def test_a_step_is_the_clipped_sum_and_the_noise_over_the_expected_number(
    private: Quick, model: AdaptedModel
) -> None:
    """SGD: x' = x - lr (sum of clipped gradients + sigma C z) / (q n), all of it computed here once more."""
    options = {"local_optimizer": "sgd", "learning_rate": 0.5, "local_steps": 1, "dp_clip": 0.02}
    trainer = LocalTrainer(private(**options), model)
    steps = steps_of(trainer)
    steps._noise = SecretNoise(KEY)
    start = scattered(trainer.initial)
    trained = trainer.train(start)
    same, units = SecretNoise(KEY), trainer.shard.units
    drawn = [units[number] for number in same.chosen(len(units), 4 / len(units))]
    noise = torch.from_numpy(same.normal(trainer.spec.size))
    trainer.model.put(start)
    each = by_micro_batches(trainer, drawn)
    norms = each.norm(dim=1, keepdim=True)
    assert norms.max() > 0.02, "something is clipped"
    clipped = (each * (0.02 / norms).clamp(max=1.0)).sum(0)
    expected = start.flat - 0.5 * (clipped + noise * 0.02 * steps._budget.noise_multiplier) / 4
    assert trained.sequences == sum(len(unit.sequences) for unit in drawn)
    torch.testing.assert_close(trained.state.flat, expected.float(), rtol=0, atol=2e-6)


def test_one_row_more_moves_the_sum_by_at_most_the_clip(private: Quick, model: AdaptedModel) -> None:
    """Neighboring data sets, each row in its turn: also one whose gradient is huge, and one whose is no number."""
    trainer = LocalTrainer(private(dp_clip=0.05), model)
    steps, units, named = steps_of(trainer), trainer.shard.units, trainer.model.parameters
    trainer.model.put(scattered(trainer.initial))
    gradients_of = steps._gradients

    def harsh(parts: Sequence[Part], names: Sequence[str]) -> tuple[Tensor, float]:
        each, loss = gradients_of(parts, names)
        for index, part in enumerate(parts):
            if part.sequences is units[0].sequences:
                each[index] *= 1e10
            if part.sequences is units[1].sequences:
                each[index, ::7] = torch.nan
        return each, loss

    steps._gradients = harsh  # type: ignore[method-assign]
    whole = steps._clipped_sum(parts_of(units), named).gradient
    assert whole.isfinite().all()
    moved = [
        (whole - steps._clipped_sum(parts_of([*units[:one], *units[one + 1 :]]), named).gradient).norm()
        for one in range(8)
    ]
    assert max(moved) <= 0.05
    assert moved[1] < 1e-6, "what is no number counts as nothing"
    assert min(moved[0], *moved[2:]) > 0.01


def test_draws_in_pieces_give_the_same_sum(
    private: Quick, model: AdaptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = LocalTrainer(private(), model)
    steps, named = steps_of(trainer), trainer.model.parameters
    trainer.model.put(scattered(trainer.initial))
    parts = parts_of(trainer.shard.units[:11])
    whole = steps._clipped_sum(parts, named)
    gradients_of, tried = steps._gradients, []

    def short_of_memory(some: Sequence[Part], names: Sequence[str]) -> tuple[Tensor, float]:
        tried.append(len(some))
        if len(some) > 3:
            raise torch.OutOfMemoryError("no")
        return gradients_of(some, names)

    monkeypatch.setattr(steps, "_gradients", short_of_memory)
    pieces = steps._sum_that_fits(parts, named)
    torch.testing.assert_close(pieces.gradient, whole.gradient, rtol=1e-4, atol=1e-6)
    assert pieces[2:] == whole[2:]
    assert (sum(tried[-6:]), tried[:2]) == (11, [11, 3])
    monkeypatch.setattr(private_steps, "VALUES_MAX", 1)
    tried.clear()
    steps._sum_that_fits(parts, named)
    assert tried == [1] * 11
    monkeypatch.setattr(steps, "_gradients", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    with pytest.raises(OutOfMemory, match="lower batch_size"):
        steps._sum_that_fits(parts, named)


def test_a_draw_of_nobody_is_a_step_of_noise(private: Quick, model: AdaptedModel) -> None:
    trainer = LocalTrainer(private(local_steps=1), model)
    steps = steps_of(trainer)
    steps._draw = list  # type: ignore[method-assign]
    trained = trainer.train(trainer.initial)
    assert (trained.steps, trained.sequences, trained.stopped) == (1, 0, "")
    assert not torch.equal(trained.state.flat, trainer.initial.flat)


def test_rows_that_touch_one_another_are_refused(private: Quick, model: AdaptedModel) -> None:
    trainer = LocalTrainer(private(), model)
    steps = steps_of(trainer)
    forward = trainer.task.forward

    def touching(module: Any, batch: Any) -> Output:
        output = forward(module, batch)
        output.loss = output.loss + 1e4 * output.logits.mean(0).square().mean()
        return output

    steps._learner = replace(steps._learner, task=replace(trainer.task, forward=touching))
    with pytest.raises(LocalError, match="depends on the other rows"):
        steps.notes()


def test_modules_without_a_rule_are_refused(quick: Quick, private: Quick) -> None:
    for kind in ("dora", "full", "prompt-tuning"):
        with pytest.raises(LocalError, match=r"no rule for .*lora-xs"):
            LocalTrainer(private(adapter=kind))
    linear = torch.nn.Linear(3, 3, bias=False)
    recorder = Recorder(linear, {"w": linear.weight})
    with recorder.recording(2):
        (linear.weight.sum() + linear(torch.ones(2, 3)).sum()).backward()
        with pytest.raises(LocalError, match="used outside of its module"):
            recorder.gradients(["w"])
    linear.zero_grad()
    with recorder.recording(2), pytest.raises(LocalError, match="3 rows where the batch has 2"):
        linear(torch.ones(3, 3)).sum().backward()
    assert "forward" not in vars(linear)


# -- the ledger


def digests(ledger: Ledger, trainer: LocalTrainer) -> UnitDigests:
    return ledger.digests([row for unit in trainer.shard.units for row in unit.rows], "lines.jsonl")


def spent(trainer: LocalTrainer) -> list[Charge]:
    assert trainer.config.run.home is not None
    with Ledger.open(trainer.config.run.home) as ledger:
        return ledger.spent(digests(ledger, trainer))


def test_a_round_is_on_the_disk_before_its_first_step(
    private: Quick, model: AdaptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever kills us between the two, and then in the round that is taken again: charged twice, never less."""
    trainer = LocalTrainer(private(local_steps=2, rounds=3), model)
    steps = steps_of(trainer)
    seen: list[int] = []

    def killed() -> list[Part]:
        seen.append(sum(charge.steps for charge in spent(trainer)))
        raise KeyboardInterrupt

    monkeypatch.setattr(steps, "_draw", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(trainer.initial)
    assert seen == [2]
    again = LocalTrainer(trainer.config, model)
    again.train(trainer.initial)
    assert sum(charge.steps for charge in spent(again)) == 4
    before, after = steps._budget.noise_multiplier, steps_of(again)._budget.noise_multiplier
    assert after > before * 1.05, "what is lost must be made up for"


def test_the_noise_of_a_run_spends_the_budget_and_then_training_stops(
    private: Quick, model: AdaptedModel, tmp_path: Path
) -> None:
    trainer = LocalTrainer(private(rounds=3, local_steps=2), model)
    assert "epsilon 8 at delta 1e-05" in trainer.ready(0.0).notes[0]
    state = trainer.initial
    for _ in range(3):
        trained = trainer.train(state)
        assert trained.stopped == ""
        state = trained.state
    assert 7.9 < epsilon(spent(trainer), 1e-5) <= 8.0
    trainer.save(tmp_path / "saved")
    longer = LocalTrainer(private(rounds=5, local_steps=2), model)
    longer.load(tmp_path / "saved")
    assert not any(note.startswith("differential privacy of") for note in longer.ready(0.0).notes)
    for _ in range(2):
        trained = longer.train(state)
        assert "goes on mixing" in trained.stopped
        assert (trained.steps, trained.sequences) == (0, 0)
        assert torch.equal(trained.state.flat, state.flat)
    assert sum(charge.steps for charge in spent(trainer)) == 6
    more = LocalTrainer(private(rounds=5, local_steps=2, dp_epsilon=12.0), model)
    more.load(tmp_path / "saved")
    assert "of which 8 was spent before" in more.ready(0.0).notes[0]
    assert more.train(state).steps == 2


def test_what_affords_noise_alone_is_not_spent(private: Quick, model: AdaptedModel) -> None:
    trainer = LocalTrainer(private(rounds=3, local_steps=2), model)
    assert trainer.config.run.home is not None
    rate = 4 / len(trainer.shard.units)
    noise = noise_multiplier_for(7.95, 1e-5, rate, 6)
    with Ledger.open(trainer.config.run.home) as ledger:
        ledger.charge(digests(ledger, trainer), Charge(noise, rate, 6), "before")
    assert 7.9 < epsilon(spent(trainer), 1e-5) < 8.0
    longer = LocalTrainer(private(rounds=5000, local_steps=2), model)
    assert "goes on mixing" in longer.train(longer.initial).stopped
    assert trainer.train(trainer.initial).steps == 2, "a few more steps are affordable"


def test_a_restart_goes_on_with_what_is_left(private: Quick, model: AdaptedModel, tmp_path: Path) -> None:
    trainer = LocalTrainer(private(rounds=4, local_steps=2), model)
    state = trainer.train(trainer.train(trainer.initial).state).state
    trainer.save(tmp_path / "saved")
    resumed = LocalTrainer(trainer.config, model)
    resumed.load(tmp_path / "saved")
    for _ in range(2):
        assert resumed.train(state).stopped == ""
    noises = [steps_of(one)._budget.noise_multiplier for one in (trainer, resumed)]
    assert noises[1] == pytest.approx(noises[0], rel=2e-3)
    assert epsilon(spent(trainer), 1e-5) <= 8.0


def test_secrets_are_new_in_every_life_and_never_saved(
    private: Quick, model: AdaptedModel, tmp_path: Path
) -> None:
    one, other = (LocalTrainer(private(home=tmp_path / str(index)), model) for index in range(2))
    states = [trainer.train(trainer.initial).state for trainer in (one, other)]
    assert states[0].digest() != states[1].digest(), "one seed, yet neither rows nor noise are the same"
    one.save(tmp_path / "saved")
    with safe_open(tmp_path / "saved", framework="pt") as saved:
        kinds = {name.split(".")[0] for name in saved.keys()}  # noqa: SIM118 - no mapping
        written = json.loads(saved.metadata()["trainer"])
    assert kinds == {"optimizer", "generator"}
    assert written.keys() == {"adapter_spec", "learning_rate", "sampler", "private_rounds"}


def test_what_was_trained_without_a_promise_gets_none(
    private: Quick, model: AdaptedModel, tmp_path: Path
) -> None:
    plain = LocalTrainer(private(dp_epsilon=0.0, adapter="lora"), model)
    kept = LocalTrainer(private(), model)
    plain.save(tmp_path / "plain")
    kept.save(tmp_path / "kept")
    many = {"count": len(kept.shard.train)}
    assert json.loads(_metadata(tmp_path / "kept")["trainer"])["sampler"].items() >= many.items()
    with pytest.raises(LocalError, match="had none, and is in the adapter"):
        steps_of(kept).restore(tmp_path / "plain", json.loads(_metadata(tmp_path / "plain")["trainer"]))
    with pytest.raises(LocalError, match="Give --dp-epsilon again"):
        plain._steps.restore(tmp_path / "kept", json.loads(_metadata(tmp_path / "kept")["trainer"]))


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as saved:
        metadata: dict[str, str] = saved.metadata()
        return metadata
