"""Transports are chosen by the scheme of the address, and what is no address is refused with one that is."""

from __future__ import annotations

import subprocess
import sys

import pytest
import trio
import veiled
from networks import SETUPS, id_of, key_of

from gossip.errors import LocalError
from peer.network.catalogue import TRANSPORTS, check_listen, peer_of, scheme_of, transport_for
from peer.network.transport import TransportFactory


@pytest.mark.parametrize(
    ("address", "scheme"),
    [
        ("/ip4/192.0.2.7/tcp/4001", "tcp"),
        (f"/ip6/::1/tcp/4001/p2p/{id_of(1)}", "tcp"),
        ("/dns4/memory/tcp/1", "tcp"),
        ("/dns4/example.org/tcp/443/ws", "tcp/ws"),
        ("/ip4/192.0.2.7/udp/4001/quic-v1", "udp/quic-v1"),
        ("/memory/alice", "memory"),
        ("/memory/tcp/p2p/alice", "memory"),
        ("/ip4/192.0.2.7", ""),
        ("192.0.2.7:4001", ""),
        ("/", ""),
        ("", ""),
    ],
)
def test_schemes(address: str, scheme: str) -> None:
    assert scheme_of(address) == scheme


def test_every_transport_is_run_by_the_conformance_suite() -> None:
    assert SETUPS.keys() == TRANSPORTS.keys()


@pytest.mark.parametrize("scheme", TRANSPORTS)
def test_examples_are_valid(scheme: str) -> None:
    example = TRANSPORTS[scheme].listen_example
    assert scheme_of(example) == scheme
    check_listen(example)
    assert peer_of(f"{example}/p2p/{id_of(1)}") == id_of(1)


def test_a_scheme_without_transport_is_refused_with_those_that_have_one() -> None:
    for refuse in (check_listen, peer_of, lambda listen: transport_for(listen, private_key=key_of(1))):
        with pytest.raises(LocalError, match="no transport for 'udp/quic-v1'") as caught:
            refuse("/ip4/0.0.0.0/udp/4001/quic-v1")
        for kind in TRANSPORTS.values():
            assert kind.listen_example in str(caught.value)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("0.0.0.0:4001", "it is not of the form /ip4/<IP>/tcp/<port>"),
        ("/ip4/0.0.0.0", "it is not of the form /ip4/<IP>/tcp/<port>"),
        ("/ip4/0.0.0.0/tcp/99999", "'99999' is not a port (0 to 65535)"),
        ("/dns4/localhost/tcp/1", "an IP address is needed to listen on"),
    ],
)
def test_malformed_listen_addresses_say_what_is_wrong(address: str, reason: str) -> None:
    with pytest.raises(LocalError) as caught:
        check_listen(address)
    expected = f"malformed listen address {address!r}: {reason}; valid is for example /ip4/0.0.0.0/tcp/4001"
    assert str(caught.value) == expected


def test_one_line_plugs_another_transport_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """That it keeps the contract is for ``test_conformance.py`` to say, which runs on it too."""

    def factory() -> TransportFactory:
        return transport_for("/veiled/alice", private_key=key_of(1))

    with pytest.raises(LocalError, match="no transport for 'veiled'"):
        factory()
    monkeypatch.setitem(TRANSPORTS, "veiled", veiled.KIND)

    async def main() -> None:
        nothing = {"topic": "t", "on_announced": lambda *_: None, "on_connection": lambda *_: None}
        async with factory()(handlers={}, **nothing) as transport:
            assert transport.addresses == (f"/veiled/alice/p2p/{id_of(1)}",)
            assert peer_of(transport.addresses[0]) == id_of(1)

    trio.run(main)


def test_reading_the_catalogue_imports_no_network_library() -> None:
    code = "import sys, peer.network.catalogue; print('libp2p' in sys.modules or 'multiaddr' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
