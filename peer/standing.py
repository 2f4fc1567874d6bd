"""How others stand with us, as our streams need to know it: who has been greeted, is up, and stands by its offers.

What makes a peer one of us is decided by ``gossip/membership.py``; here it is waited for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from gossip.members import Members
from gossip.messages import Claim


class Standing:
    """How the peers of a table stand with us.

    Args:
        members: the table.
        offered: takes a claim that came with an offer to us to the machine.
    """

    def __init__(self, members: Members, offered: Callable[[Claim], object]) -> None:
        self._members = members
        self._offered = offered
        self._greetings: Counter[str] = Counter()  # hellos of ours that are not answered yet, by peer
        self._greeted = trio.Event()  # set when one of them is
        self._changed = trio.Event()  # set when somebody has come or gone

    @contextmanager
    def greeting(self, peer: str) -> Iterator[None]:
        """Let a peer whom we say hello to be waited for, until its answer has been taken."""
        self._greetings[peer] += 1
        try:
            yield
        finally:
            self._greetings[peer] -= 1
            self._greetings += Counter()  # drops what is 0
            self._greeted.set()
            self._greeted = trio.Event()

    async def is_welcome(self, peer: str) -> bool:
        """Tell whether a peer has exchanged a hello of our run with us; wait for the answer to ours, if it owes one.

        Whoever answers our hello may ask for adapters before its answer is here.
        """
        while not self._is_welcome(peer) and self._greetings[peer]:
            await self._greeted.wait()
        return self._is_welcome(peer)

    def has_changed(self) -> None:
        """Take note that somebody has come or gone."""
        self._changed.set()
        self._changed = trio.Event()

    async def change(self) -> None:
        """Wait until somebody comes or goes."""
        await self._changed.wait()

    async def until_down(self, peer: str) -> None:
        """Wait until a peer is not up, if it is."""
        while self._is_welcome(peer):
            await self.change()

    def stands_by(self, claim: Claim) -> bool:
        """Take what a peer has signed with an offer to us; return whether it is still one of us then."""
        self._offered(claim)
        return self._is_welcome(claim.peer)

    def _is_welcome(self, peer: str) -> bool:
        member = self._members.by_id.get(peer)  # whoever is cut off, or has gone, is not up
        return member is not None and member.is_up
