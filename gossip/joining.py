"""The addresses that the user gave or that we remember, each tried until it answers.

When the time is over, the user is told of those that have not, and they are tried on for as long as we live, ever less
often: two groups that began apart, because their common contact was away, find each other when it comes. A small
machine inside ``membership.py``: it says what to dial next and what to tell the user, and knows neither the table of
members nor what is said in greeting. What comes too late is of no step that it is at, and ignored.
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
from gossip.membership_limits import REDIAL_FIRST_S, REDIAL_LONGEST_S


@dataclass(slots=True)
class _Attempt:
    """One address. ``errand``: the present step; ``problem``: what was wrong last; ``pause_s``: before the next."""

    errand: Joining
    problem: LocalError
    pause_s: float = REDIAL_FIRST_S


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
        """Say what has not been reached."""
        progress = self._by_number.get(timer.number)
        return self._pass_on(timer.number, progress.time_is_over()) if progress else []

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
        self._has_ended = False  # ``JoinEnded`` has been returned

    @property
    def is_over(self) -> bool:
        """Whether nothing is tried any more."""
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
        attempt = self._open[errand.address]
        attempt.problem = NobodyThere(
            f"cannot join {errand.address} within {self._join.within_s:g} s: {error.detail or error}"
        )
        pause_s = attempt.pause_s
        if self._has_ended:
            attempt.pause_s = min(2 * pause_s, REDIAL_LONGEST_S)
        return [SetTimer(self.next_step(errand), pause_s)]

    def time_is_over(self) -> list[Action]:
        """Say what has not been reached; if none was needed, or one was reached, the others are tried on."""
        if self._has_ended:
            return []
        self._problems += [attempt.problem for attempt in self._open.values()]
        return self._verdict()

    def settle(self, errand: Joining, problem: LocalError | None) -> list[Action]:
        """End the attempt at one address; the last one ends the whole."""
        del self._open[errand.address]
        if self._has_ended:
            return _told([problem] if problem else [])
        if problem:
            self._problems.append(problem)
        return [] if self._open else self._verdict()

    def _verdict(self) -> list[Action]:
        """Say how it ended: what is the user's to mend comes first, then whether enough were reached."""
        self._has_ended = True
        number, problems = self._join.number, self._problems
        if self._join.required:
            worst = next((error for error in problems if not isinstance(error, NobodyThere)), None)
            if worst is None and problems and len(problems) == self._count:
                worst = NobodyThere("; ".join(map(str, problems)))
            if worst:
                self._open.clear()
                return [JoinEnded(number, worst)]
        return [*_told(problems), JoinEnded(number, None)]


def _told(problems: list[LocalError]) -> list[Action]:
    return [Tell(f"{error} (going on without it)") for error in problems]
