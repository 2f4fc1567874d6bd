"""A peer's private text: read, checked row by row, and split into rows to learn from and rows held out.

Rows that cannot be used are reported by file and line, then skipped or refused. Each file is split by its own content
and the seed alone, so that two peers who read the same file hold out the same rows. Files are read by ``readers.py``;
rows become tokens in ``sequences.py``. This file knows nothing of models or training.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias

from peer.training.readers import BadRow, DataError, read

SHOWN_MAX = 10
"""Bad rows listed by name in a report. Source: guess, a screenful."""

Message: TypeAlias = dict[str, str]
"""One message of a chat: role and content."""

Content: TypeAlias = str | tuple[Message, ...]
"""A text, or a chat."""


@dataclass(frozen=True, slots=True)
class Row:
    """One usable row.

    Attributes:
        file, line: where it stands.
        format: what kind of row it is.
        content: what is learned.
        prompt: what stands before it and is not learned; of the same type; empty but for prompt/completion rows.
        label: the class of ``content``; empty but for labeled text.
        owner: whose row it is, where a field says so; empty if nobody asked, or it does not say.
    """

    file: Path
    line: int
    format: Literal["text", "messages", "prompt/completion", "labeled text"]
    content: Content
    prompt: Content = ""
    label: str = ""
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The rows of some files, in file order, and the ones left out."""

    rows: tuple[Row, ...]
    bad: tuple[BadRow, ...]

    def report(self, sample: str = "") -> str:
        """Return text for a human; see the function ``report``."""
        files = dict.fromkeys(row.file.name for row in self.rows)
        formats = Counter[str](row.format for row in self.rows)
        return report(files, formats, len(self.bad), list(map(str, self.bad[:SHOWN_MAX])), sample)


def report(
    files: Iterable[str], formats: Mapping[str, int], bad: int, shown: Sequence[str], sample: str = ""
) -> str:
    """Return what was read as text for a human.

    Args:
        files: their names.
        formats: kind of row -> how many.
        bad: how many rows were skipped.
        shown: the first of them, a line each.
        sample: a rendered row, if given.
    """
    lines = [
        f"{', '.join(files)}: " + ", ".join(f"{count} rows of {name}" for name, count in formats.items())
    ]
    if bad:
        lines.append(f"{bad} bad rows skipped:")
        lines += [f"  {one}" for one in shown]
        if bad > len(shown):
            lines.append(f"  and {bad - len(shown)} more")
    if sample:
        lines += ["a row as the model sees it:", *(f"  {line}" for line in sample[:400].splitlines())]
    return "\n".join(lines)


def load(
    paths: Sequence[Path],
    *,
    bad_rows: Literal["skip", "refuse"] = "skip",
    labels: Sequence[str] = (),
    owner_field: str = "",
) -> Loaded:
    """Read all rows of ``paths``: files of a kind in ``READERS``, or folders written by datasets' save_to_disk.

    Args:
        labels: the classes of a classification, if it is one: each row must then be a text with one of them.
        owner_field: the field that says whose a row is; empty if nobody wants to know.

    Raises:
        DataError: a path is missing, unreadable or of unknown kind, a file has no usable row, or a row is bad
            and ``bad_rows`` is "refuse".
    """
    rows: list[Row] = []
    bad: list[BadRow] = []
    for path in paths:
        own_rows: list[Row] = []
        own_bad: list[BadRow] = []
        for row in rows_of(path, labels, owner_field):
            if isinstance(row, BadRow):
                own_bad.append(row)
            else:
                own_rows.append(row)
        if not own_rows:
            refuse_useless(path, list(map(str, own_bad[:SHOWN_MAX])), labels)
        rows += own_rows
        bad += own_bad
    if bad and bad_rows == "refuse":
        refuse_bad(len(bad), list(map(str, bad[:SHOWN_MAX])))
    return Loaded(tuple(rows), tuple(bad))


def refuse_useless(path: Path, shown: Sequence[str], labels: Sequence[str] = ()) -> NoReturn:
    """Refuse a file without a usable row; ``shown``: the first bad ones, a line each."""
    expected = _EXPECTED_LABEL if labels else _EXPECTED
    raise DataError("\n".join([f"data {path} has no usable row. {expected}", *shown]))


def refuse_bad(count: int, shown: Sequence[str]) -> NoReturn:
    """Refuse bad rows; ``shown``: the first of them, a line each."""
    raise DataError(
        "\n".join([f"{count} bad rows (correct them, or let bad_rows be skip), the first:", *shown])
    )


def rows_of(path: Path, labels: Sequence[str] = (), owner_field: str = "") -> Iterator[Row | BadRow]:
    """Yield the rows of one file as they stand in it, one by one; see ``load``.

    Raises:
        DataError: the path is missing, unreadable or of unknown kind.
    """
    try:
        for line, value in read(path):
            row = value if isinstance(value, BadRow) else _row(path, line, value, labels)
            if owner_field and isinstance(row, Row):
                row = replace(row, owner=_owner(value.get(owner_field)))
            yield row
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"cannot read data {path}: {reason}. Check the path and its permissions.") from error


def split(
    rows: Sequence[Row], held_out: float, seed: int, *, one_by_one: bool = False
) -> tuple[list[Row], list[Row]]:
    """Return (training rows, held-out rows), file by file: the same rows for the same file and seed everywhere.

    All rows of an owner stay together: an owner whose rows stand in several files may be held out in one of them and
    learned from in another.

    Args:
        held_out: share to hold out, 0 < x < 1; at least one row of each file that has two.
        one_by_one: each owner, or row, is held out for what it is, whatever others there are, so that one more changes
            nothing for the rest: what is promised of one row would otherwise be lost in the others' changing sides.
            The share is then met in the mean only.

    Raises:
        DataError: a side would be empty.
    """
    kept: list[Row] = []
    held: list[Row] = []
    for file in dict.fromkeys(row.file for row in rows):
        own = [row for row in rows if row.file == file]
        owners: list[str | int] = [row.owner or index for index, row in enumerate(own)]
        if one_by_one:
            owners = [row.owner or said(row) for row in own]
        drawn = _drawn_by_itself(owners, held_out, seed) if one_by_one else _drawn(owners, held_out, seed)
        for owner, row in zip(owners, own, strict=True):
            (held if owner in drawn else kept).append(row)
    if not kept or not held:
        files = ", ".join(sorted({str(row.file) for row in rows})) or "the data"
        raise DataError(
            f"{files}: {len(rows)} usable rows; at least 2 are needed (to train, and to hold out)"
        )
    return kept, held


def said(row: Row) -> str:
    """Return what is learned of a row, the same for equal rows in whatever file."""
    return json.dumps([row.content, row.prompt, row.label], ensure_ascii=False, sort_keys=True)


def _drawn(owners: Sequence[str | int], held_out: float, seed: int) -> set[str | int]:
    """Return who is held out: as many as the share says, at least one and not all."""
    order = list(dict.fromkeys(owners))
    random.Random(f"held-out {seed}").shuffle(order)
    return set(order[: min(len(order) - 1, max(1, round(len(order) * held_out)))])


def _drawn_by_itself(owners: Sequence[str | int], held_out: float, seed: int) -> set[str | int]:
    """Return who is held out, each decided without a look at the others, but for the first where nobody would be."""
    places = {owner: place_of(owner, seed) for owner in owners}
    drawn = {owner for owner, place in places.items() if place < held_out}
    ranked = sorted(places, key=lambda owner: places[owner])
    if not drawn:
        return set(ranked[:1]) if len(ranked) > 1 else set()
    return drawn if len(drawn) < len(ranked) else drawn - {ranked[-1]}


def place_of(owner: str | int, seed: int) -> float:
    """Return where an owner, or a row by what it ``said``, stands between 0 and 1 where each is held out by itself."""
    return random.Random(f"held-out {seed} {owner}").random()


# -- checking a row

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


def _owner(value: Any) -> str:
    """Return whose a row is, as text; empty for what names nobody."""
    return str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""


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
