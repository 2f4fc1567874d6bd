"""Canaries: random rows planted among a peer's own, so that it can be told how much of a row is remembered.

Each is a sentence of random words with a random number, drawn by the operating system's generator, so that no text
has it by chance and no peer can guess it. They are kept in a file that only its owner can read, and nothing but the
training learns of them; started again, a run plants the same ones at the same places. ``references`` are rows of the
same make that are never planted.
"""

from __future__ import annotations

import json
import random
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from gossip.errors import LocalError
from peer.durable import read_private, told, write_atomically
from peer.training import data
from peer.training.data import Row

FILE = "canaries.jsonl"
"""Where they are kept, in the home folder."""
_WORDS = """
amber anchor autumn basket beacon bridge bronze candle canyon carbon cedar cobalt copper coral cotton crystal desert
dolphin ember falcon fabric feather fennel ferry forest garden ginger glacier granite harbor hazel helmet indigo island
ivory jasmine juniper kettle lantern lemon linen magnet maple marble meadow mirror nickel nutmeg ocean olive orchid
paper pebble pepper pewter pigeon planet quartz raven ribbon saddle saffron silver timber
"""
WORDS = tuple(_WORDS.split())
"""64 words; two of them and nine digits make 2^42 rows."""

Draw: TypeAlias = Callable[[int], int]
"""Returns a whole number below the one given, each alike."""


def keep(path: Path, count: int, rows: Sequence[Row]) -> list[Row]:
    """Return ``count`` canaries: those in the file ``path``, and new ones that are added to it if it has fewer.

    Args:
        count: at least 1.
        rows: the rows that they are to be planted among, at least one; most of them decide what kind of row a canary
            is.

    Raises:
        LocalError: the file cannot be written, can be read by others, or holds something else.
    """
    try:
        lines = read_private(path).splitlines()
    except FileNotFoundError:
        lines = []
    if len(lines) < count:
        make = MAKES[Counter(row.format for row in rows).most_common(1)[0][0]]
        new = (make(path, *_drawn(secrets.randbelow)) for _ in range(count - len(lines)))
        lines += [json.dumps(_fields(row)) for row in new]
        try:
            write_atomically(path, "".join(f"{line}\n" for line in lines).encode())
        except OSError as error:
            raise LocalError(f"cannot keep the canaries in {path}: {told(error)}") from error
    return list(load(path)[:count])


def load(path: Path) -> tuple[Row, ...]:
    """Return the canaries of a file.

    Raises:
        LocalError: there is none, or it holds something else.
    """
    loaded = data.load([path])
    if loaded.bad:
        raise LocalError(
            f"{loaded.bad[0]}: no canary. Put the file back from a copy, or remove it: a new run then draws new ones"
        )
    return loaded.rows


def planted(rows: Sequence[Row], canaries: Sequence[Row]) -> list[Row]:
    """Return rows with canaries among them, each at a place that only who knows the canary can find again."""
    among = list(rows)
    for canary in canaries:
        place = random.Random(f"place {canary.prompt} {canary.content}").randrange(len(among) + 1)
        among.insert(place, canary)
    return among


def references(like: Row, count: int) -> list[Row]:
    """Return rows made as canaries are, in the form of ``like``: always the same ones, which nobody has planted."""
    draw = random.Random("reference canaries").randrange
    make = MAKES[like.format]
    return [make(like.file, *_drawn(draw)) for _ in range(count)]


def _drawn(draw: Draw) -> tuple[str, str]:
    """Return what a canary is about, and its number."""
    name = f"{WORDS[draw(len(WORDS))]} {WORDS[draw(len(WORDS))]}"
    return name, " ".join(f"{draw(1000):03d}" for _ in range(3))


def _text(file: Path, name: str, number: str) -> Row:
    return Row(file, 0, "text", f"The number of the {name} is {number}.")


def _chat(file: Path, name: str, number: str) -> Row:
    question = {"role": "user", "content": f"What is the number of the {name}?"}
    return Row(file, 0, "messages", (question, {"role": "assistant", "content": f"It is {number}."}))


def _completion(file: Path, name: str, number: str) -> Row:
    return Row(file, 0, "prompt/completion", f" {number}.", f"The number of the {name} is")


MAKES: Mapping[str, Callable[[Path, str, str], Row]] = {
    "text": _text,
    "messages": _chat,
    "prompt/completion": _completion,
}
"""Format of a row -> (file, what it is about, its number) -> a canary of that format. Labeled text has none: nothing
of it is continued."""


def _fields(row: Row) -> Mapping[str, object]:
    """Return a canary as it stands in a file."""
    if row.format == "prompt/completion":
        return {"prompt": row.prompt, "completion": row.content}
    return {row.format: row.content}
