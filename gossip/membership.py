"""Who takes part: the second pure state machine, ``handle(event, now) -> [action]``.

There is no registry. A newcomer dials the addresses it was given, learns of others from their ``Hello``, and from then
on announces itself. Whoever answers with our run manifest is a member; whoever misses two heartbeats, or whose
connection is gone and cannot be dialed again, is down. One peer as we see it::

                announced, or named in a hello                  away too long, or of another run
    (unknown) ---------------------------------> SEARCHED ---------------------------------> (unknown)
                                                  |    ^
                      hello exchanged either way  |    |  heartbeats missed, or connection
                                                  v    |  lost and not dialed again at once
                       (not searched) <---------- UP --'
                                      goodbye, five strikes

All of it is soft state, bounded, and claims only. It has no socket, clock, task or global random number; it does not
know how connections are made, and tells the node no more than ``PeerUp`` and ``PeerDown``.
"""

from __future__ import annotations

import random
from typing import assert_never

from gossip.claims import Claims, Verify, nothing_is_signed
from gossip.convictions import Convictions
from gossip.errors import LocalError, RemoteError
from gossip.introduction import Introduction
from gossip.joining import Joins
from gossip.manifest import RunManifest
from gossip.members import Member, Members, peer_named_by
from gossip.membership_events import (
    Action,
    AnnouncementDue,
    Answer,
    Answered,
    Ask,
    Asked,
    AskFailed,
    Connected,
    Dial,
    Dialed,
    DialFailed,
    Disconnected,
    Drop,
    Errand,
    Event,
    Heard,
    Heartbeat,
    HeartbeatsDue,
    Incompatible,
    Join,
    Joining,
    JoinOver,
    Leave,
    Offered,
    Progressed,
    Reject,
    Search,
    SetTimer,
    Start,
    Strike,
    Suspect,
    Tell,
    Timer,
    TimerFired,
)
from gossip.membership_limits import (
    ADDRESSES_PER_PEER,
    FORGET_S,
    HEARTBEAT_S,
    HEARTBEATS_MISSED,
    REDIAL_FIRST_S,
    REDIAL_LONGEST_S,
)
from gossip.messages import Hello, Message, Ping, Presence, Proof, Refusal
from topology.announced import Announced


class Membership:
    """The members of one run as one peer sees them.

    Args:
        manifest: our run.
        name: our display name.
        rng: spreads redials, decides nothing else; not shared with anybody.
        data: what we announce of our data, if our topology asks for it.
        verify: see ``claims.Verify``.
    """

    def __init__(
        self,
        manifest: RunManifest,
        name: str,
        rng: random.Random,
        data: Announced | None = None,
        verify: Verify = nothing_is_signed,
    ) -> None:
        self.members = Members()
        self._convictions = Convictions(Claims(manifest.fingerprint, verify), self.members)
        self._introduction = Introduction(manifest, name, data, self._convictions.claims)
        self._rng = rng
        self._is_leaving = False
        self._joins = Joins()
        self._step = 0  # number of the last step of a search, or of the last heartbeat

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event at time ``now`` (seconds on any monotonic clock) and return what to do, in order.

        Nothing raises. At most four actions come of one event, and one more for each peer that is up, each address
        that a hello names or that is to join; four more for each peer that an event convicts.
        """
        if not self.members.me and not isinstance(event, Start | Progressed):
            return []
        match event:
            case Start():
                return self._start(event, now)
            case Join():
                return self._joins.begin(event)
            case Dialed():
                return self._dialed(event, now)
            case DialFailed():
                return self._failed(event.errand, event.error, now)
            case Answered():
                return self._answered(event.errand, event.answer, now)
            case AskFailed():
                return self._answered(event.errand, event.error, now)
            case Asked():
                return self._asked(event, now)
            case Heard():
                return self._heard(event, now)
            case Connected() | Disconnected():
                return self._connection(event, now)
            case Progressed():
                return self._progressed(event, now)
            case Suspect():
                return self._heartbeat(event.peer)
            case Strike():
                return self.members.strike(event.peer, event.reason, now)
            case Offered():
                return self._convictions.offered(event.claim, now)
            case TimerFired():
                return self._timer_fired(event.timer, now)
            case Leave():
                return self._leave()
            case _:
                assert_never(event)

    # -- life

    def _start(self, event: Start, now: float) -> list[Action]:
        self.members.me = event.me
        self._introduction.addresses = event.addresses[:ADDRESSES_PER_PEER]
        self._introduction.incarnation = event.incarnation
        return [*self._introduction.announce(now), SetTimer(HeartbeatsDue(), HEARTBEAT_S)]

    def _progressed(self, event: Progressed, now: float) -> list[Action]:
        self._introduction.round = event.round
        return self._introduction.announce_soon(now) if self.members.me and not self._is_leaving else []

    def _timer_fired(self, timer: Timer, now: float) -> list[Action]:
        if self._is_leaving:
            return []
        match timer:
            case AnnouncementDue():
                return self._introduction.announce_if_due(timer, now)
            case HeartbeatsDue():
                return self._heartbeats(now)
            case Search():
                return self._search_again(timer)
            case Joining():
                return self._joins.dial(timer)
            case JoinOver():
                return self._joins.time_is_over(timer)
            case _:
                assert_never(timer)

    def _leave(self) -> list[Action]:
        """Say goodbye, and take no interest in what is still under way."""
        self._is_leaving = True
        self._joins.abandon()
        for member in self.members.by_id.values():
            member.search = member.heartbeat = None
        return [self._introduction.goodbye()]

    # -- what we say

    def _hello(self) -> Hello:
        return self._introduction.hello(self.members.addresses_up())

    def _next_step(self) -> int:
        self._step += 1
        return self._step

    # -- what others say

    def _asked(self, event: Asked, now: float) -> list[Action]:
        member = self.members.by_id.get(event.peer)
        if self.members.is_cut_off(event.peer, now):
            return [Answer(Refusal("busy", "cut off for a while after repeated faults"))]
        match event.question:
            case Hello():
                return self._greeted(event.peer, event.question, now)
            case Ping():
                if not (member and member.is_up):
                    return [Answer(Refusal("hello", "exchange a hello of this run first"))]
                up = self.members.up(event.peer, event.question.round, now)
                return [Answer(Ping(self._introduction.round)), *up]
            case _:
                return []

    def _greeted(self, peer: str, hello: Hello, now: float) -> list[Action]:
        if difference := self._introduction.difference_from(hello):
            told = Tell(f"refused peer {peer} of another run: {difference}")
            return [Reject("manifest"), told, Answer(self._introduction.refusal_of(hello))]
        return [Answer(self._hello()), *self._welcome(peer, hello, now)]

    def _heard(self, event: Heard, now: float) -> list[Action]:
        said, author = event.message, event.author
        if isinstance(said, Proof):
            return self._convictions.proven((said,), now)
        if not isinstance(said, Presence) or said.run != self._introduction.run or author == self.members.me:
            return []
        return [*self._convictions.told(said.claims, now), *self._present(author, said, now)]

    def _present(self, author: str, said: Presence, now: float) -> list[Action]:
        """Take what a peer announces of itself, unless it is a replay."""
        if self.members.is_replay(author, said.incarnation, said.sequence):
            return []
        if said.leaving:
            return self.members.left(author, now)
        member = self.members.claimed(author, said.name, said.addresses, said.round, now)
        if member and member.is_up:
            return self.members.up(author, said.round, now)
        return self._seek(author, now)

    def _welcome(self, peer: str, hello: Hello, now: float) -> list[Action]:
        """Take a peer of our run in, and look for those that it knows."""
        member = self.members.claimed(peer, hello.name, hello.addresses, hello.round, now)
        if member:
            member.missed, member.data = 0, hello.data
            self.members.is_replay(peer, hello.incarnation, 0)
            member.search = None
        actions = [*self.members.up(peer, hello.round, now), *self._convictions.proven(hello.proofs, now)]
        for address in hello.known:
            other = peer_named_by(address)
            known = self.members.by_id.get(other)
            # Whoever is up already has been greeted: greeting it again would never end.
            if not (known and known.is_up) and self.members.rumored(other, address, now):
                actions += self._seek(other, now)
        return actions

    # -- what comes back

    def _dialed(self, event: Dialed, now: float) -> list[Action]:
        match event.errand:
            case Search():
                member = self._searched(event.errand)
                if member is None:
                    return []
                member.is_connected = True
                search = member.search = Search(event.errand.peer, self._next_step())
                return [Ask(search, search.peer, self._hello())]
            case Joining():
                following = self._joins.next_step(event.errand)
                if following is None:
                    return []
                self.members.claimed(event.peer, "", (following.address,), 0, now)
                return [Ask(following, event.peer, self._hello())]
            case _:
                assert_never(event.errand)

    def _answered(self, errand: Errand, answer: Message | RemoteError, now: float) -> list[Action]:
        match errand:
            case Heartbeat():
                return self._heartbeat_ended(errand, answer, now)
            case Search():
                judged = self._introduction.judge(errand.peer, answer)
            case Joining():
                judged = self._introduction.judge(peer_named_by(errand.address), answer)
            case _:
                assert_never(errand)
        if not isinstance(judged, Hello):
            return self._failed(errand, judged, now)
        return (
            self._joined(errand, judged, now)
            if isinstance(errand, Joining)
            else self._found(errand, judged, now)
        )

    def _failed(self, errand: Search | Joining, error: RemoteError | LocalError, now: float) -> list[Action]:
        if isinstance(errand, Search):
            return self._search_failed(errand, error, now)
        return self._joins.failed(errand, error)

    def _joined(self, errand: Joining, hello: Hello, now: float) -> list[Action]:
        if not self._joins.is_at(errand):
            return []
        welcome = self._welcome(peer_named_by(errand.address), hello, now)
        return [*welcome, *self._joins.reached(errand)]

    # -- searching

    def _seek(self, peer: str, now: float) -> list[Action]:
        """Begin to search for a peer, once at a time."""
        member = self.members.by_id.get(peer)
        if member is None or member.search or member.is_banned(now) or self._is_leaving:
            return []
        member.pause_s = REDIAL_FIRST_S
        return self._dial(peer, member)

    def _dial(self, peer: str, member: Member, *, afresh: bool = False) -> list[Action]:
        member.search = Search(peer, self._next_step())
        return [Dial(member.search, member.addresses, peer, afresh)]

    def _searched(self, errand: Search) -> Member | None:
        """Return the member searched for, if this is the present step of the search."""
        member = self.members.by_id.get(errand.peer)
        return member if member and member.search == errand else None

    def _found(self, errand: Search, hello: Hello, now: float) -> list[Action]:
        member = self._searched(errand)
        if member is None:
            return []
        if not member.is_connected:  # lost again in the meantime: nobody else would look for it
            return self._search_failed(errand, RemoteError("unreachable"), now)
        return self._welcome(errand.peer, hello, now)

    def _search_failed(self, errand: Search, error: RemoteError | LocalError, now: float) -> list[Action]:
        """Pause and try again, ever less often; LocalErrors other than ``Incompatible`` are addresses made up."""
        member = self._searched(errand)
        if member is None:
            return []
        if isinstance(error, Incompatible):
            down = self.members.down(errand.peer, "another run", now)
            del self.members.by_id[errand.peer]
            return [*down, Tell(str(error))]
        down = self.members.down(errand.peer, "connection lost", now)
        if now - member.away_since > FORGET_S:
            del self.members.by_id[errand.peer]
            return down
        member.search = Search(errand.peer, self._next_step())
        pause_s = member.pause_s * self._rng.uniform(0.5, 1.0)
        member.pause_s = min(2 * member.pause_s, REDIAL_LONGEST_S)
        return [*down, SetTimer(member.search, pause_s)]

    def _search_again(self, errand: Search) -> list[Action]:
        member = self._searched(errand)
        return self._dial(errand.peer, member) if member else []

    # -- watching

    def _heartbeats(self, now: float) -> list[Action]:
        """Ask everybody who is up for a heartbeat, and forget who has been away for long and is not searched."""
        self.members.forget_the_idle(now)
        asked = [ask for peer in self.members.by_id for ask in self._heartbeat(peer)]
        return [*asked, SetTimer(HeartbeatsDue(), HEARTBEAT_S)]

    def _heartbeat(self, peer: str) -> list[Action]:
        """Ask a peer that is up for a heartbeat, unless it is being asked or searched for."""
        member = self.members.by_id.get(peer)
        if member is None or not member.is_up or member.heartbeat or member.search or self._is_leaving:
            return []
        member.heartbeat = Heartbeat(peer, self._next_step())
        return [Ask(member.heartbeat, peer, Ping(self._introduction.round))]

    def _heartbeat_ended(self, errand: Heartbeat, answer: Message | RemoteError, now: float) -> list[Action]:
        member = self.members.by_id.get(errand.peer)
        if member is None or member.heartbeat != errand:
            return []
        member.heartbeat = None
        if not member.is_up:
            return []
        if isinstance(answer, Ping):
            member.missed = 0
            return self.members.up(errand.peer, answer.round, now)
        if isinstance(answer, Refusal) and answer.reason == "hello":
            return self._seek(
                errand.peer, now
            )  # it has lost sight of us, or was restarted: introduce ourselves
        # An announcement in between does not make up for it: others may have relayed it.
        member.missed += 1
        if member.missed < HEARTBEATS_MISSED:
            return []
        down = self.members.down(errand.peer, f"{member.missed} heartbeats missed", now)
        if member.search:
            return down
        member.pause_s = REDIAL_FIRST_S
        return [*down, *self._dial(errand.peer, member, afresh=True)]

    def _connection(self, event: Connected | Disconnected, now: float) -> list[Action]:
        """Look for a peer whose connection is lost, at once; close the connection of one that is cut off."""
        member = self.members.by_id.get(event.peer)
        if member is None:
            return []
        member.is_connected = isinstance(event, Connected)
        if member.is_connected:
            return [Drop(event.peer)] if member.is_banned(now) else []
        return self._seek(event.peer, now) if member.is_up else []
