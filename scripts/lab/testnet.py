"""A whole network on one machine: real ``peer run`` processes over real libp2p, and the baselines to judge it by.

Regimes: *gossip* (all peers together), *local* (the same peers, each alone) and *central* (one peer with everybody's
text and as many times the batch). All three are the same program with other flags, so a difference between them is a
difference of learning together. This file starts processes and reads their events; it draws nothing.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import trio

from gossip.errors import LocalError
from peer.child_python import child_environment, python_module
from peer.config import PeerConfig
from peer.network.identity import load_or_create_identity, peer_id

LEAVE_S = 12.0
"""A peer leaves within 10 s of an interrupt; then it is killed."""
JOIN_S = 600.0
"""Peers start at different speeds when they share cores: the slowest import sets the pace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TestnetConfig:
    """What network to run.

    Args:
        peers: how many.
        rounds: rounds of every regime; None = the peer's default.
        topology, codec, collect_s, model: as in ``peer run``; None = the peer's default.
        data: "demo", or a folder with one data file per peer.
        compare: which baselines to run, of "local" and "central".
        out: where everything is written.
        seed: seed of the run.
        keep: keep checkpoints and the baselines' homes.
        options: more flags for every ``peer run``.
    """

    __test__ = False  # not a test case, pytest

    peers: int = 4
    rounds: int | None = None
    topology: str | None = None
    model: str = "smollm2-135m"
    data: str = "demo"
    codec: str | None = None
    collect_s: float | None = None
    compare: tuple[str, ...] = ("local", "central")
    out: Path = Path("runs/testnet")
    seed: int = 0
    keep: bool = False
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.peers <= 64:
            raise LocalError(f"--peers must be 1 to 64 on one machine, not {self.peers}")
        unknown = set(self.compare) - {"local", "central"}
        if unknown:
            raise LocalError(f"--compare knows local, central and none, not {', '.join(sorted(unknown))}")


class Evaluation(NamedTuple):
    """What a peer measured after ``round`` rounds: held-out losses, nats, and shares of right labels, if there are."""

    round: int
    own: float
    all: float
    accuracy: float | None
    accuracy_all: float | None


@dataclass(slots=True)
class PeerView:
    """What one process has told so far."""

    name: str
    regime: str
    home: Path
    shards: int
    peer_id: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    last: dict[str, dict[str, Any]] = field(default_factory=dict)
    evals: list[Evaluation] = field(default_factory=list)
    exit_code: int | None = None

    def take(self, event: dict[str, Any]) -> None:
        """Note one event of the process."""
        self.last[event["event"]] = event
        if event["event"] == "eval":
            accuracy, accuracy_all = event["accuracy"], event["accuracy_all"]
            if accuracy_all is None:  # there is no shard but our own
                accuracy_all = accuracy
            self.evals.append(
                Evaluation(event["round"], event["own"], self._over_all(event), accuracy, accuracy_all)
            )

    def _over_all(self, event: Mapping[str, Any]) -> float:
        """Mean of the token means of all shards; the central peer holds them all, so its own is none of them."""
        per_file = list(event["per_file"].values())
        losses = per_file if len(per_file) == self.shards else [event["own"], *per_file]
        return sum(losses) / len(losses)


Watch = Callable[[PeerView, dict[str, Any]], None]
"""Called after every event of every process."""


def prepare_data(config: TestnetConfig) -> dict[str, Path]:
    """Return peer name -> data file; files are cut into parts where there are more peers than files.

    Raises:
        LocalError: no data files.
    """
    if config.data == "demo":
        from scripts.lab import corpus

        files = list(corpus.write(config.out / "data", seed=config.seed).values())
    else:
        folder = Path(config.data)
        files = sorted(path for path in folder.glob("*") if path.is_file() and not path.name.startswith("."))
        if not files:
            raise LocalError(f"--data {folder}: a folder with one data file per peer, or demo, is needed")
    if config.peers <= len(files):
        return {path.stem: path for path in files[: config.peers]}
    shards = {}
    for index in range(config.peers):
        path = files[index % len(files)]
        parts = len(range(index % len(files), config.peers, len(files)))
        part = index // len(files)
        name = f"{path.stem}-{part + 1}" if parts > 1 else path.stem
        shards[name] = _part_of(path, part, parts, config.out / "data" / f"{name}.jsonl")
    return shards


def _part_of(path: Path, part: int, parts: int, target: Path) -> Path:
    """Write every ``parts``-th line of a line-wise file, from ``part`` on."""
    if parts == 1:
        return path
    if path.suffix not in (".jsonl", ".txt"):
        raise LocalError(f"{path}: only .jsonl and .txt files can be shared out to more peers than files")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[part::parts]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(lines), encoding="utf-8")
    return target


def plan(config: TestnetConfig, regime: str, shards: Mapping[str, Path]) -> list[tuple[PeerView, list[str]]]:
    """Return the processes of a regime, each with its command."""
    base = config.out / "peers" if regime == "gossip" else config.out / regime
    if regime == "central":
        view = PeerView("central", regime, base, len(shards))
        files = list(shards.values())
        flags = [*_shared_flags(config, 0), *_many("data", files), *_many("eval-data", files)]
        flags = _with_batch_times(flags, len(shards))
        return [(view, [*flags, "--listen", "/ip4/127.0.0.1/tcp/0"])]
    threads = max(1, (os.cpu_count() or 1) // len(shards))
    views, addresses = [], []
    for name, port in zip(shards, free_ports(len(shards)), strict=True):
        home = base / name
        home.mkdir(parents=True, exist_ok=True)
        view = PeerView(name, regime, home, len(shards), peer_id(load_or_create_identity(home)))
        views.append(view)
        addresses.append(f"/ip4/127.0.0.1/tcp/{port}")
    planned = []
    for index, view in enumerate(views):
        others = [path for name, path in shards.items() if name != view.name]
        flags = [
            *_shared_flags(config, threads),
            *_many("data", [shards[view.name]]),
            *_many("eval-data", others),
        ]
        flags += ["--listen", addresses[index]]
        if regime == "gossip":
            flags += [word for each in views for word in ("--roster", each.peer_id)]
            flags += ["--wait-peers", str(len(shards) - 1), "--wait-peers-s", str(JOIN_S)]
            if index:
                flags += ["--join", f"{addresses[0]}/p2p/{views[0].peer_id}", "--join-timeout-s", str(JOIN_S)]
        planned.append((view, flags))
    return planned


def _shared_flags(config: TestnetConfig, threads: int) -> list[str]:
    flags = ["--model", config.model, "--seed", str(config.seed), "--threads", str(threads)]
    for name, value in (
        ("rounds", config.rounds),
        ("topology", config.topology),
        ("codec", config.codec),
        ("collect-s", config.collect_s),
    ):
        if value is not None:
            flags += [f"--{name}", str(value)]
    return [*flags, *config.options]


def _many(flag: str, paths: Sequence[Path]) -> list[str]:
    return [word for path in paths for word in (f"--{flag}", str(path))]


def _with_batch_times(flags: Sequence[str], factor: int) -> list[str]:
    """Return the flags with the batch size, given or default, times ``factor``."""
    flags = list(flags)
    if "--batch-size" not in flags:
        flags += ["--batch-size", str(PeerConfig().training.batch_size)]
    place = flags.index("--batch-size") + 1
    flags[place] = str(factor * int(flags[place]))
    return flags


def free_ports(count: int) -> list[int]:
    """Return TCP ports that are free now; all are held at once, so they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


async def run_regime(
    config: TestnetConfig, regime: str, shards: Mapping[str, Path], watch: Watch
) -> list[PeerView]:
    """Run all processes of a regime to their end and return what they told.

    Raises:
        LocalError: a process failed; its last words are in the message.
    """
    planned = plan(config, regime, shards)
    watch_all(planned, watch)
    async with trio.open_nursery() as nursery:
        for view, flags in planned:
            nursery.start_soon(_run_process, view, flags, watch)
    return [view for view, _ in planned]


def watch_all(planned: Sequence[tuple[PeerView, list[str]]], watch: Watch) -> None:
    """Show every process before its first word."""
    for view, _ in planned:
        watch(view, {"event": "planned"})


async def _run_process(view: PeerView, flags: Sequence[str], watch: Watch) -> None:
    """Run one ``peer run --json``, reading its events."""
    view.home.mkdir(parents=True, exist_ok=True)
    errors = view.home / "stderr.log"
    command = python_module("peer", "run", "--json", "--home", str(view.home), "--name", view.name)
    with errors.open("wb") as log:
        process = await trio.lowlevel.open_process(
            [*command, *flags], stdout=subprocess.PIPE, stderr=log, env=child_environment()
        )
        try:
            rest = b""
            async for piece in process.stdout:
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    event = json.loads(line)
                    view.take(event)
                    watch(view, event)
            view.exit_code = await process.wait()
        finally:
            with trio.CancelScope(shield=True):
                await _end(process)
    if view.exit_code:
        words = errors.read_text(errors="replace").strip() or "it said nothing"
        raise LocalError(
            f"peer {view.name} ({view.regime}) ended with exit code {view.exit_code}: {words[-2000:]}"
        )


async def _end(process: trio.Process) -> None:
    """Let a process leave politely, then kill it."""
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
        with trio.move_on_after(LEAVE_S):
            await process.wait()
        process.kill()
        await process.wait()


def run_testnet(config: TestnetConfig, watch: Watch) -> tuple[dict[str, Any], dict[str, list[PeerView]]]:
    """Run all regimes, write ``summary.json`` and return it with everything the peers told.

    Raises:
        LocalError: bad input, or a peer failed.
    """
    started = time.monotonic()
    if (config.out / "peers").exists():
        raise LocalError(f"{config.out} holds an earlier run: choose another --out, or remove it")
    config.out.mkdir(parents=True, exist_ok=True)
    shards = prepare_data(config)
    views: dict[str, list[PeerView]] = {}
    try:
        for regime in ("gossip", *(name for name in ("local", "central") if name in config.compare)):
            views[regime] = trio.run(run_regime, config, regime, shards, watch)
    except* LocalError as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
    summary = summarize(config, views, time.monotonic() - started)
    (config.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    if not config.keep:
        for regime in set(views) - {"gossip"}:
            shutil.rmtree(config.out / regime)
        for view in views["gossip"]:
            shutil.rmtree(view.home / "checkpoints")
    return summary, views


def summarize(
    config: TestnetConfig, views: Mapping[str, Sequence[PeerView]], wall_s: float
) -> dict[str, Any]:
    """Return the content of ``summary.json``: held-out means over all shards; losses in nats a token or labeled text,
    accuracies null where nothing is classified."""
    gossip = views["gossip"]
    finals = [view.evals[-1] for view in gossip]

    def finals_of(regime: str, measured: str) -> list[float]:
        found = [getattr(view.evals[-1], measured) for view in views.get(regime, ())]
        return [value for value in found if value is not None]

    def mean_final(regime: str, measured: str = "all") -> float | None:
        found = finals_of(regime, measured)
        return _mean(found) if found else None

    return {
        "config": {
            **{name: _plain(getattr(config, name)) for name in config.__slots__},
            "cpus": os.cpu_count(),
        },
        "wall_s": round(wall_s, 1),
        "base_loss": gossip[0].evals[0].all,
        "local_loss": mean_final("local"),
        "central_loss": mean_final("central"),
        "gossip_loss_mean": mean_final("gossip"),
        "gossip_loss_worst": max(final.all for final in finals),
        "base_accuracy": gossip[0].evals[0].accuracy_all,
        "local_accuracy": mean_final("local", "accuracy_all"),
        "central_accuracy": mean_final("central", "accuracy_all"),
        "gossip_accuracy_mean": mean_final("gossip", "accuracy_all"),
        "gossip_accuracy_worst": min(finals_of("gossip", "accuracy_all"), default=None),
        "consensus_distance": consensus_distance([view.home / "adapter" for view in gossip]),
        "peers": [
            {
                "name": view.name,
                "peer_id": view.peer_id,
                "rounds": view.last["round"]["round"] + 1,
                "loss_own": final.own,
                "loss_all": final.all,
                "accuracy_own": final.accuracy,
                "accuracy_all": final.accuracy_all,
                **{
                    name: view.last["round"][name]
                    for name in ("bytes_in", "bytes_out", "fetches_ok", "fetches_failed")
                },
                "adapter": str((view.home / "adapter").resolve()),
            }
            for view, final in zip(gossip, finals, strict=True)
        ],
    }


def consensus_distance(adapters: Sequence[Path]) -> float:
    """Return the root mean square distance of adapters to their mean, relative to the norm of the mean."""
    import torch
    from safetensors.torch import load_file

    from gossip.adapter import AdapterState

    vectors = [
        AdapterState.from_tensors(load_file(next(path.glob("*model.safetensors")))).flat.double()
        for path in adapters
    ]
    mean = torch.stack(vectors).mean(dim=0)
    squares = [float((vector - mean).square().sum()) for vector in vectors]
    return math.sqrt(_mean(squares)) / float(torch.linalg.vector_norm(mean))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
