"""Parameters of catalogue entries as they are written after the name: ``random-regular:4``, ``watts-strogatz:4:0.1``.

One ``Parameter`` value reads the text, names it in ``--help`` and says in the error what would be valid. It does not
know what the parameters mean to a graph, nor how many peers there are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from topology.errors import TopologyError

Value = int | float | str


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a catalogue entry.

    Args:
        letter: how help and errors call it, e.g. ``"K"``.
        meaning: a few words, with its range.
        read: text -> value; raises ``ValueError`` for what is out of range.
        required: whether the entry makes no sense without it. Optional ones may be left out from the right.
    """

    letter: str
    meaning: str
    read: Callable[[str], Value]
    required: bool = True


def whole(least: int, most: int = 1_000_000) -> Callable[[str], Value]:
    """Return a reader of integers from ``least`` to ``most`` (which only keeps typing errors from filling memory)."""

    def read(text: str) -> int:
        if not re.fullmatch(r"\+?\d{1,9}", text) or int(text) < least:
            raise ValueError(f"a whole number of at least {least}")
        if int(text) > most:
            raise ValueError(f"a whole number of at most {most}")
        return int(text)

    return read


def fraction(*, zero: bool) -> Callable[[str], Value]:
    """Return a reader of numbers in [0, 1] (``zero``) or (0, 1]."""

    def read(text: str) -> float:
        valid = f"a number {'from 0' if zero else 'above 0'} to 1"
        try:
            value = float(text)
        except ValueError:
            raise ValueError(valid) from None
        if not (0.0 <= value <= 1.0 and math.isfinite(value)) or (value == 0.0 and not zero):
            raise ValueError(valid)
        return value

    return read


def positive(most: float) -> Callable[[str], Value]:
    """Return a reader of numbers above 0, up to ``most``."""

    def read(text: str) -> float:
        valid = f"a number above 0 to {most:g}"
        try:
            value = float(text)
        except ValueError:
            raise ValueError(valid) from None
        if not 0.0 < value <= most:
            raise ValueError(valid)
        return value

    return read


def grid(text: str) -> str:
    """Read ``"4x6"``: rows x columns, each at least 1."""
    match = re.fullmatch(r"0*([1-9]\d{0,5})x0*([1-9]\d{0,5})", text.lower())
    if match is None:
        raise ValueError("rows x columns such as 4x6")
    return f"{match[1]}x{match[2]}"


def signature(name: str, parameters: Sequence[Parameter]) -> str:
    """Return how an entry is written, e.g. ``"torus[:RxC]"`` or ``"random-regular:K"``."""
    return name + "".join(f":{p.letter}" if p.required else f"[:{p.letter}]" for p in parameters)


def read_values(name: str, parameters: Sequence[Parameter], texts: Sequence[str]) -> tuple[Value, ...]:
    """Read an entry's parameters.

    Raises:
        TopologyError: too few, too many or out of range; says how the entry is written and what would be valid.
    """
    written = signature(name, parameters)
    least = sum(parameter.required for parameter in parameters)
    if not least <= len(texts) <= len(parameters):
        meanings = "; ".join(f"{p.letter} = {p.meaning}" for p in parameters)
        raise TopologyError(
            f"{name!r} takes {least if least == len(parameters) else f'{least} to {len(parameters)}'} "
            f"parameter(s), got {len(texts)}. Write {written!r}" + (f" with {meanings}" if meanings else "")
        )
    values: list[Value] = []
    for parameter, text in zip(parameters, texts, strict=False):
        try:
            values.append(parameter.read(text))
        except ValueError as error:
            raise TopologyError(
                f"{parameter.letter} of {written!r} ({parameter.meaning}) must be {error}, not {text!r}"
            ) from error
    return tuple(values)


def canonical(name: str, values: Sequence[Value]) -> str:
    """Return the canonical text of an entry with its parameters, e.g. ``"watts-strogatz:4:0.1"``."""
    return ":".join([name, *map(str, values)])
