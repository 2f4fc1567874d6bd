"""The addresses that the user gave, each tried until it answers or the time is over.

A small machine inside ``membership.py``: it says what to dial next and what to tell the user, and knows neither the
table of members nor what is said in greeting. What comes too late is of no step that it is at, and ignored.
"""

from __future__ import annotations

from dataclasses import dataclass

from gossip.errors import LocalError, RemoteError
from gossip.membership_events import (
    Action,
    Dial,
    Join,
    JoinEnded,
    Joining,
    JoinOver,
    NobodyThere,
    SetTimer,
    Tell,
)
from gossip.membership_limits import REDIAL_FIRST_S


@dataclass(slots=True)
class _Attempt:
    """One address. ``errand``: the present step; ``problem``: what was wrong last."""

    errand: Joining
    problem: LocalError


class Joins:
    """Every ``Join`` under way; each is as ``_Progress`` says."""

    def __init__(self) -> None:
        self._by_number: dict[int, _Progress] = {}

    def begin(self, join: Join) -> list[Action]:
        """Dial everything at once."""
        progress = self._by_number[join.number] = _Progress(join)
        return self._pass_on(join.number, progress.begin())

    def is_at(self, errand: Joining) -> bool:
        """Whether this is the present step of an address."""
        progress = self._by_number.get(errand.number)
        return progress is not None and progress.is_at(errand)

    def next_step(self, errand: Joining) -> Joining | None:
        """Go on to the step after this one and return its errand; None if ``errand`` is not the present step."""
        return self._by_number[errand.number].next_step(errand) if self.is_at(errand) else None

    def dial(self, errand: Joining) -> list[Action]:
        """Dial once more, after a pause."""
        following = self.next_step(errand)
        return [Dial(following, (errand.address,))] if following else []

    def reached(self, errand: Joining) -> list[Action]:
        """Note that whoever is at the address has been greeted."""
        if not self.is_at(errand):
            return []
        return self._pass_on(errand.number, self._by_number[errand.number].settle(errand, None))

    def failed(self, errand: Joining, error: RemoteError | LocalError) -> list[Action]:
        """Take a failure: another's is tried again after a pause, ours (a mistyped address, another run) is final."""
        if not self.is_at(errand):
            return []
        return self._pass_on(errand.number, self._by_number[errand.number].failed(errand, error))

    def time_is_over(self, timer: JoinOver) -> list[Action]:
        """Give up what has not been reached."""
        progress = self._by_number.pop(timer.number, None)
        return progress.give_up() if progress else []

    def abandon(self) -> None:
        """Take no interest in any of them any more."""
        self._by_number.clear()

    def _pass_on(self, number: int, actions: list[Action]) -> list[Action]:
        if self._by_number[number].is_over:
            del self._by_number[number]
        return actions


class _Progress:
    """How far a ``Join`` has come."""

    def __init__(self, join: Join) -> None:
        self._join = join
        self._open = {
            address: _Attempt(
                Joining(join.number, address, 0),
                NobodyThere(f"cannot join {address}: no answer within {join.within_s:g} s"),
            )
            for address in join.addresses
        }
        self._count = len(self._open)
        self._problems: list[LocalError] = []

    @property
    def is_over(self) -> bool:
        """Whether ``JoinEnded`` has been returned."""
        return not self._open

    def begin(self) -> list[Action]:
        """Dial everything at once."""
        if not self._open:
            return self._verdict()
        dials = [Dial(attempt.errand, (address,)) for address, attempt in self._open.items()]
        return [*dials, SetTimer(JoinOver(self._join.number), self._join.within_s)]

    def is_at(self, errand: Joining) -> bool:
        """Whether this is the present step of an address."""
        attempt = self._open.get(errand.address)
        return attempt is not None and attempt.errand == errand

    def next_step(self, errand: Joining) -> Joining:
        """Go on to the step after this one and return its errand."""
        following = Joining(errand.number, errand.address, errand.step + 1)
        self._open[errand.address].errand = following
        return following

    def failed(self, errand: Joining, error: RemoteError | LocalError) -> list[Action]:
        """Try again after a pause, or give the address up."""
        if isinstance(error, LocalError):
            return self.settle(errand, error)
        self._open[errand.address].problem = NobodyThere(
            f"cannot join {errand.address} within {self._join.within_s:g} s: {error.detail or error}"
        )
        return [SetTimer(self.next_step(errand), REDIAL_FIRST_S)]

    def give_up(self) -> list[Action]:
        """Give up what has not been reached."""
        self._problems += [attempt.problem for attempt in self._open.values()]
        self._open.clear()
        return self._verdict()

    def settle(self, errand: Joining, problem: LocalError | None) -> list[Action]:
        """End the attempt at one address; the last one ends the whole."""
        del self._open[errand.address]
        if problem:
            self._problems.append(problem)
        return [] if self._open else self._verdict()

    def _verdict(self) -> list[Action]:
        """Say how it ended: what is the user's to mend comes first, then whether enough were reached."""
        number, problems = self._join.number, self._problems
        worst = next((error for error in problems if not isinstance(error, NobodyThere)), None)
        if worst:
            return [JoinEnded(number, worst)]
        if problems and self._join.required and len(problems) == self._count:
            return [JoinEnded(number, NobodyThere("; ".join(map(str, problems))))]
        return [*(Tell(f"{error} (going on without it)") for error in problems), JoinEnded(number, None)]
