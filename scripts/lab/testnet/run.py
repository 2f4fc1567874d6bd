"""Running a network: start the processes of a regime, read their events, end them; all regimes, one after another."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import trio

from gossip.errors import LocalError
from peer.child_python import child_environment, python_module
from peer.config import OPTIONS
from scripts.lab.testnet.config import BASELINES, Regime, TestnetConfig
from scripts.lab.testnet.plan import PlannedPeer, gives, plan_regime
from scripts.lab.testnet.samples import write_samples
from scripts.lab.testnet.shards import prepare_shards
from scripts.lab.testnet.summary import Summary, summarize
from scripts.lab.testnet.view import PeerView, Watch

LEAVE_S = 12.0
"""Wait for a peer that was told to leave, seconds; then it is killed. Source: it promises to leave within 10 s."""
LAST_WORDS_MAX = 2000
"""Characters of a failed peer's stderr that are shown. Source: guess; a traceback and what led to it."""

Views = Mapping[Regime, Sequence[PeerView]]


def run_testnet(config: TestnetConfig, watch: Watch) -> tuple[Summary, Views]:
    """Run all regimes, write ``summary.json`` and return it with everything the peers told.

    An interrupt after gossip ends it with what was finished by then.

    Raises:
        LocalError: bad input, or a peer failed.
        KeyboardInterrupt: before gossip was finished; the peers have left by then.
    """
    started = time.monotonic()
    if (config.out / "peers").exists():
        raise LocalError(f"{config.out} holds an earlier run: choose another --out, or remove it")
    config.out.mkdir(parents=True, exist_ok=True)
    shards = prepare_shards(config)
    views: dict[Regime, Sequence[PeerView]] = {}
    interrupted = False
    try:
        for regime in ("gossip", *(baseline for baseline in BASELINES if baseline in config.compare)):
            views[regime] = _run_to_its_end(config, regime, shards, watch)
    except KeyboardInterrupt:
        if "gossip" not in views:
            raise
        interrupted = True
    summary = summarize(config, views, time.monotonic() - started, interrupted=interrupted)
    (config.out / "summary.json").write_text(json.dumps(summary.record(), indent=2) + "\n")
    if config.from_scratch:
        write_samples(config.out, views)
    if not config.keep:
        _remove_scaffolding(config.out, views)
    return summary, views


def _run_to_its_end(
    config: TestnetConfig, regime: Regime, shards: Mapping[str, Path], watch: Watch
) -> Sequence[PeerView]:
    try:
        return trio.run(run_regime, config, regime, shards, watch)
    except BaseExceptionGroup as group:
        raise reason_of(group) from None


def reason_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return what ended a run: the user, whatever else broke by it, or one refusal; of a bug, the whole group."""
    for kind in (KeyboardInterrupt, LocalError):
        reason: BaseException | None = group.subgroup(kind)
        while isinstance(reason, BaseExceptionGroup):
            reason = reason.exceptions[0]
        if reason is not None:
            return reason
    return group


def _remove_scaffolding(out: Path, views: Views) -> None:
    for regime in BASELINES:
        if (out / regime).exists():
            shutil.rmtree(out / regime)
    for view in views["gossip"]:
        shutil.rmtree(view.planned.home / "checkpoints")


async def run_regime(
    config: TestnetConfig, regime: Regime, shards: Mapping[str, Path], watch: Watch
) -> list[PeerView]:
    """Run all processes of a regime to their end and return what they told.

    Peers that learn together have one learning rate: where none is given, that which the first of them finds, as if its
    line to join with had been pasted for the others.

    Args:
        shards: peer name -> data file.

    Raises:
        LocalError: a process failed; its last words are in the message.
    """
    views = [PeerView(planned, len(shards)) for planned in plan_regime(config, regime, shards)]
    for view in views:
        watch(view, "planned")
    async with trio.open_nursery() as nursery:
        first, *others = views
        if regime == "gossip" and not gives(first.planned.flags, "learning_rate"):
            rate = [OPTIONS["learning_rate"].flag, str(await _rate_of(first, nursery, watch))]
            for view in others:
                view.planned = replace(view.planned, flags=(*view.planned.flags, *rate))
        else:
            nursery.start_soon(_run_process, first, watch)
        for view in others:
            nursery.start_soon(_run_process, view, watch)
    return views


async def run_processes(planned: Sequence[PlannedPeer], shards: int, watch: Watch) -> list[PeerView]:
    """Run processes to their end and return what they told.

    Args:
        shards: how many parts a measurement over all has.

    Raises:
        LocalError: one failed; its last words are in the message.
    """
    views = [PeerView(one, shards) for one in planned]
    async with trio.open_nursery() as nursery:
        for view in views:
            watch(view, "planned")
            nursery.start_soon(_run_process, view, watch)
    return views


async def _rate_of(view: PeerView, nursery: trio.Nursery, watch: Watch) -> float:
    """Start a process; return the learning rate that it tells as soon as it has found one."""
    has_told = trio.Event()

    def watch_for_rate(view: PeerView, what: str) -> None:
        watch(view, what)
        if what == "rate":
            has_told.set()

    nursery.start_soon(_run_process, view, watch_for_rate)
    await has_told.wait()
    return view.rate


async def _run_process(view: PeerView, watch: Watch) -> None:
    """Run one ``peer run --json``, reading its events."""
    planned = view.planned
    planned.home.mkdir(parents=True, exist_ok=True)
    errors = planned.home / "stderr.log"
    with errors.open("wb") as log:
        process = await trio.lowlevel.open_process(
            _command(planned), stdout=subprocess.PIPE, stderr=log, env=child_environment()
        )
        try:
            await _read_events(process, view, watch)
            view.exit_code = await process.wait()
        finally:
            with trio.CancelScope(shield=True):
                await _end(process)
    if view.exit_code:
        words = errors.read_text(errors="replace").strip() or "it said nothing"
        raise LocalError(
            f"peer {planned.name} ({planned.regime}) ended with exit code {view.exit_code}: "
            f"{words[-LAST_WORDS_MAX:]}"
        )


def _command(planned: PlannedPeer) -> list[str]:
    home_and_name = ("--home", str(planned.home), "--name", planned.name)
    return python_module("peer", "run", "--json", *home_and_name, *planned.flags)


async def _read_events(process: trio.Process, view: PeerView, watch: Watch) -> None:
    assert process.stdout is not None
    rest = b""
    async for piece in process.stdout:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            event = json.loads(line)
            view.take(event)
            watch(view, event["event"])


async def _end(process: trio.Process) -> None:
    """Let a process leave politely, then kill it."""
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
        with trio.move_on_after(LEAVE_S):
            await process.wait()
        process.kill()
        await process.wait()
