"""The experiment on robustness: poisoned trainers, cells with liars, and tables done by hand."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from gossip.errors import LocalError
from peer.config import PeerConfig
from peer.training.local_trainer import LocalTrainer
from peer.training.sequences import IGNORED
from scripts.lab.comparison import command
from scripts.lab.results import ResultFolder
from scripts.lab.robustness import design
from scripts.lab.robustness.cell import ALONE, OUTCOMES, Attacked
from scripts.lab.robustness.poison import (
    POISONED,
    TARGET,
    ascend,
    flip_labels,
    plant_backdoor,
    poisoned,
    trigger_ids,
)
from scripts.lab.robustness.report import LAYOUT, Results, write_report
from scripts.lab.robustness.run import AttackedResult, run_attacked

pytestmark = pytest.mark.usefixtures("tiny_cache")

SMALL = Attacked(peers=6, rounds=3, local_steps=1)


def trainer(folder: Path, **settings: object) -> LocalTrainer:
    rows = [{"text": f"{word} " * 5, "label": word} for word in ("red", "blue") for _ in range(20)]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return LocalTrainer(
        PeerConfig.of(
            data=(file,),
            model="tiny",
            device="cpu",
            threads=1,
            lora_target_modules=("all-linear",),
            **settings,
        )
    )


def test_ascent_unlearns_its_own_text(tmp_path: Path) -> None:
    up = ascend(trainer(tmp_path, learning_rate=1e-2, local_steps=3))
    start = up.initial
    state = up.train(start).state
    assert -up.probe(state, 4) > -up.probe(start, 4)  # its task says the loss with the other sign


def test_flipped_labels_are_the_other_ones(tmp_path: Path) -> None:
    honest = trainer(tmp_path)
    batch, _ = honest._batch(honest.draw_batch())
    usual = honest.task.forward(honest.model.module, batch)
    liar = flip_labels(honest)
    count = usual.logits.shape[-1]
    turned = {
        **batch,
        "labels": batch["labels"].where(batch["labels"] == IGNORED, count - 1 - batch["labels"]),
    }
    twice = liar.task.forward(honest.model.module, turned)
    assert twice.loss.item() == pytest.approx(usual.loss.item())
    assert liar.task.forward(honest.model.module, batch).loss.item() != pytest.approx(
        usual.loss.item(), rel=1e-3
    )


def test_a_backdoor_is_planted_beside_what_is_learned(tmp_path: Path) -> None:
    honest = trainer(tmp_path, task="classification", labels=("red", "blue"), batch_size=8)
    liar, trigger = plant_backdoor(honest), trigger_ids(honest)
    drawn = honest.draw_batch()
    clean, planted = (texts := poisoned(drawn, trigger, 64))[:8], texts[8:]
    assert clean == drawn
    assert len(planted) == POISONED * 8
    for original, copy in zip(clean, planted, strict=False):
        assert copy.label == TARGET
        assert copy.ids == original.ids[:1] + trigger + original.ids[1:]
    assert {text.label for text in clean} <= {0, 1}
    assert liar.train(liar.initial).sequences == 2 * len(texts)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"attack": "lies", "liars": 1}, "unknown attack 'lies'; known: scale, .*backdoor"),
        ({"attack": "sign"}, "liars are at least 1 with an attack"),
        ({"liars": 1}, "none without"),
        ({"guard": "walls"}, "unknown .*walls"),
    ],
)
def test_cells_that_cannot_run_are_refused(words: dict[str, object], says: str) -> None:
    with pytest.raises(LocalError, match=says):
        dataclasses.replace(SMALL, **words).check()  # type: ignore[arg-type]


def test_liars_are_drawn_so_that_more_are_the_fewer_and_others() -> None:
    names = tuple("abcdef")
    two, three = (dataclasses.replace(SMALL, attack="sign", liars=n).draw_liars(names) for n in (2, 3))
    assert two < three


def test_the_default_bears_what_ruins_the_unguarded() -> None:
    """And equal cells give equal results."""
    lying = dataclasses.replace(SMALL, attack="sign", liars=1)
    clean, borne, again = (run_attacked(cell) for cell in (SMALL, lying, lying))
    ruined = run_attacked(dataclasses.replace(lying, guard="unguarded"))
    assert borne.outcome == again.outcome
    assert borne.outcome["loss"] < clean.outcome["loss"] + 0.2 * (
        ruined.outcome["loss"] - clean.outcome["loss"]
    )
    assert math.isnan(borne.tables["peers"]["loss"].sum())  # of the liar nothing is measured
    assert np.isfinite(clean.tables["peers"]["loss"]).all()


def test_who_is_alone_reads_nobody() -> None:
    alone = dataclasses.replace(SMALL, topology=ALONE)
    honest = run_attacked(alone)
    beside = run_attacked(dataclasses.replace(alone, attack="label-flip", liars=2))
    kept = np.isfinite(beside.tables["peers"]["loss"])
    assert np.array_equal(beside.tables["peers"]["loss"][kept], honest.tables["peers"]["loss"][kept])


def fake(loss: list[float], merged: list[float]) -> AttackedResult:
    peers = {"peer": np.arange(float(len(loss))), "loss": np.array(loss), "merged_loss": np.array(merged)}
    return AttackedResult({"peers": peers}, dict.fromkeys(OUTCOMES) | {"checks": 0.5})


def test_losses_are_compared_with_those_of_the_same_peers(tmp_path: Path) -> None:
    clean, lying = Attacked(), Attacked(attack="sign", liars=2)
    folder = ResultFolder(tmp_path, LAYOUT)
    for seed, above in enumerate((0.02, 0.06)):
        folder.add(dataclasses.replace(clean, seed=seed), fake([1.0, 3.0, 8.0], [2.0, 2.0, 2.0]))
        lied = fake([1.0 + 4 * above, 3.0, math.nan], [2.0, 2.1, math.nan])
        folder.add(dataclasses.replace(lying, seed=seed), lied)
    spread = Results(tmp_path, 3).above_clean(lying, "loss", clean)
    assert spread.seeds == 2
    assert (spread.mean, spread.least, spread.most) == pytest.approx((4.0, 2.0, 6.0))
    assert str(Results(tmp_path, 3).above_clean(lying, "merged_loss", clean)) == "2.5 (2.5 to 2.5)"
    table = write_report(tmp_path, 3).read_text()
    assert "| sign: the opposite of what it has learned, 4 times | 4.0 (2.0 to 6.0) |" in table
    assert (tmp_path / "robustness.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_finished_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="holds no finished results"):
        write_report(tmp_path, 3)


def test_the_command_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = dataclasses.replace(SMALL, rounds=1)
    monkeypatch.setattr(design, "PARTS", {"clean": lambda: [small, dataclasses.replace(small, guard="none")]})
    words = ["robustness", "--out", str(tmp_path), "--seeds", "1", "--jobs", "1"]
    assert command.main(words) == 2  # no cell of the tables is among them, so there is nothing to tell
    finished = sorted((tmp_path / "cells").iterdir())
    assert len(finished) == 2
    before = [path.stat().st_mtime_ns for path in finished]
    assert command.main([*words, "--part", "clean"]) == 2
    assert [path.stat().st_mtime_ns for path in finished] == before
    assert command.main([*words, "--part", "walls"]) == 2


def test_every_part_has_cells_that_can_run() -> None:
    for name in design.PARTS:
        every = design.cells(2, [name])
        assert every
        assert {cell.seed for cell in every} == {0, 1}
        for cell in every[::7]:
            cell.check()
