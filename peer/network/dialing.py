"""Who is dialed, and where: one attempt at a time per peer, addresses that worked are remembered.

Ours instead of the library's, which remembers a failed peer for a minute and dials on its own. It is told how to
connect to one IP and who is connected; it knows nothing of libp2p, streams or protocols.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable

import trio

from gossip.errors import LocalError
from peer.network.addresses import Resolver, peer_of
from peer.network.group import NOT_LISTED, OTHER_GROUP
from peer.network.limits import Limits
from peer.network.transport import Unreachable

log = logging.getLogger(__name__)

ADDRESSES_PER_PEER = 4
"""Addresses remembered for a peer id, the last one that worked first. Source: ux-reliability B7."""
PEERS_MAX = 1000
"""Peers whose addresses are remembered, the last ones dialed. Source: ux-reliability B7."""
_CAUSES_MAX = 10  # how deep an error is looked into


class ConnectFailed(Exception):
    """There is no connection to be had at this IP; another one of the same peer may do."""


class _Attempt:
    """One attempt to dial a peer, shared by all who want it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.done = trio.Event()
        self.error = ""  # what to tell the user; empty if it succeeded


class Dialer:
    """Dials peers and remembers where they were.

    Args:
        own: our own peer id.
        limits: ``dial_s`` and ``connections_max`` are kept here.
        connect: (full address with an IP, peer id) -> when it returns, there was a connection; raises
            ``ConnectFailed`` if the next IP of the same name is worth trying.
        probe: the same, but it returns once that peer has proven that it is there, and no connection stays.
        is_connected: whether a connection to a peer is open.
        is_full: whether there is no room for another connection.
        nursery: runs the attempts, so that an impatient caller does not end one for others.
    """

    def __init__(
        self,
        own: str,
        limits: Limits,
        *,
        connect: Callable[[str, str], Awaitable[None]],
        probe: Callable[[str, str], Awaitable[None]],
        is_connected: Callable[[str], bool],
        is_full: Callable[[], bool],
        nursery: trio.Nursery,
    ) -> None:
        self._own = own
        self._limits = limits
        self._connect = connect
        self._probe = probe
        self._is_connected = is_connected
        self._is_full = is_full
        self._nursery = nursery
        self._attempts: dict[str, _Attempt] = {}  # by peer id
        self._known: dict[str, list[str]] = {}  # peer id -> addresses that dialed well, best first
        self._resolver = Resolver()

    async def dial(self, address: str) -> str:
        """Connect and return the peer id; see ``Transport.dial``. Concurrent dials of one peer share one attempt.

        Raises:
            LocalError: malformed, or our own address.
            Unreachable: it did not work; the message says what to look at.
        """
        peer = peer_of(address)
        if peer == self._own:
            raise LocalError(f"{address} is this peer's own address: dial somebody else's")
        while not self._is_connected(peer):
            attempt = self._attempts.get(peer)
            if attempt is None:
                attempt = self._attempts[peer] = _Attempt(address)
                self._nursery.start_soon(self._make, attempt, peer)
            await attempt.done.wait()
            if attempt.error and attempt.address == address and not self._is_connected(peer):
                raise Unreachable(attempt.error)
        await trio.lowlevel.checkpoint()
        return peer

    async def probe(self, address: str) -> str:
        """Find out whether a peer is where its address says; see ``Transport.probe``."""
        peer = peer_of(address)
        try:
            with trio.fail_after(self._limits.dial_s):
                await self._first(self._probe, await self._resolver.resolve(address), peer)
        except trio.TooSlowError:
            raise Unreachable(f"no answer from {address} within {self._limits.dial_s:g} s") from None
        except Exception as error:
            raise Unreachable(_explain(error, address, peer)) from error
        return peer

    async def redial(self, peer: str) -> None:
        """Connect to a peer at the addresses that have worked before, the last one first.

        Raises:
            Unreachable: none works, or none is known.
        """
        failure = Unreachable(f"not connected to {peer}, and no address of it is known")
        for address in list(self._known.get(peer, ())):
            try:
                await self.dial(address)
                return
            except Unreachable as error:
                failure = error
        raise failure

    async def _make(self, attempt: _Attempt, peer: str) -> None:
        """Carry out one attempt; whatever goes wrong is its ``error``."""
        try:
            if self._is_full():
                attempt.error = f"we have {self._limits.connections_max} connections, no more are allowed"
                return
            with trio.fail_after(self._limits.dial_s):
                await self._first(self._connect, await self._resolver.resolve(attempt.address), peer)
            if self._is_connected(peer):
                self._remember(peer, attempt.address)
            else:
                attempt.error = f"{attempt.address} closed the connection at once"
        except trio.TooSlowError:
            attempt.error = f"no answer from {attempt.address} within {self._limits.dial_s:g} s"
        except Exception as error:
            attempt.error = _explain(error, attempt.address, peer)
            log.debug("dial: %s", attempt.error, exc_info=error)
        finally:
            del self._attempts[peer]
            attempt.done.set()

    async def _first(
        self, connect: Callable[[str, str], Awaitable[None]], addresses: list[str], peer: str
    ) -> None:
        for address in addresses[:-1]:
            try:
                await connect(address, peer)
                return
            except ConnectFailed as error:
                log.debug("dial %s, one of several: %r", address, error)
        await connect(addresses[-1], peer)

    def _remember(self, peer: str, address: str) -> None:
        known = self._known.pop(peer, [])
        if address in known:
            known.remove(address)
        self._known[peer] = [address, *known[: ADDRESSES_PER_PEER - 1]]
        if len(self._known) > PEERS_MAX:
            del self._known[next(iter(self._known))]


def _explain(error: BaseException, address: str, peer: str) -> str:
    """Say in one line what went wrong and what to look at: the library hides it three causes deep."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and len(causes) < _CAUSES_MAX:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    kinds = {type(cause).__name__ for cause in causes}
    if "PeerIDMismatchesPubkey" in kinds or any("Peer ID mismatch" in str(cause) for cause in causes):
        return f"another peer than {peer} answers at {address}: ask its owner for the present address"
    if any(isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE) for cause in causes):
        return f"cannot dial {address}: too many files and connections are open: raise the limit (ulimit -n)"
    if "gaierror" in kinds:
        return f"the name in {address} cannot be resolved: is it spelled right, is there a network?"
    if "OpenConnectionError" in kinds:
        return f"nobody answers at {address}: is the peer running, is the port open?"
    if "HandshakeFailure" in kinds and any(NOT_LISTED in str(cause) for cause in causes):
        return f"{peer} {NOT_LISTED}"
    if "InvalidTag" in kinds:
        return f"{address} answers but breaks off: {OTHER_GROUP}"
    guess = "it is another program, has no room for us, or does not have us on its list"
    return f"{address} answers but breaks off: {guess} ({causes[-1]!r})"
