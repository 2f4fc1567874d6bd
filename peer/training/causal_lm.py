"""The task of continuing text: every token is predicted from those before it. It has no head of its own."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor

from peer.config import PeerConfig
from peer.training import sequences, task
from peer.training.data import Row
from peer.training.libraries import BaseModel, Tokenizer
from peer.training.readers import BadRow
from peer.training.sequences import IGNORED, Tokens
from peer.training.task import Task


def _tokenize(
    rows: Sequence[Row], tokenizer: Tokenizer, config: PeerConfig
) -> tuple[list[Tokens], list[BadRow]]:
    """Tokenize all of each row; of a chat its last answer alone is learned where the configuration says so."""
    max_length = config.training.max_length
    if not config.data.answers_only:
        return sequences.tokenize(rows, tokenizer, max_length)
    answers = [_answer_of(row) if row.format == "messages" else row for row in rows]
    refused = [row for row in answers if isinstance(row, BadRow)]
    tokenized, bad = sequences.tokenize(
        [row for row in answers if isinstance(row, Row)], tokenizer, max_length
    )
    return tokenized, [*refused, *bad]


def _answer_of(row: Row) -> Row | BadRow:
    """Return a chat as prompt and completion: its last message, and all that was said before."""
    messages = row.content
    assert isinstance(messages, tuple), "a chat, by its format"
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        return BadRow(
            row.file, row.line, "the chat does not end with an answer of the assistant to something"
        )
    return Row(row.file, row.line, "prompt/completion", messages[-1:], messages[:-1])


def _collate(batch: Sequence[Tokens], pad: int) -> tuple[dict[str, Tensor], int]:
    """Return input_ids, attention_mask and labels, int64[B, T], and the number of tokens predicted."""
    inputs = sequences.collate(batch, pad)
    return inputs, int((inputs["labels"][:, 1:] != IGNORED).sum())  # the first of a row is never predicted


def _check_base(config: PeerConfig, base: BaseModel, missing: Collection[str]) -> None:
    hint = " If it is an encoder, it can only classify: --task classification."
    task.refuse_lacking(config.model, sorted(missing), hint)
    task.refuse_too_long(config, base)


def _prepare_base(base: BaseModel, missing: Collection[str], pad: int, seed: int) -> None:
    """Leave a base as it is: nothing is missing of one that passed the check."""


CAUSAL_LM = Task(
    doc="continue text",
    peft_type="CAUSAL_LM",
    loader="AutoModelForCausalLM",
    tokenize=_tokenize,
    collate=_collate,
    correct=None,
    forward=task.forward,
    head_modules=lambda base: [],
    check_base=_check_base,
    prepare_base=_prepare_base,
)
