"""Which neighbors of a round are worth a word in its line: those far from the rest, or left out again and again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

ODD_RATIO = 4.0
"""A neighbor so many times as far as half of the row is named in the round's line. Source: ours; honest ones with other
data were at most twice as far in our runs."""
ODD_ROUNDS = 8
"""Rounds after which it is named that somebody is the farthest again and again. Source: ours."""
ODD_SHARE = 0.75
"""Share of them; by chance it is a quarter. Source: ours."""


def odd_neighbors(names: Sequence[str], ratios: Sequence[float], trimmed: Sequence[tuple[int, int]]) -> str:
    """Return a few words on each neighbor that is odd, each after a semicolon; all sequences are in the same order.

    Args:
        ratios: how far each is from us, relative to the lower median of the row.
        trimmed: in how many rounds each was left out as farthest, of how many in which it came.
    """
    return "".join(f"; {words}" for words in _words(names, ratios, trimmed))


def _words(
    names: Sequence[str], ratios: Sequence[float], trimmed: Sequence[tuple[int, int]]
) -> Iterator[str]:
    for name, ratio, (left_out, rounds) in zip(names, ratios, trimmed, strict=True):
        if ratio > ODD_RATIO:
            yield f"{name} is {ratio:.0f} times as far from us as usual"
        elif rounds >= ODD_ROUNDS and left_out > ODD_SHARE * rounds:
            yield f"{name} left out as farthest in {left_out} of {rounds} rounds"
