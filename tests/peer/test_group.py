"""The secret of a closed group: made once, kept privately, never mistaken."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from gossip.errors import LocalError
from peer.network.group import OPEN_GROUP, SECRET_FILE, Group, group_key, new_secret, secret_of


def test_a_secret_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    made = secret_of(tmp_path, is_open=False, begins=True)
    assert len(group_key(made)) == 32
    assert stat.S_IMODE((tmp_path / SECRET_FILE).stat().st_mode) == 0o600
    assert secret_of(tmp_path, is_open=False, begins=True) == made
    assert secret_of(tmp_path, is_open=False, begins=False) == made, "a restart needs no flag"
    assert secret_of(tmp_path, f" {made}\n", is_open=False, begins=False) == made


def test_who_joins_keeps_what_was_given(tmp_path: Path) -> None:
    given = new_secret()
    assert secret_of(tmp_path, given, is_open=False, begins=False) == given
    assert secret_of(tmp_path, is_open=False, begins=False) == given
    with pytest.raises(LocalError, match="another secret: use another --home"):
        secret_of(tmp_path, new_secret(), is_open=False, begins=False)


def test_an_open_group_has_none_and_is_never_entered_by_mistake(tmp_path: Path) -> None:
    assert secret_of(tmp_path, is_open=True, begins=True) == ""
    assert not (tmp_path / SECRET_FILE).exists()
    with pytest.raises(LocalError, match="secret is given: leave out --open"):
        secret_of(tmp_path, new_secret(), is_open=True, begins=False)
    secret_of(tmp_path, is_open=False, begins=True)
    with pytest.raises(LocalError, match="secret is kept in"):
        secret_of(tmp_path, is_open=True, begins=False)


def test_who_neither_begins_nor_was_invited_is_told_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="take the whole line with which you were invited"):
        secret_of(tmp_path, is_open=False, begins=False)
    assert not (tmp_path / SECRET_FILE).exists()


def test_a_group_admits_whom_it_lists_and_everybody_if_it_lists_nobody() -> None:
    assert Group().admits("anybody")
    listed = Group(allowed=frozenset({"friend"}))
    assert listed.admits("friend")
    assert not listed.admits("anybody")


def test_the_name_of_a_topic_says_nothing_of_the_run_and_differs_by_group() -> None:
    names = {group.name_of("run") for group in (OPEN_GROUP, Group.of(new_secret()), Group.of(new_secret()))}
    assert len(names) == 3
    assert all("run" not in name and len(name) == 32 for name in names)
    assert OPEN_GROUP.name_of("another run") not in names


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
            secret_of(tmp_path, damaged, is_open=False, begins=False)
    assert not (tmp_path / SECRET_FILE).exists()


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    secret_of(tmp_path, is_open=False, begins=True)
    (tmp_path / SECRET_FILE).chmod(0o644)
    with pytest.raises(LocalError, match="chmod 600"):
        secret_of(tmp_path, is_open=False, begins=False)
