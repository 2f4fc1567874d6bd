"""Who takes part: the second pure state machine, ``handle(event, now) -> [action]``.

There is no registry. A newcomer dials the addresses it was given, learns of others from their ``Hello``, and from then
on announces itself. Whoever answers with our run manifest is a member; whoever misses two heartbeats, or whose
connection is gone and cannot be dialed again, is down. One peer as we see it::

                announced, or named in a hello             away too long, displaced, or of another run
    (unknown) ---------------------------------> SEARCHED ---------------------------------> (unknown)
                                                  |    ^
                      hello exchanged either way  |    |  heartbeats missed, or connection
                                                  v    |  lost and not dialed again at once
                       (not searched) <---------- UP --'
                                      goodbye, five strikes

All of it is soft state, bounded, and claims only. Islands of one run become one wherever they touch: whoever greets or
announces is searched for and told of to the others. It has no socket, clock, task or global random number; it does
not know how connections are made, and tells the node no more than ``PeerUp`` and ``PeerDown``.
"""

from __future__ import annotations

import itertools
import random
from typing import assert_never

from gossip.claims import Claims, Verify, nothing_is_signed
from gossip.cut_offs import CutOffs
from gossip.dials import Dials
from gossip.errors import LocalError, RemoteError
from gossip.introduction import Introduction
from gossip.joining import Joins
from gossip.manifest import RunManifest
from gossip.member_places import Places
from gossip.members import Members
from gossip.membership_events import (
    Action,
    AnnouncementDue,
    Answer,
    Answered,
    Ask,
    Asked,
    AskFailed,
    Connected,
    DialBack,
    Dialed,
    DialFailed,
    DialsDue,
    Disconnected,
    Drop,
    Event,
    Heard,
    Heartbeat,
    HeartbeatsDue,
    Join,
    Joining,
    JoinOver,
    Leave,
    Offered,
    Progressed,
    Question,
    Reject,
    Search,
    SetTimer,
    Start,
    Strike,
    Suspect,
    Timer,
    TimerFired,
)
from gossip.membership_limits import (
    HEARTBEAT_S,
    HEARTBEATS_MISSED,
)
from gossip.messages import Evidence, Hello, Message, Ping, Presence, Refusal
from gossip.notices import Notices
from gossip.searching import Searches
from gossip.told_addresses import peer_named_by
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
        self._notices = Notices()
        places = Places(lambda member: self._searches.forgotten(member))
        self.members = Members(places, self._notices)
        claims = Claims(manifest.fingerprint, verify)
        self._introduction = Introduction(manifest, name, data, claims)
        self._is_leaving = False
        self._joins = Joins()
        self._dials = Dials()
        self._searches = Searches(self.members, self._dials, self._notices, rng)
        self._cut_offs = CutOffs(self.members, self._searches, self._notices, claims)
        self._heartbeat_numbers = itertools.count(1)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event at time ``now`` (seconds on any monotonic clock) and return what to do, in order.

        Nothing raises. At most eight actions come of one event, and one more for each peer that is up, for each address
        of a join, and for each dial that may be under way at a time (``DIALS_MAX``); four more for each peer that an
        event convicts.
        """
        if not self.members.places.me and not isinstance(event, Start | Progressed):
            return []
        match event:
            case Start():
                return self._start(event, now)
            case Join():
                return self._dials.in_turn(self._joins.begin(event), now)
            case Dialed():
                return [*self._dialed(event, now), *self._dials.ended(event.errand, now)]
            case DialFailed():
                return [*self._not_dialed(event, now), *self._dials.ended(event.errand, now)]
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
                return self._cut_offs.strike(event.peer, event.reason, now)
            case Offered():
                return self._cut_offs.offered(event.claim, now)
            case TimerFired():
                return self._timer_fired(event.timer, now)
            case Leave():
                return self._leave()
            case _:
                assert_never(event)

    def is_cut_off(self, peer: str, now: float) -> bool:
        """Whether nothing of a peer is taken, for a while or for the rest of the run."""
        return self._cut_offs.holds(peer, now)

    # -- life

    def _start(self, event: Start, now: float) -> list[Action]:
        self.members.places.me, self.members.places.own = event.me, event.addresses
        told = self._introduction.listens(event.addresses, event.incarnation)
        return [*told, *self._introduction.announce(now), SetTimer(HeartbeatsDue(), HEARTBEAT_S)]

    def _progressed(self, event: Progressed, now: float) -> list[Action]:
        self._introduction.round = event.round
        is_listening = self.members.places.me and not self._is_leaving
        return self._introduction.announce_soon(now) if is_listening else []

    def _timer_fired(self, timer: Timer, now: float) -> list[Action]:
        if self._is_leaving:
            return []
        match timer:
            case AnnouncementDue():
                return self._introduction.announce_if_due(timer, now)
            case HeartbeatsDue():
                return self._heartbeats(now)
            case Search():
                return self._searches.again(timer, now)
            case Joining():
                return self._dials.in_turn(self._joins.dial(timer), now)
            case DialsDue():
                return self._dials.timer_fired(now)
            case JoinOver():
                return self._joins.time_is_over(timer)
            case _:
                assert_never(timer)

    def _leave(self) -> list[Action]:
        """Say goodbye, and take no interest in what is still under way."""
        self._is_leaving = True
        self._joins.abandon()
        self._searches.abandon()
        for member in self.members.by_id.values():
            member.heartbeat = None
        return [self._introduction.goodbye()]

    # -- what we say

    def _hello(self) -> Hello:
        return self._introduction.hello(self.members.known())

    # -- what others say

    def _asked(self, event: Asked, now: float) -> list[Action]:
        if self._cut_offs.holds(event.peer, now):
            return [Answer(Refusal("busy", "cut off for a while after repeated faults"))]
        member = self.members.by_id.get(event.peer)
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
            refused = f"refused peer {peer} of another run: {difference}"
            told = self._notices.refused(peer, refused, now)
            cut_off = self._cut_offs.refused(peer, now)
            return [Reject("manifest"), *told, Answer(self._introduction.refusal_of(hello)), *cut_off]
        return [Answer(self._hello()), *self._welcome(peer, hello, now)]

    def _heard(self, event: Heard, now: float) -> list[Action]:
        said, author = event.message, event.author
        if isinstance(said, Evidence):
            return self._cut_offs.proven((said,), now)
        if (
            not isinstance(said, Presence)
            or said.run != self._introduction.run
            or author == self.members.places.me
        ):
            return []
        return [*self._cut_offs.told(said.claims, now), *self._present(author, said, now)]

    def _present(self, author: str, said: Presence, now: float) -> list[Action]:
        """Take what a peer announces of itself, unless it is a replay."""
        member = self.members.by_id.get(author)
        if member and member.is_replay(said.incarnation, said.sequence):
            return []
        if said.leaving:
            self._searches.end(author)
            return self.members.down(author, "left", now)
        if self._cut_offs.holds(author, now):
            return []
        member = self.members.places.announced(author, said.name, said.addresses, said.round, now)
        if member and member.is_up:
            return self.members.up(author, said.round, now)
        return self._seek(author, now)

    def _welcome(self, peer: str, hello: Hello, now: float) -> list[Action]:
        """Take a peer of our run in, see whether it is where it says, and look for those that it knows."""
        member = self.members.places.answered(peer, hello.name, hello.addresses, hello.round, now)
        if member:
            member.missed, member.data, member.posted = 0, hello.data, None
            member.is_replay(hello.incarnation, 0)
            self._searches.end(peer)
        actions = [*self.members.up(peer, hello.round, now), *self._searches.prove(peer, now)]
        actions += self._cut_offs.proven(hello.evidence, now)
        for address in hello.known:
            other = peer_named_by(address)
            known = self.members.by_id.get(other)
            # Whoever is up already has been greeted: greeting it again would never end.
            if not (known and known.is_up) and not self._cut_offs.holds(other, now):
                self.members.places.rumored(other, address, peer, now)
                actions += self._seek(other, now)
        return actions

    # -- what comes back

    def _dialed(self, event: Dialed, now: float) -> list[Action]:
        match event.errand:
            case Search():
                member = self._searches.searched(event.errand)
                following = self._searches.greeting(event.errand)
                if member is None or following is None:
                    return []
                member.is_connected = True
                return [Ask(following, following.peer, self._hello())]
            case Joining():
                step = self._joins.next_step(event.errand)
                if step is None:
                    return []
                if event.peer == peer_named_by(step.address):
                    self.members.places.given(event.peer, step.address, now)
                return [Ask(step, event.peer, self._hello())]
            case DialBack():
                return self._searches.proved(event.errand, event.peer == event.errand.peer, now)
            case _:
                assert_never(event.errand)

    def _not_dialed(self, event: DialFailed, now: float) -> list[Action]:
        if isinstance(event.errand, DialBack):
            return self._searches.proved(event.errand, False, now)
        return self._failed(event.errand, event.error, now)

    def _answered(self, errand: Question, answer: Message | RemoteError, now: float) -> list[Action]:
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
        if isinstance(errand, Joining):
            return self._joined(errand, judged, now)
        return self._found(errand, judged, now)

    def _failed(self, errand: Search | Joining, error: RemoteError | LocalError, now: float) -> list[Action]:
        if isinstance(errand, Search):
            return self._searches.failed(errand, error, now)
        return self._joins.failed(errand, error)

    def _joined(self, errand: Joining, hello: Hello, now: float) -> list[Action]:
        peer = peer_named_by(errand.address)
        if not self._joins.is_at(errand):
            return []
        if self._cut_offs.holds(peer, now):
            return self._joins.failed(
                errand, RemoteError("busy", "cut off for a while after repeated faults")
            )
        welcome, reached = self._welcome(peer, hello, now), self._joins.reached(errand)
        # Our first announcement was made before anybody could hear it.
        return [*welcome, *reached, *self._introduction.announce_soon(now)]

    def _found(self, errand: Search, hello: Hello, now: float) -> list[Action]:
        member = self._searches.searched(errand)
        if member is None:
            return []
        if not member.is_connected:  # lost again in the meantime: nobody else would look for it
            return self._searches.failed(errand, RemoteError("unreachable"), now)
        return self._welcome(errand.peer, hello, now)

    def _seek(self, peer: str, now: float) -> list[Action]:
        is_wanted = not self._is_leaving and not self._cut_offs.holds(peer, now)
        return self._searches.seek(peer, now) if is_wanted else []

    # -- watching

    def _heartbeats(self, now: float) -> list[Action]:
        """Ask everybody who is up for a heartbeat, and where it may be dialed; forget what is long past."""
        self.members.places.forget_the_idle(now)
        self._cut_offs.forget_old(now)
        asked = [action for peer in self.members.by_id for action in self._heartbeat(peer)]
        proofs = [action for peer in self.members.by_id for action in self._searches.prove(peer, now)]
        return [*asked, *proofs, *self._notices.sum_up(now), SetTimer(HeartbeatsDue(), HEARTBEAT_S)]

    def _heartbeat(self, peer: str) -> list[Action]:
        """Ask a peer that is up for a heartbeat, unless it is being asked or searched for."""
        member = self.members.by_id.get(peer)
        if member is None or not member.is_up or member.heartbeat or member.search or self._is_leaving:
            return []
        member.heartbeat = Heartbeat(peer, next(self._heartbeat_numbers))
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
            return self._seek(errand.peer, now)  # it has lost sight of us: introduce ourselves
        # An announcement in between does not make up for it: others may have relayed it.
        member.missed += 1
        if member.missed < HEARTBEATS_MISSED:
            return []
        down = self.members.down(errand.peer, f"{member.missed} heartbeats missed", now)
        return [*down, *self._searches.lost(errand.peer, now, afresh=True)]

    def _connection(self, event: Connected | Disconnected, now: float) -> list[Action]:
        """Look for a peer whose connection is lost, at once; close the connection of one that is cut off."""
        is_connected = isinstance(event, Connected)
        if member := self.members.by_id.get(event.peer):
            member.is_connected = is_connected
        if is_connected:
            return [Drop(event.peer)] if self._cut_offs.holds(event.peer, now) else []
        is_missed = member and member.is_up and not self._is_leaving
        return self._searches.lost(event.peer, now) if is_missed else []
