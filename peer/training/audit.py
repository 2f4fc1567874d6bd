"""Auditing finished adapters: what does whoever has the exported folders learn of the rows they were trained on?

One adapter or several, on rows that may have been learned and rows that have not; on canaries; and, with a file for
each adapter, whose a row is. The statistics are ``leakage.py``'s, the loading of adapters ``inference.py``'s.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gossip.errors import LocalError
from peer.config import PeerConfig
from peer.training import canaries, data, inference, tasks
from peer.training.audited_rows import AuditedRows, choose
from peer.training.data import Row
from peer.training.frames import RowLosses
from peer.training.leakage import (
    ROWS_MIN,
    Exposure,
    Figures,
    Share,
    attributed,
    canary_exposure,
    figures,
    share_of,
)
from peer.training.libraries import Tokenizer
from peer.training.readers import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be audited.

    Args:
        adapters: exported folders on one base model, at least one.
        data: files of rows that they may have learned: one set for all of them, or, with several adapters, a file for
            each, in the same order. May be empty if there are canaries.
        against: files of rows that none of them has learned; empty = what a run with this ``seed`` and ``held_out``
            has kept from ``data``.
        canary_file: canaries that a run has planted; None = none.
        held_out, seed, max_length, answers_only: as in the run.
        private: the run was with differential privacy, which splits rows one by one and packs none with another.
        rows_max: rows looked at of each kind and file.
        references_max: rows like the canaries that these are compared with.
    """

    adapters: Sequence[Path]
    data: Sequence[Path]
    against: Sequence[Path] = ()
    canary_file: Path | None = None
    held_out: float = 0.1
    seed: int = 0
    max_length: int = 64
    answers_only: bool = False
    private: bool = False
    rows_max: int = 1000
    references_max: int = 1023


class Outcome(NamedTuple):
    """What one adapter gives away.

    Attributes:
        adapter: its folder.
        figures: of the rows; None without any.
        exposure: of the canaries; None without any.
    """

    adapter: Path
    figures: Figures | None
    exposure: Exposure | None


class Attribution(NamedTuple):
    """How often the owner of a row is named rightly, of ``owners`` (chance: one in ``owners``).

    Attributes:
        owners: how many there are to choose from.
        learned: share right of rows that were learned.
        held_out: the same of rows of the same files that were not: what style and subject tell alone.
    """

    owners: int
    learned: Share
    held_out: Share


class Audit(NamedTuple):
    """All that was found; ``attribution`` is None but for several adapters with a file each."""

    outcomes: list[Outcome]
    attribution: Attribution | None


def audit(request: Request) -> Audit:
    """Measure every adapter on every row, and return what follows from it.

    Raises:
        LocalError: a file or an adapter cannot be used, or they do not belong together; the message says what to do.
    """
    labels = _check(request)
    config = inference.config_of(
        labels,
        max_length=request.max_length,
        seed=request.seed,
        held_out=request.held_out,
        answers_only=request.answers_only,
        dp_epsilon=math.inf if request.private else 0.0,  # a run with any promise
    )
    rows = _rows(request, labels)
    groups, losses, before = _measured(request.adapters, rows, config, request)
    outcomes = []
    for place, adapter in enumerate(request.adapters):
        own = place if len(groups) > 1 else 0
        known = None if before is None else before[own]
        measured = losses[place][own]
        exposed = canary_exposure(measured, known) if known else None
        outcomes.append(Outcome(adapter, figures(measured, known) if measured.members else None, exposed))
    return Audit(outcomes, _attribution(losses, request.seed) if len(groups) > 1 else None)


class _Rows(NamedTuple):
    """Rows of one owner."""

    members: Sequence[Row]
    others: Sequence[Row]
    canaries: Sequence[Row]


def _check(request: Request) -> tuple[str, ...]:
    """Return the labels that all adapters give to texts; refuse what does not belong together."""
    if not request.data and request.canary_file is None:
        raise DataError("nothing to audit on: give --data, rows that were trained on, or --canary-file")
    if len(request.data) > 1 < len(request.adapters) != len(request.data):
        raise LocalError(
            f"{len(request.adapters)} adapters and {len(request.data)} files of data: give one file for all of the "
            "adapters, or one for each, in the same order"
        )
    first = request.adapters[0]
    for adapter in request.adapters[1:]:
        for what, of in (("base model", inference.base_name), ("labels", inference.labels_of)):
            ours, theirs = of(first), of(adapter)
            if ours != theirs:
                raise LocalError(
                    f"{adapter} has another {what} ({theirs}) than {first} ({ours}): audit them one by one"
                )
    labels = inference.labels_of(first)
    if labels and request.canary_file is not None:
        raise LocalError(
            f"{first} gives labels to texts, and canaries are text to continue: leave --canary-file out"
        )
    return labels


def _rows(request: Request, labels: tuple[str, ...]) -> list[_Rows]:
    """Return the rows of each owner: of all files together, or, with several adapters and files, of each file."""
    planted = canaries.load(request.canary_file) if request.canary_file else ()
    if not request.data:
        return [_Rows((), (), planted)]
    sets = [[file] for file in request.data] if len(request.adapters) > 1 else [list(request.data)]
    against = data.load(request.against, labels=labels).rows if request.against else ()
    found = []
    for files in sets:
        rows: Sequence[Row] = data.load(files, labels=labels).rows
        members: Sequence[Row] = rows
        others: Sequence[Row] = against
        if not against:
            members, others = data.split(rows, request.held_out, request.seed, one_by_one=request.private)
        found.append(_Rows(members, others, planted))
    return found


def _measured(
    adapters: Sequence[Path], rows: Sequence[_Rows], config: PeerConfig, request: Request
) -> tuple[list[AuditedRows], list[list[RowLosses]], list[RowLosses] | None]:
    """Return the rows as they are measured, the losses of each adapter on each owner's, and those without any adapter
    (None where the base model cannot do the task).
    """
    task = tasks.TASKS[config.model.task]
    groups: list[AuditedRows] = []
    losses: list[list[RowLosses]] = []
    before: list[RowLosses] | None = None
    for adapter in adapters:
        model, tokenizer = inference.load_adapter(adapter)
        task.check_base(config, model, ())
        pad = tokenizer.pad_token_id or 0
        if not groups:
            groups = list(_chosen(rows, tokenizer, config, request))
            if not config.model.labels:  # which a base model does not know
                with inference.without_adapter(model, inference.base_of(adapter)) as base:
                    before = [group.losses(task, base, pad) for group in groups]
        losses.append([group.losses(task, model, pad) for group in groups])
    return groups, losses, before


def _chosen(
    rows: Sequence[_Rows], tokenizer: Tokenizer, config: PeerConfig, request: Request
) -> Iterator[AuditedRows]:
    """Yield the rows of each owner, tokenized; too few are refused."""
    task = tasks.TASKS[config.model.task]
    for owner in rows:
        group = choose(
            owner.members,
            owner.others,
            owner.canaries,
            task,
            tokenizer,
            config,
            rows_max=request.rows_max,
            references_max=request.references_max,
        )
        members, others = len(group.members), len(group.held_out)
        if owner.members and min(members, others) < ROWS_MIN:
            what = "--against" if request.against else "those that the run held out"
            raise DataError(
                f"{owner.members[0].file.name}: {members} rows to tell apart from {others} others ({what}); at least "
                f"{ROWS_MIN} of each are needed. Give more rows, or --against with rows that were not trained on"
            )
        yield group


def _attribution(losses: Sequence[Sequence[RowLosses]], seed: int) -> Attribution:
    """Return how often the owner of a row is found.

    Args:
        losses: of each adapter, in the order of owners, on the rows of each owner.
    """
    members = [[of.members for of in adapter] for adapter in losses]
    others = [[of.held_out for of in adapter] for adapter in losses]
    return Attribution(len(losses), _found(members, seed), _found(others, seed))


def _found(losses: Sequence[Sequence[Sequence[float]]], seed: int) -> Share:
    """Return the share of rows whose owner is found; of each owner as many rows, so that chance is one in so many."""
    counts = [len(rows) for rows in losses[0]]
    draw = random.Random(f"audit {seed}")
    taken = [draw.sample(range(count), min(counts)) for count in counts]
    table = np.array(
        [
            [rows[place] for rows, places in zip(adapter, taken, strict=True) for place in places]
            for adapter in losses
        ]
    ).T  # [rows, adapters]
    owners = [owner for owner in range(len(counts)) for _ in range(min(counts))]
    hits = sum(found == owner for found, owner in zip(attributed(table), owners, strict=True))
    return share_of(hits, len(owners))
