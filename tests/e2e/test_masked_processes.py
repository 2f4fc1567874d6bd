"""Five real peers that read only sums, one of which is killed in the middle."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from peer.child_python import child_environment, python_module
from peer.network.group import new_secret
from peer.network.identity import load_or_create_identity, peer_id
from scripts.lab.chaos.light_trainer import NAME
from scripts.lab.testnet.plan import free_ports

PEERS, VALUES, ROUNDS, KILLED = 5, 64, 8, 3


def flags_of(folder: Path) -> list[list[str]]:
    """Write homes and data; return each peer's flags."""
    homes = [folder / f"p{number}" for number in range(PEERS)]
    ids = []
    for number, home in enumerate(homes):
        home.mkdir()
        ids.append(peer_id(load_or_create_identity(home)))
        rows = {"optimum": [float(number)] * VALUES, "step_s": 0.1}
        (folder / f"p{number}.json").write_text(json.dumps(rows))
    ports = free_ports(PEERS)
    first = f"/ip4/127.0.0.1/tcp/{ports[0]}/p2p/{ids[0]}"
    common = ["--trainer", NAME, "--learning-rate", "0.5", "--rounds", str(ROUNDS), "--secret", new_secret()]
    common += ["--mask", "pairs", "--topology", "random-regular:4", "--merge", "average", "--check-rows", "0"]
    common += ["--wait-peers", str(PEERS - 1), "--eval-every", "100", "--threads", "1"]
    common += [word for one in ids for word in ("--roster", one)]
    return [
        [
            *("run", "--json", "--home", str(home), "--name", home.name, "--data", f"{home}.json", *common),
            *("--listen", f"/ip4/127.0.0.1/tcp/{port}"),
            *(("--join", first, "--join-timeout-s", "60") if home != homes[0] else ()),
        ]
        for home, port in zip(homes, ports, strict=True)
    ]


def events_of(process: subprocess.Popen[str], until: str = "", round: int = 0) -> list[dict[str, Any]]:
    """Return what a peer says, up to an event of this kind and round, or all."""
    assert process.stdout
    events = []
    for line in process.stdout:
        events.append(json.loads(line))
        if events[-1]["event"] == until and events[-1].get("round", 0) >= round:
            break
    return events


@pytest.mark.timeout(400)
def test_peers_that_read_only_sums_outlive_one_that_is_killed_and_end_alike(tmp_path: Path) -> None:
    processes: list[subprocess.Popen[str]] = []
    try:
        for number, flags in enumerate(flags_of(tmp_path)):
            with (tmp_path / f"p{number}.stderr").open("wb") as errors:
                command = python_module("scripts.lab.chaos.light_peer", *flags)
                environment = child_environment(OMP_NUM_THREADS="1")
                processes.append(
                    subprocess.Popen(
                        command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
                    )
                )
        before = events_of(processes[KILLED], "round", 2)
        processes[KILLED].send_signal(signal.SIGKILL)
        rounds = {}
        for number, process in enumerate(processes):
            events = (before if number == KILLED else []) + events_of(process)
            assert process.wait() == (-signal.SIGKILL if number == KILLED else 0), errors_of(tmp_path, number)
            rounds[number] = [event for event in events if event["event"] == "round"]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    survivors = [number for number in range(PEERS) if number != KILLED]
    for number in survivors:
        told = [(event["mixed"], event["failed"]) for event in rounds[number]]
        assert len(told) == ROUNDS + 1
        # the killed one may have taken a sum with it, if it went between its payload and its seeds
        assert sum(mixed != ["row"] for mixed, _ in told) <= 1, told
        assert told[-1][0] == ["row"], told
        # words have 4 bytes a value, as float32; all the rest is control
        assert rounds[number][-1]["mask_bytes"] > 0
    ends = [
        load_file(tmp_path / f"p{number}" / "adapter" / "adapter_model.safetensors") for number in survivors
    ]
    for end in ends:
        assert torch.allclose(end["x"], ends[0]["x"], atol=1e-5)
        assert 1.0 < float(end["x"].mean()) < 3.0


def errors_of(folder: Path, number: int) -> str:
    return (folder / f"p{number}.stderr").read_text(errors="replace")[-2000:]
