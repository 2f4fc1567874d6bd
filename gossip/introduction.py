"""What we say of ourselves, when we announce it, and what others' answers to it mean.

A peer introduces itself with its whole run manifest; a difference ends in a refusal that names the first field that
differs, in the words of whoever reads it. Announcements come at intervals, and early after a completed round.
"""

from __future__ import annotations

from gossip.errors import RemoteError
from gossip.manifest import RunManifest, first_difference
from gossip.membership_events import Action, Announce, AnnouncementDue, Incompatible, SetTimer
from gossip.membership_limits import PRESENCE_GAP_S, PRESENCE_S
from gossip.messages import Hello, Message, Presence, Refusal
from topology.announced import Announced


class Introduction:
    """Our own claims: run, name, addresses (known once we listen) and rounds completed."""

    def __init__(self, manifest: RunManifest, name: str, data: Announced | None) -> None:
        self.run = manifest.fingerprint
        self.addresses: tuple[str, ...] = ()
        self.round = 0
        self._manifest = manifest.fields()
        self._name = name
        self._data = data
        self._announcement = 0  # number of the last one
        self._announced_at = 0.0
        self._is_next_hurried = False  # the next announcement comes early, because a round was completed

    def hello(self, known: tuple[str, ...]) -> Hello:
        """Return our greeting, or our answer to one; ``known``: addresses of others that are up."""
        return Hello(self._manifest, self._name, self.round, self.addresses, known, self._data)

    def announce(self, now: float) -> list[Action]:
        """Announce ourselves, and when to do so again."""
        self._announcement += 1
        self._announced_at = now
        self._is_next_hurried = False
        return [Announce(self._presence()), SetTimer(AnnouncementDue(self._announcement), PRESENCE_S)]

    def announce_soon(self, now: float) -> list[Action]:
        """Announce ourselves as soon as the gap allows; the timer set before finds it done and does nothing."""
        wait_s = self._announced_at + PRESENCE_GAP_S - now
        if wait_s <= 0:
            return self.announce(now)
        if self._is_next_hurried:
            return []
        self._is_next_hurried = True
        return [SetTimer(AnnouncementDue(self._announcement), wait_s)]

    def announce_if_due(self, timer: AnnouncementDue, now: float) -> list[Action]:
        """Announce ourselves unless that has been done since the timer was set."""
        return self.announce(now) if timer.number == self._announcement else []

    def goodbye(self) -> Announce:
        """Return the announcement that we leave."""
        return Announce(self._presence(leaving=True))

    def _presence(self, *, leaving: bool = False) -> Presence:
        return Presence(self.run, self._name, self.round, self.addresses, leaving)

    def difference_from(self, hello: Hello) -> str | None:
        """Return the first difference between our run and another's, for our user; None if there is none."""
        return first_difference(self._manifest, hello.manifest)

    def refusal_of(self, hello: Hello) -> Refusal:
        """Return the refusal of a peer of another run, in which "ours" is what that peer has."""
        return Refusal("manifest", first_difference(hello.manifest, self._manifest) or "")

    def judge(self, peer: str, answer: Message | RemoteError) -> Hello | RemoteError | Incompatible:
        """Tell what came of greeting a peer: the hello of a member, a failure to try again after, or another run."""
        match answer:
            case Hello():
                difference = self.difference_from(answer)
                return _incompatible(peer, difference) if difference else answer
            case Refusal(reason="manifest"):
                return _incompatible(peer, answer.detail)
            case Refusal():
                return RemoteError(answer.reason, answer.detail)
            case RemoteError():
                return answer
            case _:
                return RemoteError("malformed", "a hello was expected")


def _incompatible(peer: str, difference: str) -> Incompatible:
    return Incompatible(f"peer {peer} takes part in another run: {difference}")
