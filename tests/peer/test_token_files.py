"""A corpus as tokens on disk: the sequences, the split and the order are those of rows in memory, and memory is not."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from peer.config import PeerConfig
from peer.training import data, token_files
from peer.training.adapted_model import AdaptedModel
from peer.training.local_trainer import LocalTrainer
from peer.training.model_making import silent
from peer.training.readers import DataError
from peer.training.sequences import BatchSampler, Tokens, tokenize
from peer.training.tiny_model import byte_tokenizer
from peer.training.token_files import Blocks, Split, open_tokens

SPLIT = Split(0.2, 0)


def corpus(path: Path, rows: int, letters: int = 60) -> Path:
    path.write_text(
        "".join(json.dumps({"text": f"{row}: " + "word " * (letters // 5)}) + "\n" for row in range(rows))
    )
    return path


@pytest.mark.parametrize("max_length", [1, 2, 7, 64, 10_000])
def test_sequences_and_split_are_those_of_rows_in_memory(
    cache: Path, tmp_path: Path, max_length: int
) -> None:
    path, tokenizer = corpus(tmp_path / "a.jsonl", 41), byte_tokenizer()
    kept, held = data.split(data.load([path]).rows, SPLIT.held_out, SPLIT.seed, one_by_one=True)
    tokens = open_tokens(path, tokenizer, SPLIT, silent)
    assert (tokens.rows, tokens.rows_held_out) == (len(kept), len(held))
    assert tokens.train.dtype == np.uint16
    for rows, part in ((kept, tokens.train), (held, tokens.held_out)):
        wanted, _ = tokenize(rows, tokenizer, max_length)
        blocks = Blocks([part], max_length)
        assert list(blocks) == wanted
        assert blocks[:2] == wanted[:2]


def test_blocks_of_several_files_are_one_after_another_and_end() -> None:
    files = [np.arange(10, dtype=np.uint16), np.empty(0, np.uint16), np.arange(100, 125, dtype=np.uint32)]
    blocks = Blocks(files, 10)
    assert [list(block.ids) for block in blocks] == [list(range(10)), [*range(100, 110)], [*range(110, 120)]]
    assert Blocks(files, 9)[1] == Tokens(blocks[1].ids[:9])
    with pytest.raises(IndexError):
        blocks[3]
    assert not Blocks([], 10)


def test_at_least_one_row_is_on_either_side_and_equal_rows_on_one(cache: Path, tmp_path: Path) -> None:
    path = corpus(tmp_path / "few.jsonl", 3)
    for share in (1e-9, 1 - 1e-9):
        tokens = open_tokens(path, byte_tokenizer(), Split(share, 0), silent)
        assert {tokens.rows, tokens.rows_held_out} == {1, 2}
    path.write_text('{"text": "the same"}\n' * 5)
    with pytest.raises(DataError, match="all usable rows are one"):
        open_tokens(path, byte_tokenizer(), SPLIT, silent)
    path.write_text('{"text": "the same"}\n' * 5 + '{"text": "another"}\n')
    tokens = open_tokens(path, byte_tokenizer(), SPLIT, silent)
    assert {tokens.rows, tokens.rows_held_out} == {1, 5}


def test_tokens_are_made_once_for_its_owner_alone_and_anew_for_other_text(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, made = corpus(tmp_path / "a.jsonl", 20), []
    make = token_files._make
    monkeypatch.setattr(token_files, "_make", lambda *given: (made.append(given[0]), make(*given)))
    first = open_tokens(path, byte_tokenizer(), SPLIT, silent)
    moved = path.rename(tmp_path / "b.jsonl")
    assert np.array_equal(open_tokens(moved, byte_tokenizer(), SPLIT, silent).train, first.train)
    assert len(made) == 1, "the text decides, not its name"
    corpus(moved, 21)
    assert len(open_tokens(moved, byte_tokenizer(), SPLIT, silent).train) > len(first.train)
    assert len(made) == 2
    folders = [folder for folder in (cache / "tokens").iterdir() if folder.is_dir()]
    assert {folder.stat().st_mode & 0o777 for folder in folders} == {0o700}


def test_bad_rows_are_told_and_rows_that_are_no_text_are_refused(cache: Path, tmp_path: Path) -> None:
    path = corpus(tmp_path / "a.jsonl", 20)
    path.write_text(path.read_text() + '{"text": ""}\n{\n')
    tokens = open_tokens(path, byte_tokenizer(), SPLIT, silent)
    assert (tokens.bad, tokens.rows + tokens.rows_held_out) == (2, 20)
    assert tokens.shown[0] == f'{path}:21: "text" is empty'
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(DataError, match="learns plain text, and this is a row of prompt/completion"):
        open_tokens(path, byte_tokenizer(), SPLIT, silent)


def test_memory_does_not_grow_with_the_corpus(cache: Path, tmp_path: Path) -> None:
    """Python's own memory at its height, while tokens are made and read: 16 times the text, not twice that."""
    tokenizer, peaks = byte_tokenizer(), []
    for rows in (500, 8_000):
        path = corpus(tmp_path / f"{rows}.jsonl", rows, letters=400)
        tracemalloc.start()
        blocks = Blocks([open_tokens(path, tokenizer, SPLIT, silent).train], 128)
        sampler = BatchSampler(len(blocks), 8, 0)
        for _ in range(20):
            assert all(len(blocks[index].ids) == 128 for index in sampler.draw())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0]


@pytest.fixture(scope="module")
def nano(quick: Callable[..., PeerConfig], tmp_path_factory: pytest.TempPathFactory) -> AdaptedModel:
    path = corpus(tmp_path_factory.mktemp("text") / "a.jsonl", 60)
    config = PeerConfig.of(
        data=(path,), from_scratch="nano", device="cpu", threads=1, local_steps=3, batch_size=2, max_length=32,
        learning_rate=2e-3, schedule="cosine", warmup_steps=7,
    )  # fmt: skip
    return AdaptedModel(config)


def test_a_model_from_scratch_resumes_to_the_bit_across_its_warm_up(
    nano: AdaptedModel, tmp_path: Path
) -> None:
    from peer.training.schedules import Position

    def rounds(resumed_at: set[int]) -> list[str]:
        trainer, state, digests = LocalTrainer(nano.config, nano), nano.initial, []
        for round in range(5):
            if round in resumed_at:  # 3 and 6 steps: in the midst of the warm-up, and 9: behind it
                trainer.save(tmp_path / "state")
                trainer = LocalTrainer(nano.config, nano)
                trainer.load(tmp_path / "state")
            state = trainer.train(state, position=Position(round, 5)).state
            digests.append(state.digest())
        return digests

    assert rounds({1, 2, 3, 4}) == rounds(set())


def test_canaries_are_planted_though_rows_are_then_in_memory(nano: AdaptedModel, tmp_path: Path) -> None:
    streamed = LocalTrainer(nano.config, nano)
    planted = LocalTrainer(nano.config.with_options(canaries=3, home=tmp_path), nano)
    assert (streamed.shard.canaries, planted.shard.canaries) == (0, 3)
    assert planted.shard.rows == streamed.shard.rows + 3
    assert planted.shard.rows_held_out == streamed.shard.rows_held_out
    assert list(planted.shard.held_out.values()) == list(streamed.shard.held_out.values())
