"""Real adapters of a tiny language model in the simulator: they learn, repeatably, from text that is shared out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from gossip.errors import LocalError
from scripts.lab import corpus
from scripts.lab.convergence.cell import Cell
from scripts.lab.convergence.run import run_cell
from scripts.lab.convergence.tiny import share_texts

CELL = Cell(kind="tiny", topology="complete", peers=3, rounds=3, local_steps=2, codec="int8", seed=1)


pytestmark = pytest.mark.usefixtures("tiny_cache")


def test_adapters_learn_and_equal_specs_give_equal_losses() -> None:
    first, again = run_cell(CELL), run_cell(CELL)
    assert np.array_equal(first.rounds["loss"], again.rounds["loss"])
    assert first.outcome == again.outcome
    assert first.rounds["loss"][-1] < first.rounds["loss"][0] - 0.1
    assert first.rounds["peers"].tolist() == [3.0] * 4
    assert np.ptp(np.diff(first.rounds["bytes_per_peer"])) == 0  # two adapters in every round
    assert first.rounds["consensus_distance"][-1] > 0  # of what int8 left


def test_text_is_shared_out_and_none_of_it_measured(tmp_path: Path) -> None:
    def rows(file: Path) -> list[str]:
        return [json.loads(line)["text"] for line in file.read_text().splitlines()]

    cell = dataclasses.replace(CELL, peers=6)
    texts = share_texts(cell, tmp_path)
    languages = [set(rows(file)) for file in corpus.write(tmp_path / "again", seed=cell.seed).values()]
    for index, file in enumerate(texts.train):
        assert set(rows(file)) <= languages[index % 4]
    first, fifth = (set(rows(texts.train[index])) for index in (0, 4))
    assert not first & fifth  # both Spanish, no row twice
    mixed = share_texts(dataclasses.replace(cell, heterogeneity=0.0), tmp_path / "mixed")
    assert len(rows(mixed.train[0])) == len(rows(texts.train[0]))
    assert all(language & set(rows(mixed.train[0])) for language in languages)


def test_too_many_peers_are_refused() -> None:
    with pytest.raises(LocalError, match="at most 64 peers, not 65"):
        run_cell(dataclasses.replace(CELL, peers=65))
