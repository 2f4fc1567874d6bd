"""From rows to training sequences: tokenized, packed, padded into batches, drawn in seeded order.

What a task makes of a batch stands in the task's own file (``causal_lm.py``, ``classification.py``). This file knows
nothing of files, models or training.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from peer.training.data import Content, Message, Row
from peer.training.libraries import Tokenizer
from peer.training.readers import BadRow, DataError

PARTIAL_BLOCK_MIN = 8
"""Shorter rests of packed text are dropped, tokens. Source: guess; they would weigh as much as a full block."""

IGNORED = -100
"""Label of a position that is no target. Source: torch's cross_entropy default."""

Batch: TypeAlias = Mapping[str, Tensor]
"""A model's inputs by the names of its arguments: input_ids and attention_mask, int64[B, T], and labels."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """One training sequence.

    Attributes:
        ids: token ids, at least one.
        prompt: so many tokens at its beginning are no targets.
        label: its class, from 0; -1 if it has none.
    """

    ids: array[int]
    prompt: int = 0
    label: int = -1


def tokenize(rows: Sequence[Row], tokenizer: Tokenizer, max_length: int) -> tuple[list[Tokens], list[BadRow]]:
    """Return sequences of at most ``max_length`` tokens, and the rows that gave none.

    Text rows are joined by end-of-text and packed; a messages row and a prompt/completion row is one sequence each.

    Args:
        max_length: tokens, at least 1.
    """
    sequences: list[Tokens] = []
    bad: list[BadRow] = []
    packed = array("i")
    begin, end = marks(tokenizer)
    for row in rows:
        if row.format == "text":
            packed.extend(begin + _encode(tokenizer, _text(row.content)) + end)
            continue
        try:
            tokens = _tokens(row, tokenizer, max_length)
        except ValueError as error:
            bad.append(BadRow(row.file, row.line, f"the model's chat template refuses it: {error}"))
            continue
        if len(tokens.ids) - max(tokens.prompt, 1) < 1:
            bad.append(BadRow(row.file, row.line, "nothing to learn once tokenized"))
        else:
            sequences.append(tokens)
    starts = range(0, block_count(len(packed), max_length) * max_length, max_length)
    sequences += [Tokens(packed[start : start + max_length]) for start in starts]
    return sequences, bad


def block_count(count: int, max_length: int) -> int:
    """Return into how many sequences packed text of ``count`` tokens is cut: whole ones, and a rest that is worth one.

    The i-th, from 0, begins at token ``i * max_length``.
    """
    whole, rest = divmod(count, max_length)
    if whole and rest < min(PARTIAL_BLOCK_MIN, max_length):
        rest = 0
    return (whole if max_length > 1 else 0) + (rest > 1)


def text_ids(rows: Sequence[Row], tokenizer: Tokenizer) -> list[list[int]]:
    """Return the tokens of each row of text, with the marks that part it from the next."""
    begin, end = marks(tokenizer)
    return [begin + _encode(tokenizer, _text(row.content)) + end for row in rows]


def render(row: Row, tokenizer: Tokenizer) -> str:
    """Return the text that a row becomes, for a human to look at."""
    if row.label:
        return f"{row.content}\n-> {row.label}"
    if row.format == "messages":
        return _template(tokenizer, _chat(row.content))
    if isinstance(row.prompt, tuple):
        return _template(tokenizer, (*row.prompt, *_chat(row.content)))
    return row.prompt + str(row.content)


def collate(sequences: Sequence[Tokens], pad: int) -> dict[str, Tensor]:
    """Return input_ids, attention_mask and labels, each int64[B, T], padded on the right to the longest.

    Labels are masked by length, never by pad id: where pad and end-of-text are one token, that would also hide the
    end-of-text that the model must learn.

    Args:
        sequences: at least one.
        pad: token that fills up.
    """
    width = max(len(sequence.ids) for sequence in sequences)
    ids = torch.full((len(sequences), width), pad)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for index, sequence in enumerate(sequences):
        length = len(sequence.ids)
        ids[index, :length] = torch.tensor(sequence.ids)
        mask[index, :length] = 1
        labels[index, sequence.prompt : length] = ids[index, sequence.prompt : length]
    labels[:, 0] = IGNORED  # only a learned prompt would predict it: losses of all kinds stay comparable
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@dataclass(slots=True)
class BatchSampler:
    """Draws batches of indices without end, each epoch in a new seeded order. Its state is two integers.

    Args:
        count: number of sequences, at least 1.
        batch_size: indices per batch; a batch may span two epochs.
        seed: the order of epoch e depends on (seed, e) alone.
    """

    count: int
    batch_size: int
    seed: int
    epoch: int = 0
    position: int = 0
    _order: array[int] = field(default_factory=lambda: array("I"))
    _order_epoch: int = -1

    def draw(self) -> list[int]:
        """Return the next batch and move on."""
        batch: list[int] = []
        while len(batch) < self.batch_size:
            if self._order_epoch != self.epoch:
                self._order = array("I", range(self.count))  # 4 bytes each: corpora have many
                random.Random(f"order {self.seed} {self.epoch}").shuffle(self._order)
                self._order_epoch = self.epoch
            taken = self._order[self.position : self.position + self.batch_size - len(batch)]
            batch += taken
            self.position += len(taken)
            if self.position == self.count:
                self.epoch, self.position = self.epoch + 1, 0
        return batch

    def state(self) -> dict[str, int]:
        """Return what ``restore`` needs, JSON-able."""
        return {"count": self.count, "seed": self.seed, "epoch": self.epoch, "position": self.position}

    def restore(self, state: dict[str, int]) -> None:
        """Continue exactly where ``state`` was taken.

        Raises:
            DataError: the data has another number of sequences, or the seed differs.
        """
        if (state["count"], state["seed"]) != (self.count, self.seed):
            raise DataError(
                f"cannot resume: the checkpoint was made with {state['count']} training sequences and seed "
                f"{state['seed']}, now there are {self.count} and seed {self.seed}. "
                "Restore the data and settings, or start anew."
            )
        self.epoch, self.position = state["epoch"], state["position"]


# -- tokens of one row


def _text(content: Content) -> str:
    """Return content that is text, by the format of its row."""
    assert isinstance(content, str)
    return content


def _chat(content: Content) -> tuple[Message, ...]:
    """Return content that is a chat, by the format of its row."""
    assert isinstance(content, tuple)
    return content


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _template(tokenizer: Tokenizer, messages: Sequence[Message], *, generation: bool = False) -> str:
    """Return a chat as text: by the model's own template, else in plain words."""
    if tokenizer.chat_template:
        from jinja2 import TemplateError

        try:
            text = tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=generation
            )
            return str(text)
        except TemplateError as error:
            raise ValueError(str(error)) from error
    lines = [f"{message['role']}: {message['content']}\n" for message in messages]
    return "".join([*lines, "assistant: "] if generation else lines)


def marks(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return what goes before a text (only where the tokenizer itself puts it) and after it."""
    first = tokenizer("a")["input_ids"][0]
    begin = [first] if first == tokenizer.bos_token_id else []
    return begin, [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def _tokens(row: Row, tokenizer: Tokenizer, max_length: int) -> Tokens:
    """Tokenize a messages or prompt/completion row; too long a prompt loses its beginning."""
    begin, end = marks(tokenizer)
    start, finish = ([], []) if tokenizer.chat_template else (begin, end)  # a template brings its own marks
    if row.format == "messages":
        ids = start + _encode(tokenizer, _template(tokenizer, _chat(row.content))) + finish
        return Tokens(array("i", ids[:max_length]))
    if isinstance(row.prompt, tuple):
        prompt_text = _template(tokenizer, row.prompt, generation=True)
        whole = _template(tokenizer, (*row.prompt, *_chat(row.content)))
        if not whole.startswith(prompt_text):  # the template has no marker of its own before an answer
            prompt_text = _template(tokenizer, row.prompt)
        completion = _encode(tokenizer, whole.removeprefix(prompt_text)) + finish
        prompt = start + _encode(tokenizer, prompt_text)
    else:
        prompt = begin + _encode(tokenizer, row.prompt)
        completion = _encode(tokenizer, _text(row.content)) + end
    completion = completion[: max_length - min(len(prompt), max_length // 2)]
    prompt = prompt[max(0, len(prompt) + len(completion) - max_length) :]
    return Tokens(array("i", prompt + completion), len(prompt))
