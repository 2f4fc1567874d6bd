"""How a user ends a run: the first signal asks for the end of the rounds, the second ends everything at once.

Where there are no rounds to end (before the first, after the last), the first signal does what the second does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import trio

from peer.journal import Journal
from peer.journal_events import Note


class Leaving:
    """The wish to end a run, and what it does."""

    def __init__(self, journal: Journal) -> None:
        self.scope = trio.CancelScope()
        """Everything that ends at once stands within this scope."""
        self.signal: int | None = None
        """Number of the first signal; None: there was none."""
        self._at_first_signal: Callable[[], None] = self.scope.cancel
        self._journal = journal

    async def watch(self, signals: AsyncIterator[int]) -> None:
        """Take signals as they come; never returns."""
        async for number in signals:
            if self.signal is not None:
                self.scope.cancel()
                continue
            self.signal = number
            self._journal.emit(Note(text="leaving (once more to leave at once)"))
            self._at_first_signal()

    @contextmanager
    def politely(self, stop: Callable[[], None]) -> Iterator[None]:
        """Let the first signal call ``stop`` while the body runs."""
        before, self._at_first_signal = self._at_first_signal, stop
        try:
            yield
        finally:
            self._at_first_signal = before
