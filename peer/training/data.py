"""A peer's private text: read, checked row by row, split, tokenized, and drawn in seeded batches.

Rows that cannot be used are reported by file and line, then skipped or refused. Each file is split by its
own content and the seed alone, before packing, so that two peers who read the same file hold out the same
rows. Files are read by ``readers.py``; what a task makes of tokens stands in ``tasks.py``. This file knows nothing
of models or training.
"""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from peer.training.readers import BadRow, DataError, read

PARTIAL_BLOCK_MIN = 8
"""Shorter rests of packed text are dropped, tokens. Source: guess; they would weigh as much as a full
block."""

SHOWN_MAX = 10
"""Bad rows listed by name in a report. Source: guess, a screenful."""

IGNORED = -100
"""Label of a position that is no target. Source: torch's cross_entropy default."""

Message = dict[str, str]
Content = str | tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One usable row. ``prompt`` is empty but for prompt/completion rows, where only ``content`` is learned; ``label``
    is empty but for labeled text."""

    file: Path
    line: int
    format: Literal["text", "messages", "prompt/completion", "labeled text"]
    content: Content
    prompt: Content = ""
    label: str = ""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The rows of some files, in file order, and the ones left out."""

    rows: tuple[Row, ...]
    bad: tuple[BadRow, ...]

    def report(self, sample: str = "") -> str:
        """Return text for a human: formats, counts, bad rows, and ``sample`` (a rendered row, if given)."""
        formats = Counter(row.format for row in self.rows)
        files = ", ".join(dict.fromkeys(row.file.name for row in self.rows))
        lines = [f"{files}: " + ", ".join(f"{count} rows of {name}" for name, count in formats.items())]
        if self.bad:
            lines.append(f"{len(self.bad)} bad rows skipped:")
            lines += [f"  {bad}" for bad in self.bad[:SHOWN_MAX]]
            if len(self.bad) > SHOWN_MAX:
                lines.append(f"  and {len(self.bad) - SHOWN_MAX} more")
        if sample:
            lines += ["a row as the model sees it:", *(f"  {line}" for line in sample[:400].splitlines())]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Tokens:
    """One training sequence: its token ids, of which the first ``prompt`` are no targets, or its class (-1: none)."""

    ids: array[int]
    prompt: int = 0
    label: int = -1


def load(
    paths: Sequence[Path], *, bad_rows: Literal["skip", "refuse"] = "skip", labels: Sequence[str] = ()
) -> Loaded:
    """Read all rows of ``paths``: files of a kind in ``READERS``, or folders written by datasets'
    save_to_disk.

    Args:
        labels: the classes of a classification, if it is one: each row must then be a text with one of them.

    Raises:
        DataError: a path is missing, unreadable or of unknown kind, a file has no usable row, or a row is bad
            and ``bad_rows`` is "refuse".
    """
    rows: list[Row] = []
    bad: list[BadRow] = []
    for path in paths:
        usable = len(rows)
        try:
            for line, value in read(path):
                row = value if isinstance(value, BadRow) else _row(path, line, value, labels)
                (bad if isinstance(row, BadRow) else rows).append(row)
        except OSError as error:
            reason = error.strerror or str(error)
            raise DataError(
                f"cannot read data {path}: {reason}. Check the path and its permissions."
            ) from error
        if len(rows) == usable:
            here = [str(one) for one in bad if one.file == path][:SHOWN_MAX]
            expected = _EXPECTED_LABEL if labels else _EXPECTED
            raise DataError("\n".join([f"data {path} has no usable row. {expected}", *here]))
    if bad and bad_rows == "refuse":
        shown = [str(one) for one in bad[:SHOWN_MAX]]
        raise DataError(
            "\n".join([f"{len(bad)} bad rows (correct them, or let bad_rows be skip), the first:", *shown])
        )
    return Loaded(tuple(rows), tuple(bad))


def split(rows: Sequence[Row], held_out: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Return (training rows, held-out rows), file by file: the same rows for the same file and seed
    everywhere.

    Args:
        held_out: share to hold out, 0 < x < 1; at least one row of each file that has two.

    Raises:
        DataError: a side would be empty.
    """
    kept: list[Row] = []
    held: list[Row] = []
    for file in dict.fromkeys(row.file for row in rows):
        own = [row for row in rows if row.file == file]
        order = list(range(len(own)))
        random.Random(f"held-out {seed}").shuffle(order)
        count = min(len(own) - 1, max(1, round(len(own) * held_out)))
        chosen = set(order[:count])
        for index, row in enumerate(own):
            (held if index in chosen else kept).append(row)
    if not kept or not held:
        files = ", ".join(sorted({str(row.file) for row in rows})) or "the data"
        raise DataError(
            f"{files}: {len(rows)} usable rows; at least 2 are needed (to train, and to hold out)"
        )
    return kept, held


def tokenize(rows: Sequence[Row], tokenizer: Any, max_length: int) -> tuple[list[Tokens], list[BadRow]]:
    """Return sequences of at most ``max_length`` tokens, and the rows that gave none.

    Text rows are joined by end-of-text and packed; a messages row and a prompt/completion row is one
    sequence each.
    """
    sequences: list[Tokens] = []
    bad: list[BadRow] = []
    packed = array("i")
    begin, end = _marks(tokenizer)
    for row in rows:
        if row.format == "text":
            packed.extend(begin + _encode(tokenizer, row.content) + end)
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
    blocks = [packed[start : start + max_length] for start in range(0, len(packed), max_length)]
    if len(blocks) > 1 and len(blocks[-1]) < min(PARTIAL_BLOCK_MIN, max_length):
        blocks.pop()
    sequences += [Tokens(block) for block in blocks if len(block) > 1]
    return sequences, bad


def render(row: Row, tokenizer: Any) -> str:
    """Return the text that a row becomes, for a human to look at."""
    if row.label:
        return f"{row.content}\n-> {row.label}"
    if row.format == "messages":
        return _template(tokenizer, row.content)
    if isinstance(row.prompt, tuple):
        return _template(tokenizer, (*row.prompt, *row.content))
    return row.prompt + str(row.content)


def collate(sequences: Sequence[Tokens], pad: int) -> dict[str, Any]:
    """Return input_ids, attention_mask and labels, each int64[B, T], padded on the right to the longest.

    Labels are masked by length, never by pad id: where pad and end-of-text are one token, that would also
    hide the end-of-text that the model must learn.
    """
    import torch

    width = max(len(one.ids) for one in sequences)
    ids = torch.full((len(sequences), width), pad)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for index, one in enumerate(sequences):
        length = len(one.ids)
        ids[index, :length] = torch.tensor(one.ids)
        mask[index, :length] = 1
        labels[index, one.prompt : length] = ids[index, one.prompt : length]
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
    _order: list[int] = field(default_factory=list)
    _order_epoch: int = -1

    def draw(self) -> list[int]:
        """Return the next batch and move on."""
        batch: list[int] = []
        while len(batch) < self.batch_size:
            if self._order_epoch != self.epoch:
                self._order = list(range(self.count))
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


# -- rows

_EXPECTED = 'Each row needs "text", or "messages" (a chat), or "prompt" and "completion".'
_EXPECTED_LABEL = 'For a classification each row needs "text" and "label".'


def _row(file: Path, line: int, value: Any, labels: Sequence[str]) -> Row | BadRow:
    """Check one parsed row."""
    try:
        if not isinstance(value, dict):
            raise ValueError(f"expected an object, found {type(value).__name__}")
        if labels:
            for key in ("text", "label"):
                if value.get(key) is None:
                    raise ValueError(f'no "{key}"')
            text, label = _text(value["text"], "text"), _label(value["label"], labels)
            return Row(file, line, "labeled text", text, label=label)
        if value.get("messages") is not None:
            return Row(file, line, "messages", _chat(value["messages"], "messages"))
        if value.get("completion") is not None:
            if value.get("prompt") is None:
                raise ValueError('"completion" without "prompt"')
            prompt, completion = (_content(value[key], key) for key in ("prompt", "completion"))
            if type(prompt) is not type(completion):
                raise ValueError('"prompt" and "completion" must both be text or both be messages')
            return Row(file, line, "prompt/completion", completion, prompt)
        if value.get("text") is not None:
            return Row(file, line, "text", _text(value["text"], "text"))
        keys = ", ".join(repr(key) for key in list(value)[:8]) or "no key"
        raise ValueError(f"none of text, messages, prompt and completion (found {keys})")
    except ValueError as error:
        return BadRow(file, line, str(error))


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f'"{key}" must be text, found {type(value).__name__}')
    if not value.strip():
        raise ValueError(f'"{key}" is empty')
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f'"{key}" is not valid Unicode') from None
    return value


def _label(value: Any, labels: Sequence[str]) -> str:
    """Return the label meant: by its name, or, where none is named so, by its number from 0."""
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise ValueError(f'"label" must be text or a whole number, found {type(value).__name__}')
    text = str(value).strip()
    if text in labels:
        return text
    if text.isascii() and text.isdigit() and len(text) < 9 and int(text) < len(labels):
        return labels[int(text)]
    shown = ", ".join(labels[:8]) + (", ..." if len(labels) > 8 else "")
    raise ValueError(f'"label" {text[:40]!r} is none of {shown}')


def _content(value: Any, key: str) -> Content:
    return _chat(value, key) if isinstance(value, list) else _text(value, key)


def _chat(value: Any, key: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f'"{key}" must be a list of messages, and not empty')
    messages = []
    for message in value:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ValueError(f'each message of "{key}" needs "role" and "content"')
        messages.append({part: _text(message[part], part) for part in ("role", "content")})
    return tuple(messages)


# -- tokens


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _template(tokenizer: Any, messages: Sequence[Message], *, generation: bool = False) -> str:
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


def _marks(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return what goes before a text (only where the tokenizer itself puts it) and after it."""
    first = tokenizer("a")["input_ids"][0]
    begin = [first] if first == tokenizer.bos_token_id else []
    return begin, [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def _tokens(row: Row, tokenizer: Any, max_length: int) -> Tokens:
    """Tokenize a messages or prompt/completion row; too long a prompt loses its beginning."""
    begin, end = _marks(tokenizer)
    start, finish = ([], []) if tokenizer.chat_template else (begin, end)  # a template brings its own marks
    if row.format == "messages":
        ids = start + _encode(tokenizer, _template(tokenizer, row.content)) + finish
        return Tokens(array("i", ids[:max_length]))
    if isinstance(row.prompt, tuple):
        prompt_text = _template(tokenizer, row.prompt, generation=True)
        whole = _template(tokenizer, (*row.prompt, *row.content))
        if not whole.startswith(prompt_text):  # the template has no marker of its own before an answer
            prompt_text = _template(tokenizer, row.prompt)
        completion = _encode(tokenizer, whole.removeprefix(prompt_text)) + finish
        prompt = start + _encode(tokenizer, prompt_text)
    else:
        prompt = begin + _encode(tokenizer, row.prompt)
        completion = _encode(tokenizer, row.content) + end
    completion = completion[: max_length - min(len(prompt), max_length // 2)]
    prompt = prompt[max(0, len(prompt) + len(completion) - max_length) :]
    return Tokens(array("i", prompt + completion), len(prompt))
