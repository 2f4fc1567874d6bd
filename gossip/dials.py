"""Dials that wait for their turn, and those under way: never too many at a time, nor too often on others' word.

There are two rows. Trusted dials go to addresses that the user gave or where the peer has answered us before: only
their number at a time is limited. Rumors go to addresses that somebody merely claims, and could be anybody's: fewer at
a time, at a rate in all, and at a rate for each peer on whose word they are made.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

from gossip.membership_events import Action, Dial, DialsDue, Journey, SetTimer
from gossip.membership_limits import (
    DIALS_DUE_S,
    DIALS_MAX,
    RUMOR_DIALS_BURST,
    RUMOR_DIALS_MAX,
    RUMOR_DIALS_PER_S,
    SOURCE_DIALS_BURST,
    SOURCE_DIALS_PER_S,
    SOURCES_MAX,
    TRUSTED_DIALS_MAX,
)
from gossip.token_bucket import TokenBucket, TokenBuckets


class _Rumor(NamedTuple):
    dial: Dial
    source: str


class Dials:
    """All dials of one peer."""

    def __init__(self) -> None:
        self._trusted: dict[Journey, Dial] = {}  # waiting, first come first served
        self._rumors: dict[Journey, _Rumor] = {}
        self._under_way: dict[Journey, bool] = {}  # whether it is for a rumor
        self._rate = TokenBucket(RUMOR_DIALS_PER_S, RUMOR_DIALS_BURST)
        self._sources = TokenBuckets(SOURCE_DIALS_PER_S, SOURCE_DIALS_BURST, SOURCES_MAX)
        self._is_timer_set = False

    @property
    def under_way(self) -> int:
        """How many have begun and not ended."""
        return len(self._under_way)

    @property
    def waiting(self) -> int:
        """How many have not begun."""
        return len(self._trusted) + len(self._rumors)

    def trusted(self, dial: Dial, now: float) -> list[Action]:
        """Make a dial to addresses that are known to be the peer's, as soon as there is a place."""
        self._trusted[dial.errand] = dial
        return self.begin(now)

    def in_turn(self, actions: list[Action], now: float) -> list[Action]:
        """Let the dials among these actions, to addresses that the user gave, wait for their turn."""
        others = [action for action in actions if not isinstance(action, Dial)]
        begun = [self.trusted(action, now) for action in actions if isinstance(action, Dial)]
        return [*itertools.chain.from_iterable(begun), *others]

    def rumored(self, dial: Dial, source: str, now: float) -> list[Action]:
        """Make a dial to addresses that ``source`` (peer id) claims, once there is a place and the rates allow."""
        self._rumors[dial.errand] = _Rumor(dial, source)
        return self.begin(now)

    def cancel(self, errand: Journey) -> None:
        """Take a dial back if it has not begun."""
        self._trusted.pop(errand, None)
        self._rumors.pop(errand, None)

    def clear(self) -> None:
        """Take all back that have not begun."""
        self._trusted.clear()
        self._rumors.clear()

    def ended(self, errand: Journey, now: float) -> list[Action]:
        """Note the end of a dial, and begin what has waited for its place."""
        self._under_way.pop(errand, None)
        return self.begin(now)

    def timer_fired(self, now: float) -> list[Action]:
        """Begin what the rates have held back."""
        self._is_timer_set = False
        return self.begin(now)

    def begin(self, now: float) -> list[Action]:
        """Begin as many as may be under way."""
        begun: list[Action] = []
        while (dial := self._next_trusted() or self._next_rumor(now)) is not None:
            begun.append(dial)
        if self._has_place_for_rumor() and not self._is_timer_set:  # only a rate can be what holds them back
            self._is_timer_set = True
            begun.append(SetTimer(DialsDue(), DIALS_DUE_S))
        return begun

    def _next_trusted(self) -> Dial | None:
        count = len(self._under_way) - self._rumors_under_way()
        if not self._trusted or count >= TRUSTED_DIALS_MAX or len(self._under_way) >= DIALS_MAX:
            return None
        errand = next(iter(self._trusted))
        self._under_way[errand] = False
        return self._trusted.pop(errand)

    def _next_rumor(self, now: float) -> Dial | None:
        if not self._has_place_for_rumor() or not self._rate.has(now):
            return None
        errand = next(
            (e for e, rumor in self._rumors.items() if self._sources.of(rumor.source).take(now)), None
        )
        if errand is None:
            return None
        self._rate.take(now)
        self._under_way[errand] = True
        return self._rumors.pop(errand).dial

    def _has_place_for_rumor(self) -> bool:
        is_free = self._rumors_under_way() < RUMOR_DIALS_MAX and len(self._under_way) < DIALS_MAX
        return bool(self._rumors) and is_free

    def _rumors_under_way(self) -> int:
        return sum(self._under_way.values())
