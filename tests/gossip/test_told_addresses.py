"""Which addresses are taken from others: no names, nothing of this machine, nothing malformed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.membership_limits import ADDRESS_LETTERS
from gossip.told_addresses import is_worth_keeping, peer_named_by

PEER = "12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5"
LAN = ("/ip4/192.168.1.5/tcp/4001/p2p/me", "/ip4/127.0.0.1/tcp/4001/p2p/me")
LOOPBACK = ("/ip4/127.0.0.1/tcp/4001/p2p/me",)


def is_kept(place: str, own: tuple[str, ...] = LAN) -> bool:
    return is_worth_keeping(f"{place}/p2p/{PEER}", PEER, own)


@pytest.mark.parametrize(
    "host", ["ip4/192.168.1.7", "ip4/10.0.0.1", "ip4/100.64.0.1", "ip4/8.8.8.8", "ip6/2600::1", "ip6/fd00::1"]
)
@pytest.mark.parametrize(
    "own", [LAN, (), ("/dns4/example.org/tcp/1/p2p/me",), ("/ip6/2600::2/tcp/1/p2p/me",)]
)
def test_the_internet_and_local_networks_may_be_dialed(host: str, own: tuple[str, ...]) -> None:
    assert is_kept(f"/{host}/tcp/4001", own)


@pytest.mark.parametrize(
    "host",
    [
        "ip4/127.0.0.1", "ip4/127.9.9.9", "ip6/::1",  # loopback
        "ip4/0.0.0.0", "ip4/0.1.2.3", "ip6/::",  # this host
        "ip4/169.254.169.254", "ip6/fe80::1", "ip6/fe80::1%eth0", "ip6/2600::1%eth0",  # link-local, metadata
        "ip4/224.0.0.1", "ip4/255.255.255.255", "ip4/240.0.0.1", "ip6/ff02::1",  # to many, or reserved
        "ip6/::ffff:127.0.0.1", "ip6/::127.0.0.1", "ip6/64:ff9b::7f00:1", "ip6/2002:7f00:1::",  # the same, disguised
        "ip6/::ffff:169.254.169.254",
        "dns/localhost", "dns4/example.org", "dns6/example.org", "dnsaddr/example.org",  # names
        "ip4/127.1", "ip4/2130706433", "ip4/010.0.0.1", "ip4/1.2.3", "ip4/", "ip6/1.2.3.4", "unix/tmp", "",  # malformed
    ],
)  # fmt: skip
def test_names_and_whatever_is_of_this_machine_are_not_taken(host: str) -> None:
    assert not is_kept(f"/{host}/tcp/4001")


@pytest.mark.parametrize(
    "place",
    [
        "/ip4/10.0.0.1/tcp/0", "/ip4/10.0.0.1/tcp/65536", "/ip4/10.0.0.1/tcp/-1", "/ip4/10.0.0.1/tcp/٣",
        "/ip4/10.0.0.1/tcp/", "/ip4/10.0.0.1/tcp/1e3", "/ip4/10.0.0.1/udp/1", "/ip4/10.0.0.1/tcp/1/ws", "10.0.0.1:80",
        "/ip4/10.0.0.1", "", "/", "nonsense", " /ip4/10.0.0.1/tcp/1", "/ip4/10.0.0.1\n/tcp/1",
        f"/ip4/10.0.0.1/tcp/{'0' * ADDRESS_LETTERS}1", "/there/somewhere", "/ip4/10.0.0.1/tcp/1/p2p/x/p2p-circuit",
    ],
)  # fmt: skip
def test_what_has_no_port_or_another_form_is_not_taken(place: str) -> None:
    assert not is_kept(place)


def test_an_address_ends_in_the_peer_whose_it_is_said_to_be() -> None:
    assert not is_worth_keeping("/ip4/10.0.0.1/tcp/1/p2p/somebody", PEER, LAN)
    assert not is_worth_keeping("/ip4/10.0.0.1/tcp/1", PEER, LAN)
    assert not is_worth_keeping("/ip4/10.0.0.1/tcp/1/p2p/", "", LAN)
    assert peer_named_by("/ip4/10.0.0.1/tcp/1/p2p/a") == "a"
    assert peer_named_by("/ip4/10.0.0.1/tcp/1") == ""


def test_loopback_is_for_those_who_listen_nowhere_else() -> None:
    assert is_kept("/ip4/127.0.0.1/tcp/4002", LOOPBACK)
    assert is_kept("/ip6/::1/tcp/4002", LOOPBACK)
    assert not is_kept("/ip4/127.0.0.1/tcp/4002", ())
    assert not is_kept("/ip4/127.0.0.1/tcp/4002", (*LOOPBACK, "/ip6/2600::2/tcp/1/p2p/me"))
    assert not is_kept("/ip4/169.254.1.1/tcp/4002", LOOPBACK)


def test_nobody_else_is_where_we_are() -> None:
    assert not is_kept("/ip4/127.0.0.1/tcp/4001", LOOPBACK)
    assert not is_kept("/ip4/192.168.1.5/tcp/4001")


def test_other_transports_are_dialed_by_those_who_are_on_them() -> None:
    own = ("/memory/here/p2p/me",)
    assert is_kept("/memory/there", own)
    assert not is_kept("/memory/here", own)
    assert not is_kept("/veiled/there", own)
    assert not is_kept("/ip4/10.0.0.1/tcp/1", own)
    assert not is_kept("/memory/there", LAN)
    assert not is_kept("/dns4/example.org", ("/dns4/here/p2p/me",))


pieces = st.sampled_from(
    [
        "/",
        "ip4",
        "ip6",
        "dns4",
        "tcp",
        "p2p",
        PEER,
        "127.0.0.1",
        "10.0.0.1",
        "::1",
        "0",
        "80",
        "%",
        "x",
        "\u0660",
        " ",
    ]
)


@given(
    st.one_of(st.text(max_size=80), st.lists(pieces, max_size=16).map("".join)),
    st.sampled_from([LAN, LOOPBACK, ()]),
)
def test_any_text_is_judged_without_an_exception(text: str, own: tuple[str, ...]) -> None:
    if is_worth_keeping(text, PEER, own):
        assert text.startswith("/ip")
        assert text.endswith(f"/p2p/{PEER}")
