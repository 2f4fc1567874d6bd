"""The key file: made once, private, never replaced, and the same peer id as libp2p's."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from gossip.errors import LocalError
from peer.network.identity import KEY_FILE, create_identity, load_identity, load_or_create_identity, peer_id


def test_the_peer_id_of_a_known_key() -> None:
    """Key of 32 zero bytes; the id was computed by libp2p (tests/transport compares more of them)."""
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.peer.id import ID

    for key in (bytes(32), bytes(range(32)), b"\xff" * 32):
        assert peer_id(key) == str(ID.from_pubkey(create_new_key_pair(key).public_key))
        assert peer_id(key).startswith("12D3KooW")


def test_a_new_key_is_private_and_stays(tmp_path: Path) -> None:
    key = create_identity(tmp_path)
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    assert load_identity(tmp_path) == key
    assert load_or_create_identity(tmp_path) == key
    with pytest.raises(LocalError, match="never overwritten"):
        create_identity(tmp_path)
    assert load_identity(tmp_path) == key
    assert [path.name for path in tmp_path.iterdir()] == [KEY_FILE]


def test_a_key_that_others_can_read_is_refused_with_the_remedy(tmp_path: Path) -> None:
    create_identity(tmp_path)
    (tmp_path / KEY_FILE).chmod(0o644)
    with pytest.raises(LocalError, match="chmod 600"):
        load_identity(tmp_path)


@pytest.mark.parametrize("content", ["", "zz" * 32, "ab" * 31, "ab" * 33])
def test_what_is_no_key_is_refused_and_kept(tmp_path: Path, content: str) -> None:
    path = tmp_path / KEY_FILE
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(LocalError, match="not a key"):
        load_or_create_identity(tmp_path)
    assert path.read_text() == content


def test_without_a_key_the_command_to_make_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="peer init"):
        load_identity(tmp_path)
