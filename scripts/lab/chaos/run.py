"""A chaos run from start to end: processes, faults in time, samples on the way, and what came of it as a record."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil
import torch
import trio
from safetensors.torch import load_file

from gossip.errors import LocalError
from gossip.fault_kinds import TinyDisk
from gossip.faults import Injection
from peer.network.group import new_secret
from peer.network.identity import load_or_create_identity, peer_id
from scripts.lab.chaos import light_trainer
from scripts.lab.chaos.faults import Saboteur
from scripts.lab.chaos.network import Network, open_network
from scripts.lab.chaos.processes import PeerProcess
from scripts.lab.chaos.spec import Backend, ChaosSpec
from scripts.lab.testnet.run import reason_of

READY_S = 30.0
PEER_READY_S = 12.0
"""All peers must have completed a round after ``READY_S``, and so much more for each. Source: ours; a start takes 5
seconds of a core, and that of a slow machine is shared by all."""
SAMPLE_S = 2.0
"""Memory, descriptors and adapters are looked at this often."""
DISK_BYTES = 64 << 20
"""Of a home folder whose disk is to be tiny."""
GONE_S = 15.0
"""Processes that a run has started are gone so long after its end."""


@dataclass(slots=True)
class Record:
    """What is known of a run; times are seconds since all peers were there.

    Attributes:
        backend: what carried the packets.
        happened: (start, end or None, injection).
        consensus: (time, root mean square distance of the adapters to their mean, relative to its norm).
        left_over: pids of processes that should have been gone.
    """

    spec: ChaosSpec
    backend: str
    peers: dict[str, PeerProcess]
    happened: list[tuple[float, float | None, Injection]] = field(default_factory=list)
    consensus: list[tuple[float, float]] = field(default_factory=list)
    left_over: list[int] = field(default_factory=list)


def run_chaos(spec: ChaosSpec, out: Path, backend: Backend, say: Callable[[str], None]) -> Record:
    """Run a network with its faults; all it has started is gone when this returns.

    Args:
        out: an empty folder, or none.

    Raises:
        LocalError: bad input; or the peers did not come together before anything was done to them.
    """
    if out.exists() and any(out.iterdir()):
        raise LocalError(f"{out} is not empty: choose another --out, or remove it")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as short, ExitStack() as stack:
        homes = {name: out / "peers" / name for name in spec.names}
        for home in homes.values():
            home.mkdir(parents=True)
        if spec.has(TinyDisk):
            stack.enter_context(mounted_homes(list(homes.values())))
        network = stack.enter_context(open_network(backend, spec.names, spec.seed, Path(short)))
        say(f"{spec.peers} peers, {network.kind}")
        peers = _planned(spec, homes, network)
        record = Record(spec, network.kind, peers)
        try:
            trio.run(_run, spec, record, network, say)
        except BaseExceptionGroup as group:
            raise reason_of(group) from None
        finally:
            record.left_over = _left_over(peers.values())
    return record


@contextmanager
def mounted_homes(homes: Sequence[Path]) -> Iterator[None]:
    """Give each home folder a small disk of its own.

    Raises:
        LocalError: only root may mount.
    """
    if os.geteuid() != 0:
        raise LocalError("tiny-disk mounts a disk for each peer, which only root may do")
    with ExitStack() as stack:
        for home in homes:
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(home)], check=True
            )
            stack.callback(subprocess.run, ["umount", "--lazy", str(home)], check=True)
        yield


def _planned(spec: ChaosSpec, homes: dict[str, Path], network: Network) -> dict[str, PeerProcess]:
    files = _write_data(spec, next(iter(homes.values())).parent.parent / "data")
    secret = new_secret()
    names = spec.names
    first_id = peer_id(load_or_create_identity(homes[names[0]]))
    join = ["--join", f"{network.announced(names[0])}/p2p/{first_id}", "--join-timeout-s", "120"]
    peers = {}
    for name in names:
        flags = ["--listen", network.listen(name), "--secret", secret, "--seed", str(spec.seed)]
        if network.listen(name) != network.announced(name):
            flags += ["--announce", network.announced(name)]
        flags += ["--trainer", light_trainer.NAME, "--rounds", "1000000", "--merge", "none"]
        flags += ["--learning-rate", "0.05", "--threads", "1", "--keep-checkpoints", "12"]
        flags += ["--data", str(files[name])]
        for other in names:
            flags += ["--eval-data", str(files[other])] if other != name else []
        first = [
            "--wait-peers",
            str(len(names) - 1),
            "--wait-peers-s",
            "120",
            *(join if name != names[0] else []),
        ]
        flags += spec.options
        peers[name] = PeerProcess(name, homes[name], flags, first, network, spec.light, begun=0.0)
    return peers


def _write_data(spec: ChaosSpec, folder: Path) -> dict[str, Path]:
    """Write each peer's optimum: one common point, and their own ways around it."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(spec.seed + 1)
    center = torch.randn(spec.values, generator=generator)
    files = {}
    for name in spec.names:
        optimum = center + spec.heterogeneity * torch.randn(spec.values, generator=generator)
        files[name] = folder / f"{name}.json"
        files[name].write_text(json.dumps({"optimum": optimum.tolist(), "step_s": spec.step_s}))
    return files


async def _run(spec: ChaosSpec, record: Record, network: Network, say: Callable[[str], None]) -> None:
    peers = record.peers
    _set_clocks(peers)
    for injection in spec.injections():
        Saboteur.begin_hostile(injection, peers)
    async with trio.open_nursery() as nursery:
        for peer in peers.values():
            nursery.start_soon(peer.live)
        await _all_there(spec, peers)
        _set_clocks(peers)
        say(f"all are there; {spec.seconds:.0f} s begin")
        saboteur = Saboteur(peers, network, nursery)
        record.happened = saboteur.happened
        async with trio.open_nursery() as acts:
            for injection in spec.injections():
                acts.start_soon(saboteur.carry_out, injection)
            acts.start_soon(_sample, record)
            await trio.sleep(spec.seconds)
            with trio.move_on_after(spec.patience_s):
                while not all(_has_mixed(peer) for peer in peers.values() if peer.is_alive):
                    await trio.sleep(0.1)  # events come in on the pipes
            acts.cancel_scope.cancel()
        nursery.cancel_scope.cancel()


def _set_clocks(peers: dict[str, PeerProcess]) -> None:
    """Let the run's clock show 0 now; what has happened happened before."""
    now = trio.current_time()
    for peer in peers.values():
        moved = now - peer.begun
        peer.begun = now
        for life in peer.lives:
            life.started_s -= moved
            life.events = [(at_s - moved, event) for at_s, event in life.events]


async def _all_there(spec: ChaosSpec, peers: dict[str, PeerProcess]) -> None:
    with trio.move_on_after(READY_S + PEER_READY_S * spec.peers):
        while not all(_has_mixed(peer) for peer in peers.values()):
            for peer in peers.values():
                if peer.lives and peer.lives[-1].exit_code is not None:
                    raise LocalError(
                        f"{peer.name} ended with exit code {peer.lives[-1].exit_code} before anything was done to it: "
                        f"{peer.lives[-1].last_words}"
                    )
            await trio.sleep(0.1)  # events come in on the pipes
        return
    waiting = ", ".join(peer.name for peer in peers.values() if not _has_mixed(peer))
    raise LocalError(f"the peers did not come together in time: {waiting} mixed nothing")


def _has_mixed(peer: PeerProcess) -> bool:
    events = peer.lives[-1].events if peer.lives else []
    return any(event["event"] == "round" and event["mixed"] for _, event in events)


async def _sample(record: Record) -> None:
    """Look at the processes and their adapters again and again."""
    while True:
        for peer in record.peers.values():
            peer.sample()
        adapters = await trio.to_thread.run_sync(partial(_adapters, list(record.peers.values())))
        if len(adapters) > 1:
            record.consensus.append((next(iter(record.peers.values())).now, _distance(adapters)))
        await trio.sleep(SAMPLE_S)


def _adapters(peers: Sequence[PeerProcess]) -> list[torch.Tensor]:
    """Return the adapters of the peers that are alive, as they were exported last."""
    adapters = []
    for peer in peers:
        if peer.is_alive and not peer.cheats_by:
            with contextlib.suppress(FileNotFoundError):
                tensors = load_file(peer.home / "adapter" / "adapter_model.safetensors")
                adapters.append(torch.cat([tensor.flatten().double() for tensor in tensors.values()]))
    return adapters


def _distance(adapters: Sequence[torch.Tensor]) -> float:
    together = torch.stack(list(adapters))
    mean = together.mean(dim=0)
    squares = (together - mean).square().sum(dim=1)
    return float(squares.mean().sqrt() / torch.linalg.vector_norm(mean))


def _left_over(peers: Iterable[PeerProcess]) -> list[int]:
    """Return the pids of processes of ours that outlive the run; wait a little for the last to go, then end them."""
    seen = {process for peer in peers for process in peer.seen}
    _, alive = psutil.wait_procs(seen, timeout=GONE_S)
    for process in alive:
        process.kill()
    return [process.pid for process in alive]
