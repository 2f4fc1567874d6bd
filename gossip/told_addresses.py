"""Which of the addresses that other peers tell are worth keeping.

Whoever dials what others say can be sent anywhere: to a name whose resolution blocks, to a service that listens on the
loopback of this very machine, to the metadata of a cloud. So only plain IP addresses are taken from others, those of
the internet and of local networks; loopback only where we listen nowhere else, as peers of one machine do. What our
own user typed is not looked at here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from gossip.membership_limits import ADDRESS_LETTERS

_IP_FAMILIES = ("ip4", "ip6")
_NAME_FAMILIES = ("dns", "dns4", "dns6", "dnsaddr")
_THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")  # RFC 1122, 3.2.1.3: never a destination

IP = ipaddress.IPv4Address | ipaddress.IPv6Address


def peer_named_by(address: str) -> str:
    """Return the peer id at the end of a multiaddr; empty if it names none."""
    return address.rpartition("/p2p/")[2] if "/p2p/" in address else ""


def is_worth_keeping(address: str, peer: str, own: Sequence[str]) -> bool:
    """Whether an address that others tell may be kept and dialed.

    Args:
        address: a multiaddr, of any form.
        peer: whose address it is said to be; it must end in that peer's id.
        own: our own addresses: others' must be of a kind that we speak, and none of ours.
    """
    place = address.removesuffix(f"/p2p/{peer}")
    if not peer or place == address or len(address) > ADDRESS_LETTERS or not address.isprintable():
        return False
    if any(place == _place(mine) for mine in own):
        return False
    match place.split("/"):
        case ["", ("ip4" | "ip6") as family, host, "tcp", port]:
            return _is_port(port) and _may_be_dialed(family, host, own)
        case ["", scheme, _]:
            # A transport with addresses of its own, such as the in-memory network: only who is on it dials there.
            return scheme not in (*_IP_FAMILIES, *_NAME_FAMILIES) and scheme in map(_scheme, own)
        case _:
            return False


def is_name(address: str) -> bool:
    """Whether an address names its host, which others do not resolve for us."""
    return _scheme(address) in _NAME_FAMILIES


def _place(address: str) -> str:
    return address.partition("/p2p/")[0]


def _scheme(address: str) -> str:
    return address.split("/")[1] if address.startswith("/") else ""


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535


def _may_be_dialed(family: str, host: str, own: Sequence[str]) -> bool:
    ip = _ip(family, host)
    if ip is None or (own and not any(_scheme(mine) in (*_IP_FAMILIES, *_NAME_FAMILIES) for mine in own)):
        return False
    if ip.is_loopback:
        return bool(own) and all(_is_loopback(mine) for mine in own)
    return not (
        ip.is_unspecified
        or ip.is_multicast
        or ip.is_link_local
        or ip.is_reserved
        or (isinstance(ip, ipaddress.IPv4Address) and ip in _THIS_NETWORK)
    )


def _is_loopback(address: str) -> bool:
    match address.split("/"):
        case ["", ("ip4" | "ip6") as family, host, *_]:
            ip = _ip(family, host)
            return ip is not None and ip.is_loopback
        case _:
            return False


def _ip(family: str, host: str) -> IP | None:
    """Return the IP of an address, None if it is none; an IPv4 address in the clothes of an IPv6 one is the former."""
    try:
        if family == "ip4":
            return ipaddress.IPv4Address(host)
        ip = ipaddress.IPv6Address(host)
    except ValueError:
        return None
    if ip.scope_id is not None:  # names an interface of this machine
        return None
    return ip.ipv4_mapped or ip.sixtofour or ip
