"""Whose data a private step protects, the numbers it draws, and what it does not go together with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from gossip.errors import LocalError
from peer.config import PeerConfig
from peer.run_plan import plan_run
from peer.training.adapted_model import AdaptedModel
from peer.training.data import load, split
from peer.training.local_trainer import LocalTrainer
from peer.training.private_steps import SEQUENCES_MAX, PrivateSteps
from peer.training.readers import DataError
from peer.training.secret_noise import SecretNoise
from peer.training.units import Unit

Quick = Callable[..., PeerConfig]
KEY = bytes(range(32))


@pytest.fixture(scope="module")
def model(quick: Quick) -> AdaptedModel:
    return AdaptedModel(quick())


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_noise_is_normal_and_its_key_decides() -> None:
    """Kolmogorov-Smirnov on a million values, standard deviation within 3 standard errors, no value twice."""
    count = 1_000_000
    values = SecretNoise(KEY).normal(count)
    assert stats.kstest(values, "norm").pvalue > 0.01
    assert abs(values.std() - 1) < 3 / np.sqrt(2 * count)
    assert abs(values.mean()) < 3 / np.sqrt(count)
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 3 / np.sqrt(count)
    assert len(np.unique(values)) == count
    assert not np.array_equal(SecretNoise().normal(8), SecretNoise().normal(8))


def test_everybody_is_drawn_by_himself_with_the_same_probability() -> None:
    noise, units, draws, rate = SecretNoise(KEY), 200, 2000, 0.08
    taken = np.zeros((draws, units))
    for draw in taken:
        draw[noise.chosen(units, rate)] = 1
    error = np.sqrt(rate * (1 - rate) / draws)
    assert abs(taken.mean() - rate) < 3 * error / np.sqrt(units)
    assert np.abs(taken.mean(0) - rate).max() < 4.5 * error, "each of the 200"
    sizes = taken.sum(1)
    assert sizes.var() == pytest.approx(units * rate * (1 - rate), rel=0.1), "sizes vary as binomial ones do"
    assert noise.chosen(units, 1.0) == list(range(units))
    assert sorted({tuple(noise.some(3, 2)) for _ in range(50)}) == [(0, 1), (0, 2), (1, 2)]


def units_of(config: PeerConfig, model: AdaptedModel) -> list[Unit]:
    return list(LocalTrainer(config, model).shard.units)


def test_a_row_is_a_unit_whatever_its_length_and_equal_rows_are_one(
    quick: Quick, model: AdaptedModel, tmp_path: Path
) -> None:
    texts = ["tiny", "twice", "twice", "long " * 60, *(f"more {index}" for index in range(30))]
    file = write(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    units = units_of(quick(data=(file,), dp_epsilon=8.0, home=tmp_path, held_out=0.02), model)
    assert len({unit.rows for unit in units}) == len(units) >= 31
    assert all(len(unit.rows) == 1 and not unit.owner for unit in units)
    (long,) = (unit for unit in units if b"long" in unit.rows[0])
    assert [len(sequence.ids) for sequence in long.sequences] == [64] * 4 + [45]
    assert long.targets == (63, 63, 63, 63, 44)


def test_all_rows_of_an_author_are_one_unit_on_one_side(
    quick: Quick, model: AdaptedModel, tmp_path: Path
) -> None:
    rows = [{"text": f"text {index} of many", "author": index % 10} for index in range(100)]
    files = (write(tmp_path / "a.jsonl", rows[:80]), write(tmp_path / "b.jsonl", rows[80:]))
    config = quick(data=files, dp_epsilon=8.0, dp_unit="author", home=tmp_path / "home", held_out=0.2)
    trainer = LocalTrainer(config, model)
    units = list(trainer.shard.units)
    owners = {unit.owner for unit in units}
    assert len(owners) == len(units)
    assert 6 <= len(units) <= 10
    held = split(load(files, owner_field="author").rows, 0.2, 0, one_by_one=True)[1]
    assert not {row.owner.encode() for row in held} & owners, "in one file and in the other on the same side"
    assert trainer.shard.rows_held_out == len(held) == 10 * (10 - len(units))
    assert sum(map(len, trainer.shard.held_out.values())) > 0
    steps = trainer._steps
    assert isinstance(steps, PrivateSteps)
    steps._budget.sampling_rate = 1.0
    drawn = steps._draw()
    assert [len(part.sequences) for part in drawn] == [SEQUENCES_MAX] * len(units)
    for part, unit in zip(drawn, units, strict=True):
        assert set(map(id, part.sequences)) <= set(map(id, unit.sequences))


def test_rows_of_nobody_are_refused_by_file_and_line(
    quick: Quick, model: AdaptedModel, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = [{"text": f"text {index}", "author": "ann"} for index in range(20)]
    rows[6]["author"], rows[7]["author"] = " ", None
    del rows[8]["author"]
    file = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=r"3 rows have no 'author'.*a\.jsonl:7, .*a\.jsonl:8, .*a\.jsonl:9"):
        LocalTrainer(quick(data=(file,), dp_epsilon=8.0, dp_unit="author", home=tmp_path), model)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"adapter": "dora"}, "no rule with --adapter dora: use --adapter lora, rslora or lora-xs"),
        ({"adapter": "full"}, "no rule with --adapter full"),
        ({"trainer": "somebody:else"}, "use local-steps, or no --dp-epsilon"),
        ({"task": "classification", "labels": ("a", "b"), "private_head": True}, "leave --private-head away"),
        ({"factors": "share-a"}, "use --factors both or ffa"),
        ({"topology": "d-cliques:2"}, "use --topology epidemic:4"),
        ({"dp_epsilon": 0.0, "dp_unit": "author"}, "give --dp-epsilon 8"),
    ],
)
def test_what_would_break_a_promise_is_refused_with_a_way_out(
    options: dict[str, Any], complaint: str
) -> None:
    labels = {"task": "classification", "labels": ("a", "b")} if "topology" in options else {}
    with pytest.raises(LocalError, match=complaint):
        plan_run(PeerConfig.of(**{"dp_epsilon": 8.0, **labels, **options}))


def test_advice_is_given_in_numbers(quick: Quick, model: AdaptedModel, tmp_path: Path) -> None:
    rows = [{"text": f"text {index}"} for index in range(120)]
    config = quick(
        data=(write(tmp_path / "a.jsonl", rows),),
        dp_epsilon=8.0,
        dp_delta=0.02,
        home=tmp_path,
        learning_rate=2e-3,
    )
    trainer = LocalTrainer(config, model)
    units, notes = len(trainer.shard.units), "\n".join(trainer.ready(0.0).notes)
    assert 95 <= units <= 118
    assert f"{units} rows are fewer than 300" in notes
    assert "--learning-rate 0.02" in notes
    assert "--batch-size 64" in notes
    assert f"delta 0.02 is not below 1 in {units}" in notes
    with pytest.raises(LocalError, match="give --home"):
        LocalTrainer(config.with_options(home=None), model)
