"""How methods are written and found: ``"alternate:5"`` is a name in a catalogue and its parameters.

Every catalogue of this package maps a name to an ``Entry``; help, errors and tables are made from it. What a method
does stands beside its catalogue, not here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from gossip.errors import LocalError
from topology.errors import TopologyError, unknown
from topology.parameters import Parameter, canonical, read_values, signature

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """One line of a catalogue.

    Args:
        make: values of the parameters given, in order -> the method; what is left out takes ``make``'s defaults.
        doc: one line for help and tables.
        parameters: as written after the name.
    """

    make: Callable[..., T]
    doc: str
    parameters: tuple[Parameter, ...] = ()


def find(kind: str, text: str, catalogue: Mapping[str, Entry[T]]) -> T:
    """Return the method that ``text`` names.

    Args:
        kind: how errors call it, such as ``"mixing rule"``.

    Raises:
        LocalError: unknown (lists the known ones), or a bad parameter; says what would be valid.
    """
    name, _, rest = text.strip().lower().partition(":")
    try:
        if name not in catalogue:
            raise unknown(kind, text, catalogue)
        entry = catalogue[name]
        return entry.make(*read_values(name, entry.parameters, rest.split(":") if rest else []))
    except TopologyError as error:
        raise LocalError(str(error)) from error


def written(kind: str, text: str, catalogue: Mapping[str, Entry[T]]) -> str:
    """Return the canonical text of a method: what two peers of a run must have in common.

    Raises:
        LocalError: as ``find``.
    """
    find(kind, text, catalogue)
    name, _, rest = text.strip().lower().partition(":")
    return canonical(name, read_values(name, catalogue[name].parameters, rest.split(":") if rest else []))


def signatures(catalogue: Mapping[str, Entry[T]]) -> dict[str, str]:
    """Return how each entry is written and what it is, for ``--help`` and tables."""
    return {signature(name, entry.parameters): entry.doc for name, entry in catalogue.items()}
