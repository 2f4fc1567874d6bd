"""Whole rounds without training: four processes over real libp2p, on a ring, with 4.4 MB of float32 each.

Everything else is real: node, wire, pulls, guards, mixing, checkpoints on disk. The trainer is an idle one that hands
the adapter back moved a little. Then one peer is killed -9, and the others' rounds are measured again.
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
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import trio

from gossip.adapter import AdapterSpec, AdapterState
from gossip.events import TrainableFactors
from gossip.rollouts import Received
from peer.checkpoints import open_home
from peer.child_python import child_environment, python_module
from peer.config import PeerConfig
from peer.journal import Journal, JsonPrinter
from peer.network.identity import load_or_create_identity, peer_id
from peer.run_plan import plan_run
from peer.runtime import run_peer
from peer.training.frames import Evaluated, Export, OnStep, Progress, Ready, Trained
from scripts.benchmarks.rows import Row, at_most, row
from scripts.lab.testnet.plan import free_ports

PEERS, QUICK_PEERS = 4, 3
WARM_UP, MEASURED = 3, 15
BEFORE_RECOVERY = 2
"""Rounds from the death of a neighbor until none waits for it any more."""
VALUES, QUICK_VALUES = 1_100_000, 1_000
"""Values of the adapter. Source: 4.4 MB of float32 is what hivemind was measured with."""


class IdleTrainer:
    """Hands the adapter back at once, moved by a hair, so that every round's payload is new."""

    async def train(
        self,
        state: AdapterState,
        round: int,
        save_to: Path | None,
        on_step: OnStep,
        trainable: TrainableFactors,
        correction: torch.Tensor | None,
        rollouts: Sequence[Received],
    ) -> Trained:
        """Return the moved adapter; the state file is empty."""
        if save_to is not None:
            save_to.write_bytes(b"")
        await trio.lowlevel.checkpoint()
        return Trained(AdapterState(state.spec, state.flat + 1e-3), 1.0, 1, 1, 1, 0.0)

    async def evaluate(self, state: AdapterState) -> Evaluated:
        """Return nothing of interest."""
        return Evaluated(0.0, None, {})

    async def probe(self, state: AdapterState, rows: int) -> float:
        """Find every adapter in order."""
        return 0.0

    async def row_losses(self, state: AdapterState) -> None:
        """Measure no single rows."""

    async def stop(self) -> None:
        """There is nothing to stop."""


async def start_idle(
    values: int, config: PeerConfig, resume: Path | None, on_progress: Progress
) -> tuple[IdleTrainer, Ready]:
    """Start at once, with an adapter of so many values."""
    spec = AdapterSpec((("w", (values,)),))
    initial = AdapterState(spec, torch.randn(values, generator=torch.Generator().manual_seed(0)))
    manifest = {
        "base_digest": "none",
        "base_dtype": "none",
        "tokenizer_digest": "none",
        "adapter_digest": initial.digest(),
        "adapter_spec": spec.fingerprint,
        "adapter_frozen": "",
    }
    adapter_config = json.dumps({"base_model_name_or_path": "none"})
    export = Export("adapter_model.safetensors", {"adapter_config.json": adapter_config})
    ready = Ready(initial, manifest, "none", "cpu", "no data", 0, 0, 0, 0, 0.0, export)
    return IdleTrainer(), ready


def serve(home: str, options: str, values: str) -> None:
    """Be one peer, with an adapter of so many values."""
    from peer.network.catalogue import transport_for

    torch.set_num_threads(1)
    config = PeerConfig.of(**{**json.loads(options), "join": tuple(json.loads(options)["join"])})
    with open_home(Path(home)) as opened:
        key = load_or_create_identity(opened.path)
        factory = transport_for(config.network.listen, private_key=key)
        journal = Journal(JsonPrinter(sys.stdout))
        trio.run(run_peer, plan_run(config), opened, key, factory, journal, partial(start_idle, int(values)))
        journal.close()


def rows(quick: bool = False) -> Iterator[Row]:
    """Run the network and yield its figures."""
    peers, values = (QUICK_PEERS, QUICK_VALUES) if quick else (PEERS, VALUES)
    with tempfile.TemporaryDirectory() as folder:
        processes = list(_start([Path(folder) / str(index) for index in range(peers)], values))
        try:
            yield from _measure(processes)
        finally:
            for process in processes:
                process.kill()
                process.communicate()


def _start(homes: list[Path], values: int) -> Iterator[subprocess.Popen[str]]:
    addresses = [f"/ip4/127.0.0.1/tcp/{port}" for port in free_ports(len(homes))]
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
            "wait_peers": len(homes) - 1,
            "eval_every": 1_000_000,
        }
        command = python_module("scripts.benchmarks.rounds", str(home), json.dumps(options), str(values))
        yield subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=child_environment(OMP_NUM_THREADS="1")
        )


def _measure(processes: list[subprocess.Popen[str]]) -> Iterator[Row]:
    witness, victim = processes[0], _ring_neighbor_of_first(processes)
    for process in processes:
        if process not in (witness, victim):
            threading.Thread(target=_drain, args=[process], daemon=True).start()
    ends: Iterator[float] = (event["at"] for event in _events(witness) if event["event"] == "round")
    usual_ends = list(itertools.islice(ends, WARM_UP + MEASURED))
    before = _durations(usual_ends[WARM_UP - 1 :])
    killed_at = time.time()
    victim.send_signal(signal.SIGKILL)
    ends = itertools.chain(usual_ends[-1:], ends)
    after = _durations_after(killed_at, ends, MEASURED + BEFORE_RECOVERY)
    usual = statistics.median(before)
    recovered = statistics.median(after[BEFORE_RECOVERY:]) / usual
    yield at_most("rounds: publish, fetch, mix, checkpoint (median)", usual, "s", 0.8)
    yield row("rounds: the slowest of them", max(before), "s")
    yield row("rounds: the one in which a neighbor was killed", after[0], "s")
    yield at_most("rounds: from the second after it on / before", recovered, "x", 1.2)


def _events(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stdout
    for line in process.stdout:
        yield json.loads(line)
    raise RuntimeError("a peer of the bench ended early")


def _durations(ends: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(ends)]


def _durations_after(moment: float, ends: Iterator[float], count: int) -> list[float]:
    """Return the durations of ``count`` rounds from the one that was going on at a moment, seconds.

    Args:
        ends: times of the ends of rounds; some from before the moment may still lie in the pipe.
    """
    begun, ended = next(pair for pair in itertools.pairwise(ends) if pair[1] >= moment)
    return _durations([begun, ended, *itertools.islice(ends, count - 1)])


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


if __name__ == "__main__":
    serve(*sys.argv[1:])
