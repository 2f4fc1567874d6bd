"""The secret of a closed group: made once, kept privately, never mistaken."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from gossip.errors import LocalError
from peer.network.group import SECRET_FILE, group_key, new_secret, secret_of


def test_a_secret_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    made = secret_of(tmp_path, may_create=True)
    assert len(group_key(made)) == 32
    assert stat.S_IMODE((tmp_path / SECRET_FILE).stat().st_mode) == 0o600
    assert secret_of(tmp_path, may_create=True) == made
    assert secret_of(tmp_path, may_create=False) == made, "a restart needs no flag"
    assert secret_of(tmp_path, f" {made}\n", may_create=False) == made


def test_who_joins_keeps_what_was_given(tmp_path: Path) -> None:
    given = new_secret()
    assert secret_of(tmp_path, given, may_create=False) == given
    assert secret_of(tmp_path, may_create=False) == given
    with pytest.raises(LocalError, match="another secret: use another --home"):
        secret_of(tmp_path, new_secret(), may_create=False)


def test_an_open_group_has_none(tmp_path: Path) -> None:
    assert secret_of(tmp_path, may_create=False) == ""
    assert not (tmp_path / SECRET_FILE).exists()


def test_two_secrets_differ_in_every_respect() -> None:
    assert group_key(new_secret()) != group_key(new_secret())


@pytest.mark.parametrize(
    "damage", [lambda text: text[:-1], lambda text: text[:-1] + "0", lambda text: "", str.lower]
)
def test_a_mistyped_secret_is_refused(tmp_path: Path, damage: object) -> None:
    damaged = damage(new_secret())  # type: ignore[operator]
    with pytest.raises(LocalError, match="incomplete or mistyped"):
        group_key(damaged)
    if damaged:
        with pytest.raises(LocalError, match="incomplete or mistyped"):
            secret_of(tmp_path, damaged, may_create=False)
    assert not (tmp_path / SECRET_FILE).exists()


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    secret_of(tmp_path, may_create=True)
    (tmp_path / SECRET_FILE).chmod(0o644)
    with pytest.raises(LocalError, match="chmod 600"):
        secret_of(tmp_path, may_create=False)
