"""The world of ``gossip.membership``: dials, asks, answers, announces, drops and waits as that machine says.

It turns what the transport reports into events and carries the actions out, each in a task of its own, so that no
peer that hangs holds another up. It decides nothing; what is decided, and why, stands in ``gossip/membership.py``.
"""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import assert_never

import trio

from gossip import wire
from gossip.errors import LocalError, RemoteError
from gossip.events import Event as NodeEvent
from gossip.events import PeerUp
from gossip.manifest import RunManifest
from gossip.membership import Membership as MembershipMachine
from gossip.membership_events import (
    Action,
    Announce,
    Answer,
    Answered,
    Ask,
    Asked,
    AskFailed,
    Connected,
    Dial,
    DialBack,
    Dialed,
    DialFailed,
    Disconnected,
    Drop,
    Event,
    Heard,
    Join,
    JoinEnded,
    Leave,
    Offered,
    Post,
    Progressed,
    Reject,
    SetTimer,
    Start,
    Strike,
    Suspect,
    Tell,
    TimerFired,
)
from gossip.membership_limits import DIAL_S
from gossip.messages import Hello, Message
from peer.exchange import Traffic, ask, receive_question, send_message
from peer.network.transport import Stream, Transport, Unreachable
from peer.signing import is_signed
from peer.standing import Standing
from topology.announced import Announced

log = logging.getLogger(__name__)


class Membership:
    """The members of one run as one peer sees them.

    Args:
        manifest: our run.
        name: our display name.
        post: takes ``PeerUp`` and ``PeerDown`` to the node; never blocks.
        tell: takes a line for the user, e.g. that a peer of another run was met.
        traffic: where bytes and rejections are counted.
        data: what we announce of our data, if our topology asks for it.
        incarnation: number of this life of ours.
    """

    def __init__(
        self,
        manifest: RunManifest,
        name: str,
        post: Callable[[NodeEvent], None],
        tell: Callable[[str], None],
        traffic: Traffic,
        data: Announced | None = None,
        incarnation: int = 0,
    ) -> None:
        self.topic = f"gossip-peer/3/{manifest.fingerprint.hex()}"
        self._machine = MembershipMachine(manifest, name, random.Random(), data, is_signed)
        self._incarnation = incarnation
        self.members = self._machine.members.by_id
        self.standing = Standing(self._machine.members, lambda claim: self._happened(Offered(claim)))
        self._post = post
        self._tell = tell
        self._traffic = traffic
        self._transport: Transport | None = None
        self._nursery: trio.Nursery | None = None
        self._waiting: list[Callable[[], Awaitable[None]]] = []  # actions that came before ``run``
        self._is_over = False  # ``run`` has been cancelled
        self._joins: dict[int, trio.MemorySendChannel[LocalError | None]] = {}
        self._join_numbers = itertools.count()

    # -- life

    def use(self, transport: Transport) -> None:
        """Take the transport; what comes before it is ignored."""
        self._transport = transport
        self._happened(Start(transport.peer_id, transport.addresses, self._incarnation))

    async def run(self) -> None:
        """Carry out what the machine says until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for act in self._waiting:
                nursery.start_soon(act)
            self._waiting.clear()
            try:
                await trio.sleep_forever()
            finally:
                # Before the tasks have ended: what comes until then, or later, is nothing to us, and connections that
                # end from now on are ours to end.
                self._is_over = True
                self._machine.handle(Leave(), trio.current_time())

    async def join(self, addresses: tuple[str, ...], within_s: float, *, required: bool) -> None:
        """Dial all addresses at once, for up to ``within_s`` seconds, and greet whoever answers. Needs ``run``.

        Args:
            required: whether at least one must be reached; failures that are none are told and retried later.

        Raises:
            LocalError: ``required``, and an address is malformed, nobody was reached, or one that was takes part in
                another run.
        """
        number = next(self._join_numbers)
        self._joins[number], ended = trio.open_memory_channel[LocalError | None](1)
        self._happened(Join(number, addresses, within_s, required))
        if error := await ended.receive():
            raise error

    async def wait_for(self, count: int, seconds: float) -> int:
        """Wait until ``count`` other peers are up, at most ``seconds``; return how many are."""
        with trio.move_on_after(seconds):
            while self.up_count < count:
                await self.standing.change()
        return self.up_count

    async def say_goodbye(self) -> None:
        """Announce that we are leaving, best effort; from then on nobody is dialed or asked."""
        for action in self._machine.handle(Leave(), trio.current_time()):
            assert isinstance(action, Announce)
            await self._announce(action)

    # -- who is there

    @property
    def up_count(self) -> int:
        """How many other peers are up."""
        return self._machine.members.up_count

    def all_reached(self, round: int) -> bool:
        """Whether every peer that is up has completed ``round`` rounds, by its own word."""
        return self._machine.members.all_reached(round)

    def addresses_to_remember(self) -> tuple[str, ...]:
        """Return the addresses to try after a restart, those of the peers that were up longest first."""
        return self._machine.members.to_remember(trio.current_time())

    def display_name(self, peer: str) -> str:
        """Return the peer's name, or the last letters of its id."""
        return self._machine.members.display_name(peer)

    # -- what happens to us

    def on_announced(self, author: str, frame: bytes) -> None:
        """Take a presence announcement; what cannot be read is counted."""
        try:
            message = wire.decode(frame)
        except RemoteError as error:
            self._traffic.rejected[error.reason] += 1
        else:
            self._happened(Heard(author, message))

    def on_connection(self, peer: str, connected: bool) -> None:
        """Take a change of connection."""
        self._happened(Connected(peer) if connected else Disconnected(peer))

    async def serve_control(self, stream: Stream) -> None:
        """Answer one control question: ``Hello`` or ``Ping``.

        Raises:
            RemoteError: it was neither.
        """
        question = await receive_question(stream, self._traffic)
        answer = self._happened(Asked(stream.peer, question))
        if answer is None:
            raise RemoteError("malformed", "a hello or a ping was expected")
        await send_message(stream, answer, self._traffic)
        await stream.finish()

    def progressed(self, round: int) -> None:
        """Note that we have completed ``round`` rounds; it is announced soon."""
        self._happened(Progressed(round))

    def suspect(self, peer: str) -> None:
        """Check on a peer that missed a deadline: it is asked for a heartbeat at once."""
        self._happened(Suspect(peer))

    def strike(self, peer: str, reason: str) -> None:
        """Count a fault of a peer; too many of them and it is cut off for a while."""
        self._traffic.rejected[reason] += 1
        self._happened(Strike(peer, reason))

    # -- what we do

    def _happened(self, event: Event) -> Message | None:
        """Give an event to the machine and do what it says; return the answer, if it was a question."""
        answer = None
        for action in self._machine.handle(event, trio.current_time()):
            if isinstance(action, Answer):
                answer = action.message
            else:
                self._perform(action)
        return answer

    def _perform(self, action: Action) -> None:
        match action:
            case Dial():
                self._start(partial(self._dial, action))
            case Ask():
                self._start(partial(self._ask, action))
            case Announce():
                self._start(partial(self._announce, action))
            case Drop():
                self._start(partial(self._drop, action))
            case SetTimer():
                self._start(partial(self._wait, action))
            case Post():
                if isinstance(action.event, PeerUp) and self._transport:
                    self._transport.trust(action.event.peer)
                self._post(action.event)
                self.standing.has_changed()
            case Tell():
                self._tell(action.text)
            case Reject():
                self._traffic.rejected[action.reason] += 1
            case JoinEnded():
                self._joins.pop(action.number).send_nowait(action.error)
            case Answer():
                raise AssertionError("only a question is answered")
            case _:
                assert_never(action)

    def _start(self, act: Callable[[], Awaitable[None]]) -> None:
        if self._is_over:
            return
        if self._nursery:
            self._nursery.start_soon(act)
        else:
            self._waiting.append(act)

    async def _dial(self, action: Dial) -> None:
        assert self._transport
        if action.afresh:
            await self._transport.drop(action.peer)
        try:
            if isinstance(action.errand, DialBack):
                peer = await self._transport.probe(action.errand.address)
            elif action.peer and self._transport.is_connected(action.peer):
                peer = action.peer
            else:
                peer = await self._dial_any(action.addresses)
        except (RemoteError, LocalError) as error:
            log.debug("cannot reach %s at %s: %s", action.peer, action.addresses, error)
            self._happened(DialFailed(action.errand, error))
        else:
            self._happened(Dialed(action.errand, peer))

    async def _dial_any(self, addresses: tuple[str, ...]) -> str:
        """Dial all addresses at once, for ``DIAL_S``; return the peer that answers first."""
        assert self._transport
        transport, failures = self._transport, list[RemoteError | LocalError]()
        reached: list[str] = []
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + DIAL_S

            async def attempt(address: str) -> None:
                try:
                    reached.append(await transport.dial(address))
                    nursery.cancel_scope.cancel()
                except (RemoteError, LocalError) as error:
                    failures.append(error)

            for address in addresses:
                nursery.start_soon(attempt, address)
        if reached:
            return reached[0]
        if not failures:
            raise Unreachable(f"no answer within {DIAL_S:g} s" if addresses else "no address known")
        # What others may mend counts before what is malformed: one bad address does not make the others bad.
        raise min(failures, key=lambda error: isinstance(error, LocalError))

    async def _ask(self, action: Ask) -> None:
        if isinstance(action.question, Hello):
            with self.standing.greeting(action.peer):
                await self._ask_and_tell(action)
        else:
            await self._ask_and_tell(action)

    async def _ask_and_tell(self, action: Ask) -> None:
        assert self._transport
        try:
            answer = await ask(self._transport, action.peer, action.question, self._traffic)
        except RemoteError as error:
            log.debug("%s does not answer: %s", action.peer, error)
            self._happened(AskFailed(action.errand, error))
        else:
            self._happened(Answered(action.errand, answer))

    async def _announce(self, action: Announce) -> None:
        assert self._transport
        await self._transport.announce(self.topic, wire.encode(action.presence))

    async def _drop(self, action: Drop) -> None:
        assert self._transport
        await self._transport.drop(action.peer)

    async def _wait(self, action: SetTimer) -> None:
        await trio.sleep(action.delay_s)
        self._happened(TimerFired(action.timer))
