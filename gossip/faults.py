"""The fault language: what befalls whom, when and for how long; simulator and chaos testnet read the same words.

A fault is a TOML table. ``kind`` names an entry of ``FAULTS``
(fault_kinds.py), whose fields are its parameters; besides, every fault has
``at_s`` (seconds after the start) or ``at_round`` (once some peer has completed so many rounds), ``every_s`` and
``until_s`` to come again, ``for_s`` to end, ``who`` and, where two sides matter, ``other``. Example::

    [[fault]]
    kind = "restart"
    at_s = 20
    every_s = 60
    until_s = 600
    who = 0.3         # a share; 3 = so many; "p01" or ["p01", "p02"] = these; "all"
    after_s = 5

Whom a share or a number means is drawn anew at each occurrence, from the seed of the run and that of the fault. It
knows neither processes nor simulations.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

from gossip.errors import LocalError
from gossip.fault_kinds import FAULTS, Kind, OneWay, Pause, SlowReader, require
from topology.errors import unknown

OCCURRENCES_MAX = 10_000
"""A fault comes at most so often. Source: guess; a small ``every_s`` is a slip of the pen."""

Who: TypeAlias = str | int | float | tuple[str, ...]
"""``"all"``, one name, several names, how many (whole number), or which share (fraction above 0, up to 1)."""

NEEDS_AN_END = (Pause,)
"""Kinds that must say ``for_s``: nothing else would ever come of their targets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One table of a file: what happens to whom, and when.

    Args:
        at_s: seconds after the start of the run, if ``at_round`` is None.
        at_round: begin once some peer has completed so many rounds.
        every_s, until_s: come again so often, before ``until_s``; 0 = once. Only with ``at_s``.
        for_s: how long it lasts; infinity = to the end of the run.
        seed: gives faults that are otherwise equal different targets.
    """

    kind: Kind
    at_s: float = 0.0
    at_round: int | None = None
    every_s: float = 0.0
    until_s: float = 0.0
    for_s: float = math.inf
    who: Who = "all"
    other: Who | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.at_s >= 0 and (self.at_round or 0) >= 0, "at_s and at_round are at least 0")
        require(self.at_round is None or not self.at_s, "give at_s or at_round, not both")
        require(self.every_s >= 0 and self.for_s > 0, "every_s is at least 0, for_s above 0")
        require(self.at_round is None or not self.every_s, "every_s goes with at_s")
        require(not self.every_s or self.until_s > self.at_s, "every_s needs an until_s after at_s")
        require(not self.every_s or self.occurrences <= OCCURRENCES_MAX, f"more than {OCCURRENCES_MAX} times")
        require(not isinstance(self.kind, NEEDS_AN_END) or self.for_s < math.inf, "for_s is needed")
        for side in (self.who, self.other):
            if isinstance(side, int):
                require(side >= 1, "a number of peers is at least 1")
            elif isinstance(side, float):
                require(0 < side <= 1, "a share of the peers is above 0, up to 1")

    @property
    def occurrences(self) -> int:
        """How often it comes."""
        return math.ceil((self.until_s - self.at_s) / self.every_s) if self.every_s else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Injection:
    """One occurrence of a fault, its targets drawn.

    Args:
        number: its place in the schedule.
        others: the other side, without the targets; where all are targets, all of them.
        seed: for whatever else it draws.
    """

    number: int
    kind: Kind
    at_s: float
    at_round: int | None
    for_s: float
    who: tuple[str, ...]
    others: tuple[str, ...]
    seed: str

    @property
    def title(self) -> str:
        """What it is, for people: kind, targets and parameters."""
        given = dataclasses.asdict(self.kind)
        parameters = "".join(f" {name}={value}" for name, value in given.items())
        return f"{name_of(self.kind)} {','.join(self.who)}{parameters}"

    @property
    def ways(self) -> list[tuple[str, str]]:
        """The ways it is about, (sender, receiver) each: both between the sides, but for kinds of one direction."""
        there = [way for way in product(self.who, self.others) if way[0] != way[1]]
        back = [(other, one) for one, other in there]
        match self.kind:
            case OneWay():
                return there
            case SlowReader():
                return back
            case _:
                return list(dict.fromkeys(there + back))


def name_of(kind: Kind) -> str:
    """Return how a file names a kind."""
    return next(name for name, made in FAULTS.items() if type(kind) is made)


def schedule(faults: Sequence[Fault], names: Iterable[str], seed: int) -> list[Injection]:
    """Return every occurrence in order of time (those that wait for a round come last), with its targets.

    Args:
        names: all peers of the run.
        seed: of the run: equal arguments give equal schedules.

    Raises:
        LocalError: a target that is no peer of the run.
    """
    known = sorted(names)
    drawn = []
    for place, fault in enumerate(faults):
        for occurrence in range(fault.occurrences):
            source = f"{seed}/{fault.seed}/{place}/{occurrence}"
            who = _chosen(fault.who, known, random.Random(f"{source}/who"))
            rest = [name for name in known if name not in who]
            others = (
                rest if fault.other is None else _chosen(fault.other, known, random.Random(f"{source}/other"))
            )
            outside = tuple(name for name in others if name not in who) or tuple(others or known)
            drawn.append((fault, fault.at_s + occurrence * fault.every_s, tuple(who), outside, source))
    drawn.sort(key=lambda occurrence: (occurrence[0].at_round or -1, occurrence[1]))
    return [
        Injection(
            number=number, kind=fault.kind, at_s=at_s, at_round=fault.at_round, for_s=fault.for_s, who=who,
            others=others, seed=source,
        )
        for number, (fault, at_s, who, others, source) in enumerate(drawn)
    ]  # fmt: skip


def _chosen(who: Who, known: Sequence[str], rng: random.Random) -> list[str]:
    if who == "all":
        return list(known)
    if isinstance(who, float):
        return sorted(rng.sample(known, max(1, round(who * len(known)))))
    if isinstance(who, int):
        if who > len(known):
            raise LocalError(f"a fault wants {who} peers, the run has {len(known)}")
        return sorted(rng.sample(known, who))
    wanted = (who,) if isinstance(who, str) else who
    for name in wanted:
        if name not in known:
            raise LocalError(f"a fault names the peer {name!r}; known: all, {', '.join(known)}")
    return sorted(set(wanted))


# -- reading


def parse_faults(tables: object, where: str) -> tuple[Fault, ...]:
    """Return the faults of ``[[fault]]`` tables.

    Args:
        tables: what a TOML reader made of them.
        where: the file, for errors.

    Raises:
        LocalError: names the table, what is wrong in it, and what is known.
    """
    if not (isinstance(tables, list) and all(isinstance(table, dict) for table in tables)):
        raise LocalError(f"{where}: write [[fault]] (in double brackets) for each fault")
    return tuple(_parse(table, f"{where}: fault {place}") for place, table in enumerate(tables, 1))


def _parse(table: Mapping[str, Any], where: str) -> Fault:
    name = table.get("kind", "")
    if name not in FAULTS:
        raise LocalError(f"{where}: {unknown('kind', str(name), FAULTS)}")
    made = FAULTS[name]
    of_kind = {field.name: field.type for field in dataclasses.fields(made)}
    common = {field.name: field.type for field in dataclasses.fields(Fault) if field.name != "kind"}
    for key in table:
        if key != "kind" and key not in of_kind and key not in common:
            raise LocalError(f"{where} ({name}): {unknown('key', key, (*of_kind, *common))}")
    try:
        kind = made(
            **{key: _value(key, value, of_kind[key]) for key, value in table.items() if key in of_kind}
        )
        given = {key: _value(key, value, common[key]) for key, value in table.items() if key in common}
        return Fault(kind=kind, **given)
    except LocalError as error:
        raise LocalError(f"{where} ({name}): {error}") from error


def _value(key: str, value: Any, type_name: Any) -> Any:
    """Return a value as its field has it; annotations are texts here."""
    if key in ("who", "other"):
        if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
            return tuple(value)
        require(
            type(value) in (str, int, float), f'{key} is "all", names, a number or a share, not {value!r}'
        )
        return value
    if str(type_name).startswith("int"):
        require(type(value) is int, f"{key} is a whole number, not {value!r}")
        return value
    if type_name == "float":
        is_number = type(value) in (int, float) and math.isfinite(value)
        require(is_number, f"{key} is a number, not {value!r}")
        return float(value)
    require(isinstance(value, str), f"{key} is a text, not {value!r}")
    return value
