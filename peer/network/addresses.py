"""Multiaddrs as a user types them: check them, split them, and find the ones under which others reach us.

Only ``/ip4|ip6|dns|dns4|dns6/<host>/tcp/<port>/p2p/<peer id>`` is accepted: TCP is the only network we speak. Knows
the sockets of this machine; opens no connection.
"""

from __future__ import annotations

import errno
import ipaddress
import socket

import base58
import trio

from gossip.errors import LocalError

EXAMPLE = "/ip4/192.0.2.7/tcp/4001/p2p/12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5"
LISTEN_EXAMPLE = "/ip4/0.0.0.0/tcp/4001"
WILDCARDS = ("0.0.0.0", "::")
_FAMILIES = ("ip4", "ip6", "dns", "dns4", "dns6")


def peer_of(address: str) -> str:
    """Return the peer id at the end of a full address.

    Raises:
        LocalError: malformed; the message shows a valid example.
    """
    transport, _, peer = address.partition("/p2p/")
    try:
        if not is_peer_id(peer):
            raise ValueError("it does not end in /p2p/<peer id>")
        split(transport)
    except ValueError as error:
        raise LocalError(f"malformed address {address!r}: {error}; valid is for example {EXAMPLE}") from None
    return peer


def with_peer(address: str, peer: str) -> str:
    """Return an address to announce, ending in our own peer id.

    Raises:
        LocalError: malformed, or it ends in another peer id.
    """
    full = address if "/p2p/" in address else f"{address}/p2p/{peer}"
    if peer_of(full) != peer:
        raise LocalError(f"cannot announce {address}: it names another peer, we are {peer}")
    return full


def listen_endpoint(address: str) -> tuple[str, str, int]:
    """Return (``"ip4"`` or ``"ip6"``, IP, port) of an address to listen on.

    Raises:
        LocalError: malformed, or a name instead of an IP.
    """
    try:
        family, ip, port = split(address)
        if family not in ("ip4", "ip6"):
            raise ValueError("an IP address is needed to listen on")
    except ValueError as error:
        text = f"malformed listen address {address!r}: {error}; valid is for example {LISTEN_EXAMPLE}"
        raise LocalError(text) from None
    return family, ip, port


def split(address: str) -> tuple[str, str, int]:
    """Return (family, host, port) of ``/<family>/<host>/tcp/<port>``, or raise ``ValueError`` saying what is wrong."""
    parts = address.split("/")
    if len(parts) != 5 or parts[0] != "" or parts[3] != "tcp":
        raise ValueError("it is not of the form /ip4/<IP>/tcp/<port>")
    _, family, host, _, port_text = parts
    if family not in _FAMILIES:
        raise ValueError(f"{family!r} is not one of {', '.join(_FAMILIES)}")
    if family == "ip4":
        ipaddress.IPv4Address(host)
    elif family == "ip6":
        ipaddress.IPv6Address(host)
    elif not host:
        raise ValueError("the name is empty")
    if not (port_text.isascii() and port_text.isdigit() and int(port_text) <= 65535):
        raise ValueError(f"{port_text!r} is not a port (0 to 65535)")
    return family, host, int(port_text)


async def resolved(address: str) -> list[str]:
    """Return ``address`` with its name, if it has one, replaced by at most four IPs.

    By the system's resolver: the library's own asks DNS servers only, and finds neither ``localhost`` nor what is in
    the hosts file.

    Raises:
        socket.gaierror: the name cannot be resolved.
    """
    transport, _, peer = address.partition("/p2p/")
    family, host, port = split(transport)
    if family in ("ip4", "ip6"):
        return [address]
    kind = {"dns": socket.AF_UNSPEC, "dns4": socket.AF_INET, "dns6": socket.AF_INET6}[family]
    found = await trio.socket.getaddrinfo(host, port, kind, socket.SOCK_STREAM)
    names = {socket.AF_INET: "ip4", socket.AF_INET6: "ip6"}
    return [f"/{names[each]}/{endpoint[0]}/tcp/{port}/p2p/{peer}" for each, *_, endpoint in found[:4]]


def is_peer_id(text: str) -> bool:
    """Whether ``text`` is a base58 peer id of an Ed25519 key (the only kind that this project makes)."""
    try:
        raw = base58.b58decode(text)
    except ValueError:
        return False
    return len(raw) == 38 and raw[:6] == bytes((0x00, 0x24, 0x08, 0x01, 0x12, 0x20))


def require_free_port(address: str) -> None:
    """Make sure that the address can be listened on.

    The library's own socket shares its port with any other program of the same user (``SO_REUSEPORT``), so a second
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


def interface_ips(family: str) -> list[str]:
    """Return the IPs of this machine's interfaces, the one towards the internet first, loopback last."""
    kind, far, loopback = (
        (socket.AF_INET, "192.0.2.1", "127.0.0.1")
        if family == "ip4"
        else (socket.AF_INET6, "2001:db8::1", "::1")
    )
    found: dict[str, None] = {}
    with socket.socket(kind, socket.SOCK_DGRAM) as probe:
        try:
            # Sends nothing: only asks the routing table which of our addresses it would use.
            probe.connect((far, 9))
            found[probe.getsockname()[0]] = None
        except OSError:
            pass  # no route out: a machine without network
    try:
        for *_, endpoint in socket.getaddrinfo(socket.gethostname(), None, kind, socket.SOCK_STREAM):
            found[str(endpoint[0])] = None
    except OSError:
        pass  # the machine's own name does not resolve: nothing lost
    outward = [ip for ip in found if not ipaddress.ip_address(ip.partition("%")[0]).is_loopback]
    return [*outward, loopback]
