"""Ctrl-C once ends the rounds, twice ends everything; where there are no rounds, once is enough."""

from __future__ import annotations

from collections.abc import AsyncIterator

import trio
import trio.testing

from peer.journal import Journal
from peer.leaving import Leaving


async def signals(*numbers: int) -> AsyncIterator[int]:
    for number in numbers:
        yield number


def test_the_first_signal_ends_the_rounds_and_the_second_everything() -> None:
    async def main() -> None:
        leaving, stopped = Leaving(Journal()), []
        with leaving.politely(lambda: stopped.append(True)):
            await leaving.watch(signals(2))
            assert (stopped, leaving.scope.cancel_called) == ([True], False)
            await leaving.watch(signals(15))
            assert (stopped, leaving.scope.cancel_called) == ([True], True)
        assert leaving.signal == 2

    trio.run(main)


def test_before_and_after_the_rounds_the_first_signal_ends_everything() -> None:
    async def main() -> None:
        for has_rounds_behind in (False, True):
            leaving = Leaving(Journal())
            if has_rounds_behind:
                with leaving.politely(lambda: None):
                    pass
            await leaving.watch(signals(15))
            assert leaving.scope.cancel_called
            assert leaving.signal == 15

    trio.run(main)
