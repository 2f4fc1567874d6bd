"""Units of privacy: whose part in a step is bounded and hidden, each with all that may be learned of it.

A unit is a row, or all rows with the same value in a field, such as their author. Equal rows are one unit: who gave a
row twice would otherwise be protected half as well. A row's text is never packed together with another's; a long one
gives several sequences, all of the same unit. It knows nothing of gradients, noise or budgets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peer.config import PeerConfig
from peer.privacy.ledger_file import ROW
from peer.training.data import SHOWN_MAX, Row, said
from peer.training.libraries import Tokenizer
from peer.training.readers import BadRow, DataError
from peer.training.sequences import Tokens
from peer.training.task import Task


@dataclass(frozen=True, slots=True)
class Unit:
    """What is protected as one.

    Attributes:
        rows: its rows, as bytes that are the same whenever a row is.
        owner: whose they are, as bytes; empty where each row is by itself.
        sequences: what is learned of it, at least one.
        targets: how many targets each of them has.
    """

    rows: tuple[bytes, ...]
    owner: bytes
    sequences: tuple[Tokens, ...]
    targets: tuple[int, ...]


def owner_field(config: PeerConfig) -> str:
    """Return the field that says whose a row is; empty where each row is a unit, or nothing is promised."""
    options = config.privacy
    return options.dp_unit if options.dp_epsilon and options.dp_unit != ROW else ""


def check_owners(rows: Sequence[Row], config: PeerConfig) -> None:
    """Refuse rows of nobody where all rows of an owner are protected as one.

    Raises:
        DataError: names their lines.
    """
    field = owner_field(config)
    if strays := [row for row in rows if field and not row.owner]:
        shown = [f"{row.file}:{row.line}" for row in strays[:SHOWN_MAX]]
        raise DataError(
            f"--dp-unit {field}: {len(strays)} rows have no {field!r}, so nobody knows whose they are: "
            f"{', '.join(shown)}. Give each one, or use --dp-unit row"
        )


def units_of(
    rows: Sequence[Row], task: Task, tokenizer: Tokenizer, config: PeerConfig
) -> tuple[list[Unit], list[BadRow]]:
    """Return the units of training rows, in the order of their first rows, and the rows that gave no sequence."""
    field = owner_field(config)
    groups: dict[bytes, dict[bytes, Row]] = {}
    for row in rows:
        content = said(row).encode()
        groups.setdefault(row.owner.encode() if field else content, {})[content] = row
    units: list[Unit] = []
    bad: list[BadRow] = []
    for key, group in groups.items():
        tokenized = {content: task.tokenize([row], tokenizer, config) for content, row in group.items()}
        bad += [one for _, refused in tokenized.values() for one in refused]
        if unit := _unit(
            key if field else b"", {content: made for content, (made, _) in tokenized.items()}, task
        ):
            units.append(unit)
    return units, bad


def _unit(owner: bytes, tokenized: Mapping[bytes, Sequence[Tokens]], task: Task) -> Unit | None:
    """Return the unit of some rows' sequences; None if there are none."""
    sequences = tuple(one for made in tokenized.values() for one in made)
    targets = tuple(task.collate([one], 0)[1] for one in sequences)
    rows = tuple(content for content, made in tokenized.items() if made)
    return Unit(rows, owner, sequences, targets) if sum(targets) else None


def without_owners_of(rows: Sequence[Row], others: Sequence[Row]) -> list[Row]:
    """Return the rows whose owners have none among ``others``; rows without an owner stay."""
    taken = {row.owner for row in others if row.owner}
    return [row for row in rows if row.owner not in taken]
