"""Which transport speaks an address: chosen by the scheme of the address.

The one place that knows all transports. A new one is a file that declares a ``TransportKind`` (``transport.py``), a
line in ``TRANSPORTS`` below, and a line in ``tests/transport/networks.py`` that says how the conformance suite runs
it. Reading the catalogue imports no network library: that happens when a kind makes a transport.
"""

from __future__ import annotations

from gossip.errors import LocalError
from peer.network import addresses, memory
from peer.network.group import OPEN_GROUP, Group
from peer.network.identity import peer_id
from peer.network.limits import DEFAULT_LIMITS, Limits
from peer.network.transport import TransportFactory, TransportKind


def transport_for(
    listen: str,
    *,
    private_key: bytes,
    group: Group = OPEN_GROUP,
    announce: tuple[str, ...] = (),
    limits: Limits = DEFAULT_LIMITS,
) -> TransportFactory:
    """Return a factory of transports for a peer that listens at an address.

    Args:
        listen: the address; its scheme chooses the transport.
        private_key: who the peer is, 32 raw Ed25519 bytes.
        group: who may connect (``group.py``).
        announce: addresses to tell others instead of the ones we listen on (behind a router); our peer id is added
            to those that do not end in it.
        limits: times and counts to keep to.

    Raises:
        LocalError: ``listen`` or ``announce`` is malformed, or of a scheme that no transport has.
    """
    kind = _kind_of(listen)
    own = peer_id(private_key)
    told = tuple(_own_address(address, own) for address in announce)
    return kind.make(private_key=private_key, group=group, listen=listen, announce=told, limits=limits)


def check_listen(address: str) -> None:
    """Refuse an address that no transport can listen on, before anything heavy is imported.

    Raises:
        LocalError: malformed, or of a scheme that no transport has; the message shows valid ones; or a port that is
            taken.
    """
    _kind_of(address).check_listen(address)


def peer_of(address: str) -> str:
    """Return the peer id at the end of a full address to dial.

    Raises:
        LocalError: malformed, or of a scheme that no transport has; the message shows valid ones.
    """
    return _kind_of(address, to_dial=True).peer_of(address)


def scheme_of(address: str) -> str:
    """Return what an address says of its transport: its protocols without host, values and peer id.

    ``tcp`` for ``/ip4/192.0.2.7/tcp/4001``, ``tcp/ws`` for ``/dns4/example.org/tcp/443/ws``, ``memory`` for
    ``/memory/alice/p2p/alice``; empty where nothing is said (``/ip4/192.0.2.7``, or no multiaddr at all).
    """
    place, _, _ = address.partition("/p2p/")
    match place.split("/"):
        case ["", host, _, protocol, _, *more] if host in addresses.HOSTS:
            return "/".join([protocol, *more])
        case ["", protocol, _] if protocol not in addresses.HOSTS:
            return protocol
        case _:
            return ""


def _kind_of(address: str, *, to_dial: bool = False) -> TransportKind:
    # What says nothing of its transport is refused as no address over TCP.
    scheme = scheme_of(address) or "tcp"
    if scheme not in TRANSPORTS:
        role, ending = ("address", "/p2p/<peer id>") if to_dial else ("listen address", "")
        known = " or ".join(f"{kind.listen_example}{ending} ({name})" for name, kind in TRANSPORTS.items())
        raise LocalError(
            f"malformed {role} {address!r}: there is no transport for {scheme!r}; valid is for example {known}"
        )
    return TRANSPORTS[scheme]


def _own_address(address: str, own: str) -> str:
    full = address if "/p2p/" in address else f"{address}/p2p/{own}"
    if peer_of(full) != own:
        raise LocalError(f"cannot announce {address}: it names another peer, we are {own}")
    return full


def _libp2p_transport(
    *, private_key: bytes, group: Group, listen: str, announce: tuple[str, ...], limits: Limits
) -> TransportFactory:
    # A second of imports, for those who go on the network only.
    from peer.network.libp2p import libp2p_transport

    return libp2p_transport(
        private_key=private_key, group=group, listen=listen, announce=announce, limits=limits
    )


TRANSPORTS: dict[str, TransportKind] = {
    "tcp": TransportKind(
        addresses.LISTEN_EXAMPLE, addresses.require_free_port, addresses.peer_of, _libp2p_transport
    ),
    "memory": memory.KIND,
}
"""Scheme of an address -> the transport that speaks it."""
