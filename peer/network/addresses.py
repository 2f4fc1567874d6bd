"""Addresses over TCP as a user types them: check them, split them, and find the ones under which others reach us.

They are multiaddrs of the form ``/ip4|ip6|dns|dns4|dns6/<host>/tcp/<port>/p2p/<peer id>``. Knows the sockets of this
machine; opens no connection, and knows nothing of who dials.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from functools import partial

import trio

from gossip.errors import LocalError
from peer.network.identity import is_peer_id

_EXAMPLE = "/ip4/192.0.2.7/tcp/4001/p2p/12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5"
LISTEN_EXAMPLE = "/ip4/0.0.0.0/tcp/4001"
HOSTS = ("ip4", "ip6", "dns", "dns4", "dns6")
"""How a host may be named in an address."""
_WILDCARDS = ("0.0.0.0", "::")
_RESOLVED_MAX = 4  # addresses of one name that are tried in turn (guess)
_RESOLVING_MAX = 4  # names resolved at a time, abandoned ones included; a user rarely types more (guess)
RESOLVE_S = 10.0
"""Time limit of resolving a name, waiting for a thread included. Source: two questions of a resolver, 5 s each."""


def peer_of(address: str) -> str:
    """Return the peer id at the end of a full address.

    Raises:
        LocalError: malformed; the message shows a valid example.
    """
    place, _, peer = address.partition("/p2p/")
    try:
        if not is_peer_id(peer):
            raise ValueError("it does not end in /p2p/<peer id>")
        _split(place)
    except ValueError as error:
        raise LocalError(f"malformed address {address!r}: {error}; valid is for example {_EXAMPLE}") from None
    return peer


def listen_endpoint(address: str) -> tuple[str, str, int]:
    """Return (``"ip4"`` or ``"ip6"``, IP, port) of an address to listen on.

    Raises:
        LocalError: malformed, or a name instead of an IP.
    """
    try:
        family, ip, port = _split(address)
        if family not in ("ip4", "ip6"):
            raise ValueError("an IP address is needed to listen on")
    except ValueError as error:
        text = f"malformed listen address {address!r}: {error}; valid is for example {LISTEN_EXAMPLE}"
        raise LocalError(text) from None
    return family, ip, port


def _split(address: str) -> tuple[str, str, int]:
    """Return (family, host, port) of ``/<family>/<host>/tcp/<port>``, or raise ``ValueError`` saying what is wrong."""
    parts = address.split("/")
    if len(parts) != 5 or parts[0] != "" or parts[3] != "tcp":
        raise ValueError("it is not of the form /ip4/<IP>/tcp/<port>")
    _, family, host, _, port_text = parts
    if family not in HOSTS:
        raise ValueError(f"{family!r} is not one of {', '.join(HOSTS)}")
    if family == "ip4":
        ipaddress.IPv4Address(host)
    elif family == "ip6":
        ipaddress.IPv6Address(host)
    elif not host:
        raise ValueError("the name is empty")
    if not (port_text.isascii() and port_text.isdigit() and int(port_text) <= 65535):
        raise ValueError(f"{port_text!r} is not a port (0 to 65535)")
    return family, host, int(port_text)


class Resolver:
    """Turns names into IPs, by the system's resolver, in threads of its own.

    libp2p's own resolver asks DNS servers only, and finds neither ``localhost`` nor what is in the hosts file. The
    system's cannot be interrupted: a name that a silent server answers for holds its thread for half a minute. So few
    may do so at a time, and none shares a row with the threads in which the node runs.
    """

    def __init__(self) -> None:
        self._threads = trio.CapacityLimiter(_RESOLVING_MAX)

    async def resolve(self, address: str) -> list[str]:
        """Return a full address with its name, if it has one, replaced by its IPs: at most four addresses.

        Cancelled at once; the thread goes on until the system gives up, and is not waited for.

        Raises:
            socket.gaierror: the name cannot be resolved.
            trio.TooSlowError: not within ``RESOLVE_S``.
        """
        place, _, peer = address.partition("/p2p/")
        family, host, port = _split(place)
        if family in ("ip4", "ip6"):
            return [address]
        kind = {"dns": socket.AF_UNSPEC, "dns4": socket.AF_INET, "dns6": socket.AF_INET6}[family]
        ask = partial(socket.getaddrinfo, host, port, kind, socket.SOCK_STREAM)
        with trio.fail_after(RESOLVE_S):
            answers = await trio.to_thread.run_sync(
                ask,
                abandon_on_cancel=True,  # type: ignore[call-arg] # the stubs that libp2p brings are older than trio
                limiter=self._threads,
            )
        names = {socket.AF_INET: "ip4", socket.AF_INET6: "ip6"}
        return [
            f"/{names[version]}/{endpoint[0]}/tcp/{port}/p2p/{peer}"
            for version, *_, endpoint in answers[:_RESOLVED_MAX]
        ]


def require_free_port(address: str) -> None:
    """Make sure that the address can be listened on.

    libp2p's own socket shares its port with any other program of the same user (``SO_REUSEPORT``), so a second
    peer on a taken port would start and silently receive half of the first one's connections.

    Raises:
        LocalError: taken, forbidden, or not an address of this machine; the message names the port.
    """
    family, ip, port = listen_endpoint(address)
    kind = socket.AF_INET if family == "ip4" else socket.AF_INET6
    with socket.socket(kind, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ip, port))
        except OSError as error:
            match error.errno:
                case errno.EADDRINUSE:
                    cause = (
                        f"port {port} is in use: stop the other program, or take another (0: any free one)"
                    )
                case errno.EACCES:
                    cause = f"port {port} is reserved: choose one above 1023"
                case errno.EADDRNOTAVAIL:
                    cause = f"{ip} is not an address of this machine: listen on 0.0.0.0 for all of them (port {port})"
                case _:
                    cause = f"port {port}: {error.strerror}"
            raise LocalError(f"cannot listen on {address}: {cause}") from error


def reachable_addresses(listen: str, port: int, peer: str) -> tuple[str, ...]:
    """Return the full addresses under which others may reach a peer that listens, loopback last.

    Args:
        listen: the address it was told to listen on; ``0.0.0.0`` and ``::`` stand for every interface.
        port: the port it listens on, which ``listen`` may have left to the system.
        peer: its peer id.
    """
    family, ip, _ = listen_endpoint(listen)
    ips = _interface_ips(family) if ip in _WILDCARDS else [ip]
    return tuple(f"/{family}/{ip}/tcp/{port}/p2p/{peer}" for ip in ips)


def _interface_ips(family: str) -> list[str]:
    """Return the IPs of this machine's interfaces, the one towards the internet first, loopback last."""
    kind, far, loopback = (
        (socket.AF_INET, "192.0.2.1", "127.0.0.1")
        if family == "ip4"
        else (socket.AF_INET6, "2001:db8::1", "::1")
    )
    ips: dict[str, None] = {}  # in order, each once
    with socket.socket(kind, socket.SOCK_DGRAM) as probe:
        try:
            # Sends nothing: only asks the routing table which of our addresses it would use.
            probe.connect((far, 9))
            ips[probe.getsockname()[0]] = None
        except OSError:
            pass  # no route out: a machine without network
    try:
        for *_, endpoint in socket.getaddrinfo(socket.gethostname(), None, kind, socket.SOCK_STREAM):
            ips[str(endpoint[0])] = None
    except OSError:
        pass  # the machine's own name does not resolve: nothing lost
    outward = [ip for ip in ips if not ipaddress.ip_address(ip.partition("%")[0]).is_loopback]
    return [*outward, loopback]
