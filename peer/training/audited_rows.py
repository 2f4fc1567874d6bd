"""The rows on which adapters are audited, one by one: a peer's own, those it held out, canaries and rows like them.

It knows neither statistics nor where adapters come from.
"""

from __future__ import annotations

import itertools
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from peer.config import PeerConfig
from peer.training.canaries import planted, references
from peer.training.data import Row, said
from peer.training.frames import RowLosses
from peer.training.libraries import BaseModel, Tokenizer
from peer.training.sequences import Tokens, text_ids
from peer.training.task import Task, measure

ROWS_MAX = 128
"""Rows of a kind on which a run's adapters are audited at its end. Source: our bench: with SmolLM2 on one core 0.15 s
a row of 64 tokens, so 40 s an adapter; with so many, a 95 % interval of an AUC around .5 is .07 wide to either
side."""
REFERENCES_MAX = 127
"""Rows like its canaries: they show up to 7 bits, for 10 s more."""
SEQUENCES_MAX = 4
"""A longer row is measured on so many of its sequences, the first. Source: guess; one of them tells nearly as much."""

RowTokens = Sequence[Tokens]
"""The sequences of one row, at least one."""
Place = list[int] | None
"""Tokens before a row in its sequence; None = it stands alone."""


@dataclass(frozen=True, slots=True)
class AuditedRows:
    """Rows, tokenized one by one; see ``RowLosses``."""

    members: Sequence[RowTokens]
    held_out: Sequence[RowTokens]
    canaries: Sequence[RowTokens] = ()
    references: Sequence[RowTokens] = ()

    @torch.no_grad()
    def losses(self, task: Task, model: BaseModel, pad: int) -> RowLosses:
        """Return the mean loss of each row over its targets, nats, by a model in evaluation mode."""

        def of(rows: Sequence[RowTokens]) -> tuple[float, ...]:
            # One sequence at a time: a batch has one loss, and a row must not depend on those beside it.
            sums = (measure(task, model, row, 1, pad) for row in rows)
            return tuple(measured.loss / measured.targets for measured in sums)

        return RowLosses(of(self.members), of(self.held_out), of(self.canaries), of(self.references))


def choose(
    members: Sequence[Row],
    held_out: Sequence[Row],
    canaries: Sequence[Row],
    task: Task,
    tokenizer: Tokenizer,
    config: PeerConfig,
    *,
    rows_max: int = ROWS_MAX,
    references_max: int = REFERENCES_MAX,
) -> AuditedRows:
    """Return what an adapter is to be audited on.

    Rows of text are measured where they stood when they were learned: after the rows that were packed before them
    into the same sequence. Others are put into such places in turn. So judges who knows all rows but one, as
    differential privacy assumes; alone, a row would be found less well. Where there are more than ``rows_max`` rows
    of a kind, the run's seed draws so many. Held-out rows that say the same as a row that is learned are left out:
    they are members, too.

    Args:
        members: rows that were learned, canaries not among them.
        canaries: all that were planted among them, which decides where members stood.
        references_max: rows like the canaries, if there are any.
    """
    seed = config.run.seed
    learned = {said(row) for row in members}
    drawn = _drawn(members, rows_max, seed)
    unseen = _drawn([row for row in held_out if said(row) not in learned], rows_max, seed)
    alike = references(canaries[0], references_max) if canaries else []
    places = _places(planted(members, canaries), [*drawn, *canaries], tokenizer, config)
    own, theirs = places[: len(drawn)], places[len(drawn) :]

    def tokenized(rows: Sequence[Row], places: Sequence[Place]) -> list[RowTokens]:
        pairs = zip(rows, itertools.cycle(places or [None]), strict=False)
        sequences = (_at(place, row, task, tokenizer, config)[:SEQUENCES_MAX] for row, place in pairs)
        return [row for row in sequences if row]

    return AuditedRows(
        tokenized(drawn, own), tokenized(unseen, own), tokenized(canaries, theirs), tokenized(alike, theirs)
    )


def _places(
    learned: Sequence[Row], wanted: Sequence[Row], tokenizer: Tokenizer, config: PeerConfig
) -> list[Place]:
    """Return what stood before each of ``wanted`` in its sequence: the tokens, or None for a row that was not packed.

    Args:
        learned: all rows, in the order in which they are packed.
    """
    if config.privacy.dp_epsilon:
        return [None] * len(wanted)  # then every row is a sequence of its own
    texts = [row for row in learned if row.format == "text"]
    before: dict[int, Place] = {}
    block: list[int] = []
    for row, ids in zip(texts, text_ids(texts, tokenizer), strict=True):
        before[id(row)] = block
        block = [*block, *ids]
        block = block[len(block) // config.training.max_length * config.training.max_length :]
    return [before.get(id(row)) for row in wanted]


def _at(place: Place, row: Row, task: Task, tokenizer: Tokenizer, config: PeerConfig) -> RowTokens:
    """Return the sequences of a row that stands at a place; what stands before it is no target."""
    if place is None or row.format != "text":
        return task.tokenize([row], tokenizer, config)[0]
    (ids,) = text_ids([row], tokenizer)
    length = config.training.max_length
    first = Tokens(array("i", [*place, *ids][:length]), len(place))
    rest = ids[length - len(place) :]
    later = (Tokens(array("i", rest[start : start + length])) for start in range(0, len(rest), length))
    return [one for one in (first, *later) if len(one.ids) > max(one.prompt, 1)]


def _drawn(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """Return at most so many rows, in their order."""
    if len(rows) <= count:
        return list(rows)
    places = sorted(random.Random(f"audit {seed}").sample(range(len(rows)), count))
    return [rows[place] for place in places]
