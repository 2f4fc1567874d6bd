"""How an option is declared, once: its type, its default, its limits and what it has a say in stand in one place.

An option is a field of a section of ``peer/config.py``; what follows its type in ``Annotated`` are the marks of this
file. Checks, the line with which a friend joins, the run manifest, the settings of comparisons and ``--help`` are read
off the declarations. It knows no particular option.
"""

from __future__ import annotations

import dataclasses
import enum
import typing
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from gossip.errors import LocalError


class Role(enum.Flag):
    """What an option has a say in.

    Each option has exactly one of the first three.

    Attributes:
        RUN: all peers of a run have it alike: a friend repeats it, and the manifest refuses who does not.
        BOUNDED: it changes what others receive, and may differ: guards of theirs bound what that does to them (reach,
            robust rule, the check on own held-out rows).
        OWN: nobody else notices.
        MODEL: an adapted model in memory is built from it; peers of one process that share a model agree on it.
        METHOD: part of the way of learning: may differ where methods are compared on equal data and tokens.
        COMPARISON: of what methods are compared on; the same for all of them.
    """

    RUN = enum.auto()
    BOUNDED = enum.auto()
    OWN = enum.auto()
    MODEL = enum.auto()
    METHOD = enum.auto()
    COMPARISON = enum.auto()


@dataclass(frozen=True, slots=True)
class Limit:
    """Which values are valid. ``says``: the sentence after the option's name, such as ``"must not be negative"``."""

    holds: Callable[[Any], bool]
    says: str


class Everyday:
    """The option is one that most users meet: ``peer run --help`` shows it, the others ``--help-all``."""


EVERYDAY = Everyday()
POSITIVE = Limit(lambda value: value > 0, "must be greater than 0, not {!r}")
NOT_NEGATIVE = Limit(lambda value: value >= 0, "must not be negative: {!r}")
AT_LEAST_2 = Limit(lambda value: value >= 2, "must be at least 2, not {!r}")
AT_LEAST_8 = Limit(lambda value: value >= 8, "must be at least 8, not {!r}")
SHARE = Limit(lambda value: 0 <= value <= 1, "must lie between 0 and 1, not {!r}")
OPEN_SHARE = Limit(lambda value: 0 < value < 1, "must lie between 0 and 1 (both excluded), not {!r}")
BELOW_ONE = Limit(lambda value: 0 <= value < 1, "must be at least 0 and below 1, not {!r}")


@dataclass(frozen=True, slots=True)
class Option:
    """One declared option.

    Attributes:
        name: as in a configuration file; ``--lora-r`` is ``lora_r``.
        section: field of the configuration that holds it.
        default: its value if nobody says otherwise.
        roles: what it has a say in.
        limits: what its values must satisfy.
        everyday: most users meet it.
    """

    name: str
    section: str
    default: Any
    roles: Role
    limits: tuple[Limit, ...]
    everyday: bool

    @property
    def flag(self) -> str:
        """How it is written on the command line."""
        return "--" + self.name.replace("_", "-")

    def check(self, value: object) -> None:
        """Refuse a value outside of the limits.

        Raises:
            LocalError: names the option, the value and what would be valid.
        """
        for limit in self.limits:
            if not limit.holds(value):
                raise LocalError(f"{self.name} {limit.says.format(value)}")


def declared_options(configuration: type) -> dict[str, Option]:
    """Return all options of a dataclass whose fields are sections, by name, in the order of declaration."""
    sections = typing.get_type_hints(configuration)
    return {
        option.name: option
        for section in dataclasses.fields(configuration)
        for option in _options_of(section.name, sections[section.name])
    }


def _options_of(section: str, declaration: type) -> Iterator[Option]:
    annotations = typing.get_type_hints(declaration, include_extras=True)
    for field in dataclasses.fields(declaration):
        marks = getattr(annotations[field.name], "__metadata__", ())
        roles = Role(0)
        for mark in marks:
            roles |= mark if isinstance(mark, Role) else Role(0)
        yield Option(
            name=field.name,
            section=section,
            default=field.default,
            roles=roles,
            limits=tuple(mark for mark in marks if isinstance(mark, Limit)),
            everyday=EVERYDAY in marks,
        )


def names_with(
    role: Role, options: dict[str, Option], sections: Collection[str] | None = None
) -> tuple[str, ...]:
    """Return the names of the options with a role; those of ``sections`` alone, in that order, if they are given."""
    chosen = [option for option in options.values() if role in option.roles]
    if sections is None:
        return tuple(option.name for option in chosen)
    return tuple(option.name for section in sections for option in chosen if option.section == section)
