"""Whole rounds without training: four processes over real libp2p, on a ring, with 4.4 MB of float32 each.

Everything else is real: node, wire, pulls, guards, mixing, checkpoints on disk. The trainer is an idle one that hands
the adapter back moved a little. Then one peer is killed -9, and the others' rounds are measured again.
``scripts/bench.py rounds`` prints the figures.
"""

from __future__ import annotations

import itertools
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import trio

from gossip.adapter import AdapterSpec, AdapterState
from gossip.events import TrainableFactors
from peer.checkpoints import open_home
from peer.child_python import child_environment, python_module
from peer.config import PeerConfig
from peer.journal import Journal, JsonPrinter
from peer.network.identity import load_or_create_identity, peer_id
from peer.run_plan import plan_run
from peer.runtime import run_peer
from peer.training.frames import Evaluated, Export, OnStep, Progress, Ready, Trained
from scripts.lab.testnet import free_ports

VALUES = 1_100_000  # 4.4 MB of float32, what hivemind was measured with
PEERS = 4
WARM_UP, MEASURED = 3, 15


class IdleTrainer:
    """Hands the adapter back at once, moved by a hair, so that every round's payload is new."""

    async def train(
        self,
        state: AdapterState,
        round: int,
        save_to: Path,
        on_step: OnStep,
        trainable: TrainableFactors,
        correction: torch.Tensor | None,
    ) -> Trained:
        """Return the moved adapter; the state file is empty."""
        save_to.write_bytes(b"")
        await trio.lowlevel.checkpoint()
        return Trained(AdapterState(state.spec, state.flat + 1e-3), 1.0, 1, 1, 1, 0.0)

    async def evaluate(self, state: AdapterState) -> Evaluated:
        """Return nothing of interest."""
        return Evaluated(0.0, None, {})

    async def stop(self) -> None:
        """There is nothing to stop."""


async def start_idle(
    config: PeerConfig, resume: Path | None, on_progress: Progress
) -> tuple[IdleTrainer, Ready]:
    """Start at once."""
    spec = AdapterSpec((("w", (VALUES,)),))
    initial = AdapterState(spec, torch.randn(VALUES, generator=torch.Generator().manual_seed(0)))
    manifest = {
        "base_digest": "none",
        "base_dtype": "none",
        "tokenizer_digest": "none",
        "adapter_digest": initial.digest(),
        "adapter_spec": spec.fingerprint,
    }
    adapter_config = json.dumps({"base_model_name_or_path": "none"})
    export = Export("adapter_model.safetensors", {"adapter_config.json": adapter_config})
    ready = Ready(initial, manifest, "none", "cpu", "no data", 0, 0, 0, 0, 0.0, export)
    return IdleTrainer(), ready


def serve(home: str, options: str) -> None:
    """Be one peer."""
    from peer.network.catalogue import transport_for

    torch.set_num_threads(1)
    config = PeerConfig.of(**{**json.loads(options), "join": tuple(json.loads(options)["join"])})
    with open_home(Path(home)) as opened:
        key = load_or_create_identity(opened.path)
        factory = transport_for(config.network.listen, private_key=key)
        journal = Journal(JsonPrinter(sys.stdout))
        trio.run(run_peer, plan_run(config), opened, key, factory, journal, start_idle)
        journal.close()


def rows() -> list[dict[str, Any]]:
    """Run the network and return its figures."""
    with tempfile.TemporaryDirectory() as folder:
        homes = [Path(folder) / str(index) for index in range(PEERS)]
        processes = list(_start(homes))
        try:
            return _measure(processes)
        finally:
            for process in processes:
                process.kill()
                process.communicate()


def _start(homes: list[Path]) -> Iterator[subprocess.Popen[str]]:
    addresses = [f"/ip4/127.0.0.1/tcp/{port}" for port in free_ports(PEERS)]
    first = ""
    for home, address in zip(homes, addresses, strict=True):
        home.mkdir()
        first = first or f"{address}/p2p/{peer_id(load_or_create_identity(home))}"
        options = {
            "topology": "ring",
            "rounds": 100_000,
            "listen": address,
            "join": [] if home == homes[0] else [first],
            "join_timeout_s": 60.0,
            "wait_peers": PEERS - 1,
            "eval_every": 1_000_000,
        }
        command = python_module("scripts.benchmarks.rounds", str(home), json.dumps(options))
        yield subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=child_environment(OMP_NUM_THREADS="1")
        )


def _events(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stdout
    for line in process.stdout:
        yield json.loads(line)
    raise RuntimeError("a peer of the bench ended early")


def _round_ends(process: subprocess.Popen[str], count: int) -> list[float]:
    """Return the times of the next reports of a peer."""
    ends = (event["at"] for event in _events(process) if event["event"] == "round")
    return list(itertools.islice(ends, count))


def _measure(processes: list[subprocess.Popen[str]]) -> list[dict[str, Any]]:
    witness, victim = processes[0], _ring_neighbor_of_first(processes)
    for process in processes:
        if process not in (witness, victim):
            threading.Thread(target=_drain, args=[process], daemon=True).start()
    _round_ends(witness, WARM_UP)
    before = _durations(_round_ends(witness, MEASURED))
    killed_at = time.time()
    victim.send_signal(signal.SIGKILL)
    ends = _round_ends(witness, 3 * MEASURED)  # some from before the kill may still have lain in the pipe
    meeting = next(index for index, end in enumerate(ends) if end >= killed_at)
    after = _durations(ends[max(0, meeting - 1) :])
    usual = statistics.median(before)
    return [
        _row("rounds: publish, fetch, mix, checkpoint (median)", usual, "s", 0.8),
        _row("rounds: the slowest of them", max(before), "s", None),
        _row("rounds: the one in which a neighbor was killed", after[0], "s", None),
        _row("rounds: from the second after it on / before", statistics.median(after[2:]) / usual, "x", 1.2),
    ]


def _durations(ends: list[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(ends)]


def _drain(process: subprocess.Popen[str]) -> None:
    """Read what nobody looks at: a full pipe would drop its lines."""
    assert process.stdout
    for _ in process.stdout:
        pass


def _ring_neighbor_of_first(processes: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    """Return the process that follows the first on the ring, which runs in order of peer ids."""
    ids = [next(event["peer_id"] for event in _events(process)) for process in processes]
    order = sorted(range(len(ids)), key=lambda index: ids[index])
    return processes[order[(order.index(0) + 1) % len(order)]]


def _row(name: str, value: float, unit: str, limit: float | None) -> dict[str, Any]:
    met = None if limit is None else value <= limit
    return {"name": name, "value": value, "unit": unit, "target": f"<= {limit}" if limit else "", "met": met}


if __name__ == "__main__":
    serve(*sys.argv[1:])
