"""Three real peers that share rollouts alone: one lies, and one is killed and started again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from peer.child_python import child_environment, python_module
from peer.network.group import new_secret
from peer.network.identity import load_or_create_identity, peer_id
from scripts.lab.testnet.plan import free_ports

Event = dict[str, Any]
TRAINER = "tests.peer.least_squares:make_talkative"
HONEST, KILLED, LIAR = "p0", "p1", "p2"


def commands(folder: Path) -> dict[str, list[str]]:
    """Write homes and data; return each peer's command line."""
    ports, secret = dict(zip((HONEST, KILLED, LIAR), free_ports(3), strict=True)), new_secret()
    made, first = {}, ""
    for name, port in ports.items():
        home = folder / name
        home.mkdir()
        first = first or f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer_id(load_or_create_identity(home))}"
        rows = "".join(f'{{"x": [{row}, 1], "y": [{row % 7}]}}\n' for row in range(10))
        (folder / f"{name}.jsonl").write_text(rows)
        flags = ["run", "--json", "--home", str(home), "--name", name, "--data", f"{home}.jsonl"]
        flags += ["--trainer", TRAINER, "--learning-rate", "0.01", "--rounds", "1000000", "--secret", secret]
        flags += ["--share", "rollouts", "--wait-peers", "2", "--eval-every", "1000000", "--threads", "1"]
        flags += ["--lora-r", str(1 + int(name[1])), "--listen", f"/ip4/127.0.0.1/tcp/{port}"]
        flags += [] if name == HONEST else ["--join", first, "--join-timeout-s", "60"]
        liar = [sys.executable, str(Path(__file__).parent / "lying_answers.py")]
        made[name] = [*liar, *flags] if name == LIAR else python_module("peer", *flags)
    return made


@contextmanager
def running(command: list[str], folder: Path, stdout: int) -> Iterator[subprocess.Popen[str]]:
    """Run a peer, until it is killed at the latest here."""
    with (folder / "stderr").open("ab") as errors:
        process = subprocess.Popen(
            command, stdout=stdout, stderr=errors, text=True, env=child_environment(OMP_NUM_THREADS="1")
        )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def told(process: subprocess.Popen[str], until: Callable[[Event], bool]) -> list[Event]:
    """Return what a peer says, up to an event of which this is true."""
    assert process.stdout
    events: list[Event] = []
    for line in process.stdout:
        events.append(json.loads(line))
        if until(events[-1]):
            return events
    raise AssertionError(f"it ended after {events[-3:]}")


def of_kind(kind: str, events: list[Event]) -> list[Event]:
    return [event for event in events if event["event"] == kind]


def names(pairs: list[tuple[str, int]]) -> set[str]:
    return {name for name, _ in pairs}


@pytest.mark.timeout(400)
def test_rollouts_arrive_a_liar_is_cut_off_and_a_killed_peer_goes_on(tmp_path: Path) -> None:
    made, pipe, nowhere = commands(tmp_path), subprocess.PIPE, subprocess.DEVNULL
    with running(made[HONEST], tmp_path, nowhere), running(made[LIAR], tmp_path, nowhere):
        with running(made[KILLED], tmp_path, pipe) as killed:
            before = told(killed, lambda event: event["event"] == "rollouts" and event["round"] >= 8)
        with running(made[KILLED], tmp_path, pipe) as again:
            after = told(again, lambda event: event["event"] == "rollouts" and HONEST in names(event["came"]))
    shared = of_kind("rollouts", before)
    assert names(shared[-1]["usable"]) == {HONEST}
    assert not any(LIAR in names(event["came"]) for event in shared)
    assert [LIAR, "malformed"] in [pair for event in of_kind("round", before) for pair in event["objections"]]
    assert of_kind("resumed", after)[0]["round"] >= 8
    assert names(of_kind("rollouts", after)[0]["usable"]) == {HONEST}  # from before it was killed
    journal = [json.loads(line) for line in (tmp_path / HONEST / "journal.jsonl").read_text().splitlines()]
    assert KILLED in {name for event in of_kind("rollouts", journal) for name in names(event["usable"])}
    notes = [event["text"] for event in of_kind("note", journal)]
    assert any(LIAR in text and "is cut off" in text and "malformed" in text for text in notes)
