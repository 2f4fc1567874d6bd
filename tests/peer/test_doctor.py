"""``peer doctor`` and ``peer explain``: what a machine lacks is said before a run, what an exit code means after it."""

from __future__ import annotations

import ast
import os
import socket
import time
from pathlib import Path

import pytest

from gossip.errors import LocalError
from peer import exit_codes
from peer.config import PeerConfig
from peer.doctor import CHECKS, examine
from peer.exit_codes import EXIT_CODES, explain

ROOT = Path(__file__).parents[2]


def test_a_machine_in_order_is_told_so(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one line\n\nanother\n")
    config = PeerConfig.of(data=(text,), model="tiny", device="cpu", listen="/ip4/127.0.0.1/tcp/0")
    found = examine(config, tmp_path / "home")
    assert found.keys() == CHECKS.keys()
    assert not [finding for finding in found.values() if finding.verdict == "wrong"]
    assert "usable rows: 2" in found["data"].told
    assert not (tmp_path / "home").exists()


def test_what_would_be_refused_is_wrong_and_says_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = PeerConfig.of(data=(tmp_path / "no.txt",), listen=f"/ip4/127.0.0.1/tcp/{port}")
        found = examine(config, tmp_path)
    assert found["port"].verdict == found["data"].verdict == "wrong"
    assert f"port {port} is in use: stop the other program" in found["port"].told


def test_a_clock_that_stands_in_the_past_and_an_open_home_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    monkeypatch.setattr(time, "time", lambda: 86_400.0)
    found = examine(PeerConfig(), home)
    assert found["clock"].verdict == "wrong"
    assert "1970-01-02" in found["clock"].told
    assert found["home"].verdict == "look"
    os.chmod(home, 0o700)
    assert examine(PeerConfig(), home)["home"].verdict == "ok"


def test_the_page_of_exit_codes_is_up_to_date() -> None:
    page = (ROOT / "docs" / "exit-codes.md").read_text()
    assert page == exit_codes.page(), "python -m peer.exit_codes > docs/exit-codes.md"


def test_every_code_that_an_error_has_is_explained() -> None:
    codes = set()
    for package in ("gossip", "peer"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                match node:
                    case ast.Assign(targets=[ast.Name(id="exit_code")], value=ast.Constant(value=int(code))):
                        codes.add(code)
    assert {2, 9} <= codes <= EXIT_CODES.keys()
    for code in EXIT_CODES:
        assert explain(code).startswith(f"{code}: ")
    with pytest.raises(LocalError, match="no exit code 4"):
        explain(4)
