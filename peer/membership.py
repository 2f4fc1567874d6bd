"""Who takes part: finds peers of our run, greets them, watches their heartbeat, and tells the node who is up or down.

There is no registry. A newcomer dials the addresses it was given, learns others from their ``Hello``, and from then on
announces itself over GossipSub. Whoever answers with our run manifest is a member; whoever misses two heartbeats, or
whose connection is gone and cannot be dialed again, is down. All of it is soft state, bounded, and claims only.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from gossip import wire
from gossip.errors import LocalError, RemoteError
from gossip.events import Event, PeerDown, PeerUp
from gossip.manifest import RunManifest, first_difference
from gossip.messages import Hello, Message, Ping, Presence, Refusal
from peer.exchange import ANSWER_S, Traffic, ask, receive_message, send_message
from peer.network.transport import Stream, Transport, Unreachable

PRESENCE_S = 5.0
"""Announce ourselves this often (GossipSub withholds above 10 messages a second and peer, libp2p.md section 5)."""
PRESENCE_GAP_S = 1.0
"""And after every round, but never more often than this."""
HEARTBEAT_S = 10.0
"""Source: libp2p.md T7 asks for 10 to 20 s."""
HEARTBEATS_MISSED = 2
REDIAL_S = (1.0, 60.0)
"""First and longest pause between attempts to reach a peer that is away."""
FORGET_S = 3600.0
"""A peer that has been away for this long is no longer dialed. Source: guess."""
PEERS_MAX = 1000
"""Addresses remembered (Bitcoin keeps a bounded table for the same reason)."""
ADDRESSES_PER_PEER = 4
STRIKES = 5
STRIKES_S = 600.0
"""So many wire errors in so many seconds: cut off for as long (the shape of libp2p's fail2ban advice)."""

log = logging.getLogger(__name__)


class Incompatible(LocalError):
    """A peer we were told to join takes part in another run."""

    exit_code = 5


class NobodyThere(LocalError):
    """None of the peers we were told to join could be reached."""

    exit_code = 3


@dataclass(slots=True)
class Member:
    """What we know of one peer; everything but ``is_up`` is its own claim."""

    name: str = ""
    addresses: tuple[str, ...] = ()
    round: int = 0
    is_up: bool = False
    is_dialing: bool = False
    missed: int = 0
    away_since: float = 0.0
    strikes: deque[float] = field(default_factory=lambda: deque(maxlen=STRIKES))


class Membership:
    """The members of one run as one peer sees them.

    Args:
        manifest: our run.
        name: our display name.
        post: takes ``PeerUp`` and ``PeerDown`` to the node; never blocks.
        tell: takes a line for the user, e.g. that a peer of another run was met.
        traffic: where bytes and rejections are counted.
    """

    def __init__(
        self,
        manifest: RunManifest,
        name: str,
        post: Callable[[Event], None],
        tell: Callable[[str], None],
        traffic: Traffic,
    ) -> None:
        self.topic = f"gossip-peer/2/{manifest.fingerprint.hex()}"
        self.round = 0
        self.members: dict[str, Member] = {}
        self._manifest = manifest
        self._name = name
        self._post = post
        self._tell = tell
        self._traffic = traffic
        self._transport: Transport | None = None
        self._nursery: trio.Nursery | None = None
        self._changed = trio.Event()
        self._round_done = trio.Event()
        self._jitter = random.Random()  # spreads redials, decides nothing

    # -- life

    def use(self, transport: Transport) -> None:
        """Take the transport; before anything else."""
        self._transport = transport

    async def run(self) -> None:
        """Announce, listen for heartbeats and redial until cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._announce_forever)
                self._nursery.start_soon(self._heartbeat_forever)
                await trio.sleep_forever()
        finally:
            self._nursery = None  # connections that end from now on are ours to end

    async def join(self, addresses: tuple[str, ...], within_s: float, *, required: bool) -> None:
        """Dial all addresses at once, for up to ``within_s`` seconds, and greet whoever answers.

        Args:
            required: whether at least one must be reached; otherwise failures are told and retried later.

        Raises:
            LocalError: an address is malformed; nobody was reached; the one reached takes part in another run.
        """
        problems: dict[str, LocalError] = {}

        async def attempt(address: str) -> None:
            try:
                problem = await self._join_one(address, within_s)
            except LocalError as error:
                problem = error
            if problem:
                problems[address] = problem

        async with trio.open_nursery() as nursery:
            for address in addresses:
                nursery.start_soon(attempt, address)
        if not problems:
            return
        worst = next((error for error in problems.values() if not isinstance(error, NobodyThere)), None)
        if worst or (required and len(problems) == len(addresses)):
            raise worst or NobodyThere("; ".join(str(error) for error in problems.values()))
        for error in problems.values():
            self._tell(f"{error} (going on without it)")

    async def _join_one(self, address: str, within_s: float) -> NobodyThere | None:
        """Reach and greet one peer; return what was wrong last if it did not succeed in time."""
        assert self._transport
        problem = NobodyThere(f"cannot join {address}: no answer within {within_s:g} s")
        with trio.move_on_after(within_s):
            while True:
                try:
                    peer = await self._transport.dial(address)
                    self._remember(peer, "", (address,), 0)
                    await self._greet(peer)
                except RemoteError as error:
                    problem = NobodyThere(
                        f"cannot join {address} within {within_s:g} s: {error.detail or error}"
                    )
                else:
                    return None
                await trio.sleep(REDIAL_S[0])
        return problem

    async def wait_for(self, count: int, seconds: float) -> int:
        """Wait until ``count`` other peers are up, at most ``seconds``; return how many are."""
        with trio.move_on_after(seconds):
            while self.up_count < count:
                await self._changed.wait()
        return self.up_count

    async def say_goodbye(self) -> None:
        """Announce that we are leaving; best effort."""
        assert self._transport
        await self._transport.announce(self.topic, wire.encode(self._presence(leaving=True)))

    @property
    def up_count(self) -> int:
        """How many other peers are up."""
        return sum(member.is_up for member in self.members.values())

    def all_reached(self, round: int) -> bool:
        """Whether every peer that is up has completed ``round`` rounds, by its own word."""
        return all(member.round >= round for member in self.members.values() if member.is_up)

    def addresses_up(self) -> tuple[str, ...]:
        """Return one address of every peer that is up, in order of peer ids."""
        return tuple(
            member.addresses[0]
            for _, member in sorted(self.members.items())
            if member.is_up and member.addresses
        )

    def display_name(self, peer: str) -> str:
        """Return the peer's name, or the last letters of its id."""
        member = self.members.get(peer)
        return member.name if member and member.name else peer[-6:]

    # -- what happens to us

    def on_announced(self, author: str, frame: bytes) -> None:
        """Take a presence announcement; anything else than one of our run is ignored and counted."""
        try:
            message = wire.decode(frame)
        except RemoteError as error:
            self._traffic.rejected[error.reason] += 1
            return
        if (
            not isinstance(message, Presence)
            or message.run != self._manifest.fingerprint
            or self._is_us(author)
        ):
            return
        if message.leaving:
            self._down(author, "left")
            return
        member = self._remember(author, message.name, message.addresses, message.round)
        if member and member.is_up:
            self._up(author, message.round)
        else:
            self._seek(author)

    def on_connection(self, peer: str, connected: bool) -> None:
        """Take a change of connection: a lost one is dialed again at once, and the peer is down if that fails."""
        member = self.members.get(peer)
        if connected and self._is_banned(peer) and self._nursery and self._transport:
            self._nursery.start_soon(self._transport.drop, peer)
        elif not connected and member and member.is_up:
            self._seek(peer)

    async def serve_control(self, stream: Stream) -> None:
        """Answer one control question: ``Hello`` or ``Ping``.

        Raises:
            RemoteError: it was neither.
        """
        question = await receive_message(stream, ANSWER_S, self._traffic)
        await send_message(stream, self._answer(stream.peer, question), self._traffic)
        await stream.finish()

    def progressed(self, round: int) -> None:
        """Note that we have completed ``round`` rounds; it is announced soon."""
        self.round = round
        self._round_done.set()

    def suspect(self, peer: str) -> None:
        """Check on a peer that missed a deadline: it is asked for a heartbeat at once."""
        if self._nursery and peer in self.members:
            self._nursery.start_soon(self._check_heartbeat, peer)

    def strike(self, peer: str, reason: str) -> None:
        """Count a fault of a peer; after ``STRIKES`` of them in ``STRIKES_S`` seconds it is cut off for as long."""
        self._traffic.rejected[reason] += 1
        member = self.members.get(peer)
        if member is None:
            return
        member.strikes.append(trio.current_time())
        if self._is_banned(peer):
            self._tell(f"peer {self.display_name(peer)} ({peer}) is cut off for {STRIKES_S:.0f} s: {reason}")
            self._down(peer, reason)
            if self._nursery and self._transport:
                self._nursery.start_soon(self._transport.drop, peer)

    # -- greeting

    def _hello(self) -> Hello:
        assert self._transport
        return Hello(
            self._manifest.fields(),
            self._name,
            self.round,
            self._transport.addresses[:ADDRESSES_PER_PEER],
            self.addresses_up()[: wire.LIST_ITEMS_MAX],
        )

    def _answer(self, peer: str, question: Message) -> Message:
        if self._is_banned(peer):
            return Refusal("busy", "cut off for a while after repeated faults")
        match question:
            case Hello():
                ours = self._manifest.fields()
                if difference := first_difference(ours, question.manifest):
                    self._traffic.rejected["manifest"] += 1
                    self._tell(f"refused peer {peer} of another run: {difference}")
                    return Refusal("manifest", first_difference(question.manifest, ours) or "")
                answer = self._hello()
                self._welcome(peer, question)
                return answer
            case Ping():
                if peer in self.members and self.members[peer].is_up:
                    self._up(peer, question.round)
                return Ping(self.round)
            case _:
                raise RemoteError("malformed", "a hello or a ping was expected")

    async def _greet(self, peer: str) -> None:
        """Exchange manifests with a connected peer; it is up when this returns.

        Raises:
            Incompatible: it takes part in another run.
            RemoteError: no sensible answer.
        """
        assert self._transport
        answer = await ask(self._transport, peer, self._hello(), self._traffic)
        match answer:
            case Hello():
                if difference := first_difference(self._manifest.fields(), answer.manifest):
                    raise Incompatible(f"peer {peer} takes part in another run: {difference}")
                self._welcome(peer, answer)
            case Refusal(reason) if reason != "manifest":
                raise RemoteError(reason, answer.detail)
            case Refusal():
                raise Incompatible(f"peer {peer} takes part in another run: {answer.detail}")
            case _:
                raise RemoteError("malformed", "a hello was expected")

    def _welcome(self, peer: str, hello: Hello) -> None:
        self._remember(peer, hello.name, hello.addresses, hello.round)
        self._up(peer, hello.round)
        for address in hello.known:
            other = address.rpartition("/p2p/")[2]
            # Whoever is up already has been greeted: greeting it again would never end.
            if other and not self._is_us(other) and not (other in self.members and self.members[other].is_up):
                self._remember(other, "", (address,), 0)
                self._seek(other)

    def _remember(self, peer: str, name: str, addresses: tuple[str, ...], round: int) -> Member | None:
        """Note what a peer says of itself; None if the table is full and it is not in it."""
        if peer not in self.members:
            if len(self.members) >= PEERS_MAX:
                return None
            self.members[peer] = Member(away_since=trio.current_time())
        member = self.members[peer]
        member.name = name[:32] or member.name
        # Only addresses that name this very peer: the handshake then proves them, and nobody can point us elsewhere.
        own = tuple(address for address in addresses if address.endswith(f"/p2p/{peer}"))
        member.addresses = own[:ADDRESSES_PER_PEER] or member.addresses
        member.round = max(member.round, round) if member.is_up else round
        return member

    # -- up and down

    def _up(self, peer: str, round: int) -> None:
        member = self.members.get(peer)
        if member is None or self._is_banned(peer):
            return
        was_up, member.is_up = member.is_up, True
        member.round = round
        member.missed = 0
        self._post(PeerUp(peer, round))
        if not was_up:
            self._tell(f"peer {self.display_name(peer)} is up ({peer}), {self.up_count} in all")
            self._wake()

    def _down(self, peer: str, reason: str) -> None:
        member = self.members.get(peer)
        if member is None or not member.is_up:
            return
        member.is_up = False
        member.away_since = trio.current_time()
        self._post(PeerDown(peer))
        self._tell(f"peer {self.display_name(peer)} is down: {reason}; {self.up_count} left")
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _seek(self, peer: str) -> None:
        """Dial a peer and greet it, in the background, once at a time."""
        member = self.members.get(peer)
        if member and not member.is_dialing and not self._is_banned(peer) and self._nursery:
            member.is_dialing = True
            self._nursery.start_soon(self._seek_until_found, peer, member)

    async def _seek_until_found(self, peer: str, member: Member) -> None:
        assert self._transport
        pause_s = REDIAL_S[0]
        try:
            while True:
                # A connection lost again in the meantime was not told to anybody else: this search goes on.
                if await self._reach(peer, member) and (
                    peer not in self.members or self._transport.is_connected(peer)
                ):
                    return
                self._down(peer, "connection lost")
                if trio.current_time() - member.away_since > FORGET_S:
                    del self.members[peer]
                    return
                await trio.sleep(pause_s * self._jitter.uniform(0.5, 1.0))
                pause_s = min(2 * pause_s, REDIAL_S[1])
                if member.is_up or self._is_banned(peer):
                    return
        finally:
            member.is_dialing = False

    async def _reach(self, peer: str, member: Member) -> bool:
        """Try to connect and greet once; return whether the search is over."""
        assert self._transport
        try:
            if not self._transport.is_connected(peer):
                await self._dial_any(member.addresses)
            await self._greet(peer)
        except Incompatible as error:
            self._down(peer, "another run")
            self._tell(str(error))
            del self.members[peer]
            return True
        except (RemoteError, LocalError) as error:  # LocalError: an address that a peer made up
            log.debug("cannot reach %s: %s", peer, error)
            return False
        return True

    async def _dial_any(self, addresses: tuple[str, ...]) -> None:
        """Dial all addresses of a peer at once; return when the first answers."""
        assert self._transport
        failures: list[Exception] = []
        async with trio.open_nursery() as nursery:

            async def attempt(address: str) -> None:
                assert self._transport
                try:
                    await self._transport.dial(address)
                    nursery.cancel_scope.cancel()
                except (RemoteError, LocalError) as error:
                    failures.append(error)

            for address in addresses:
                nursery.start_soon(attempt, address)
        if len(failures) == len(addresses):
            raise failures[0] if failures else Unreachable("no address known")

    # -- watching

    async def _announce_forever(self) -> None:
        assert self._transport
        while True:
            await self._transport.announce(self.topic, wire.encode(self._presence(leaving=False)))
            await trio.sleep(PRESENCE_GAP_S)
            with trio.move_on_after(PRESENCE_S - PRESENCE_GAP_S):
                await self._round_done.wait()
            self._round_done = trio.Event()

    def _presence(self, *, leaving: bool) -> Presence:
        assert self._transport
        addresses = self._transport.addresses[:ADDRESSES_PER_PEER]
        return Presence(self._manifest.fingerprint, self._name, self.round, addresses, leaving)

    async def _heartbeat_forever(self) -> None:
        while True:
            await trio.sleep(HEARTBEAT_S)
            async with trio.open_nursery() as nursery:
                for peer in [peer for peer, member in self.members.items() if member.is_up]:
                    nursery.start_soon(self._check_heartbeat, peer)

    async def _check_heartbeat(self, peer: str) -> None:
        assert self._transport
        try:
            answer = await ask(self._transport, peer, Ping(self.round), self._traffic)
        except RemoteError:
            answer = None
        member = self.members.get(peer)
        if member is None or not member.is_up:
            return
        if isinstance(answer, Ping):
            self._up(peer, answer.round)
            return
        member.missed += 1
        if member.missed >= HEARTBEATS_MISSED:
            self._down(peer, f"{member.missed} heartbeats missed")
            await self._transport.drop(peer)
            self._seek(peer)

    def _is_us(self, peer: str) -> bool:
        return self._transport is not None and peer == self._transport.peer_id

    def _is_banned(self, peer: str) -> bool:
        member = self.members.get(peer)
        return (
            member is not None
            and len(member.strikes) == STRIKES
            and trio.current_time() - member.strikes[0] < STRIKES_S
        )
