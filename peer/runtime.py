"""One peer at work: one nursery, one inbox, one loop that gives events to the node and carries out its actions.

The node decides, this file performs: training in its process, pulls and serving over the transport, timers and
checkpoints. A bug of ours raises in the loop and stops the peer loudly; whatever another peer does is data. It knows
no libp2p (any ``TransportFactory`` will do) and no peft.
"""

from __future__ import annotations

import math
import random
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, assert_never

import trio
from torch import Tensor

from gossip.adapter import AdapterState
from gossip.errors import LocalError, RemoteError
from gossip.events import (
    Action,
    Event,
    Fetch,
    Fetched,
    FetchFailed,
    Finish,
    Penalize,
    Publish,
    Report,
    RoundReport,
    Served,
    SetTimer,
    Start,
    Stop,
    TimerFired,
    Train,
    TrainableFactors,
    Trained,
)
from gossip.manifest import RunManifest
from gossip.messages import Pull
from gossip.node import GossipNode
from peer.checkpoints import TRAINER_STATE, Checkpoint, Home, HomeError
from peer.config import PeerConfig
from peer.exchange import ADAPTER, CONTROL, Publisher, Traffic, pull
from peer.journal import Journal
from peer.membership import Membership
from peer.network.identity import peer_id
from peer.network.transport import Stream, TransportFactory, Unreachable
from peer.personal import personalize
from peer.run_plan import join_line, manifest_of, methods_of, node_settings, ready_fields
from peer.training.export import load_line_of
from peer.training.frames import Evaluated, OnStep, Progress, Ready, Step
from peer.training.frames import Trained as RoundTrained
from peer.training.process import TrainerDied, TrainerProcess

FAULTS = frozenset({"malformed", "oversized", "shape", "digest"})
"""Reasons that no honest peer of our run ever gives: they count as strikes."""
LINGER_S = 60.0
"""After its last round a peer goes on serving for at most this long, or until all others are done. Source: guess."""
STEP_EVENT_S = 0.5
"""Training steps are reported at most this often: a tiny model makes a hundred a second."""


class TrainerFailed(LocalError):
    """The training process died twice."""

    exit_code = 8


@dataclass(slots=True)
class Stopped:
    """How a run ended. ``signal``: the signal number that stopped it, or None; ``round``: rounds completed."""

    signal: int | None
    round: int


class Trainer(Protocol):
    """What the loop needs of a training process; ``TrainerProcess`` is the real one (see there)."""

    async def train(
        self,
        state: AdapterState,
        round: int,
        save_to: Path,
        on_step: OnStep,
        trainable: TrainableFactors,
        correction: Tensor | None,
    ) -> RoundTrained: ...

    async def evaluate(self, state: AdapterState) -> Evaluated: ...

    async def stop(self) -> None: ...


StartTrainer = Callable[[PeerConfig, Path | None, Progress], Awaitable[tuple[Trainer, Ready]]]


async def run_peer(
    config: PeerConfig,
    home: Home,
    key: bytes,
    factory: TransportFactory,
    journal: Journal,
    start_trainer: StartTrainer = TrainerProcess.start,
) -> Stopped:
    """Run a peer until its rounds are done or it is told to stop.

    Args:
        config: all settings.
        home: the locked home folder.
        key: the identity's 32 private key bytes; ``factory`` was made with the same.
        factory: starts the transport.
        journal: where everything is reported.
        start_trainer: starts the training process; measurements of everything else put an idle one in its place.

    Raises:
        LocalError: whatever makes going on impossible; what was saved stays.
    """
    me = peer_id(key)
    name = config.name or me[-6:]
    journal.emit("start", name=name, peer_id=me, home=home.path)
    checkpoint, complaints = home.newest()
    for complaint in complaints:
        journal.emit("note", text=complaint)
    peer = Peer(config, home, me, name, journal, checkpoint, start_trainer)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.watch_signals, signals)
            try:
                await peer.run(factory)
            finally:
                nursery.cancel_scope.cancel()
    return Stopped(peer.stopped_by, peer.round)


class Peer:
    """The shell around one ``GossipNode``."""

    def __init__(
        self,
        config: PeerConfig,
        home: Home,
        me: str,
        name: str,
        journal: Journal,
        checkpoint: Checkpoint | None,
        start_trainer: StartTrainer,
    ) -> None:
        self.stopped_by: int | None = None
        self.round = checkpoint.round if checkpoint else 0
        self._config = config
        self._home = home
        self._me = me
        self._name = name
        self._journal = journal
        self._checkpoint = checkpoint
        self._traffic = Traffic()
        self._start = start_trainer
        self._trainer: Trainer | None = None
        self._trainer_deaths = 0
        # Unbounded on purpose: every source is bounded by itself (one event per fetch, timer, round or announcement),
        # and posting must never wait, because the network loop does it.
        self._post_to, self._inbox = trio.open_memory_channel[Event](float("inf"))
        self._interrupt = trio.CancelScope()
        self._is_looping = False
        self._remembered: tuple[str, ...] = ()
        self._listening = trio.Event()
        self._finished = trio.Event()

    # -- life

    async def run(self, factory: TransportFactory) -> None:
        """Start training process, transport and membership; run the loop; leave politely."""
        try:
            with self._interrupt:
                ready = await self._start_trainer()
                self._methods = methods_of(self._config, ready.initial.spec)
                manifest = manifest_of(self._config, ready, self._methods)
                self._check_run(manifest)
                self._journal.emit("ready", **ready_fields(self._config, ready))
                await self._take_part(factory, ready, manifest)
        finally:
            if self._trainer:
                await self._trainer.stop()
        if self.stopped_by and self._checkpoint is None:
            self._journal.emit("note", text="stopped before the first round was complete; nothing to resume")

    async def watch_signals(self, signals: object) -> None:
        """First signal: leave politely. Second: at once."""
        async for number in signals:  # type: ignore[attr-defined]
            if self.stopped_by is None:
                self.stopped_by = number
                self._journal.emit("note", text="leaving (once more to leave at once)")
                self._post(Stop())
                if not self._is_looping:
                    self._interrupt.cancel()  # nothing has begun, or all is done: there is no round to end
            else:
                self._interrupt.cancel()

    async def _take_part(self, factory: TransportFactory, ready: Ready, manifest: RunManifest) -> None:
        config = self._config
        self._manifest = manifest
        self._export = ready.export
        self._membership = Membership(manifest, self._name, self._post, self._note, self._traffic)
        self._publisher = Publisher(manifest.fingerprint, self._traffic)
        self._node = self._make_node(ready)
        self._membership.round = self._node.round
        async with factory(
            handlers={CONTROL: self._serve_control, ADAPTER: self._serve_adapter},
            topic=self._membership.topic,
            on_announced=self._membership.on_announced,
            on_connection=self._membership.on_connection,
        ) as transport:
            self._transport = transport
            self._membership.use(transport)
            self._listening.set()
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._membership.run)
                self._journal.emit(
                    "listening",
                    addresses=list(transport.addresses),
                    join=join_line(config, transport.addresses),
                )
                await self._gather()
                self._post(Start())
                self._is_looping = True
                await self._loop()
                self._is_looping = False
                await self._linger()
                await self._membership.say_goodbye()
                nursery.cancel_scope.cancel()

    def _make_node(self, ready: Ready) -> GossipNode:
        config, checkpoint = self._config, self._checkpoint
        rng = random.Random(f"{config.seed}/{self._me}")
        state = checkpoint.state if checkpoint else ready.initial
        if checkpoint:
            self._journal.emit("resumed", round=checkpoint.round, checkpoint=checkpoint.path)
        return GossipNode(
            self._me,
            state,
            node_settings(config, self._methods.names),
            rng,
            snapshot=checkpoint.snapshot if checkpoint else None,
            initial=ready.initial,
        )

    async def _gather(self) -> None:
        """Join the peers we were given and wait for as many as wanted."""
        config = self._config
        remembered = self._home.remembered_peers() if self._checkpoint else ()
        if addresses := tuple(dict.fromkeys((*config.join, *remembered))):
            # A restarted peer's friends may be away just now: only a first start insists.
            required = self._checkpoint is None
            await self._membership.join(addresses, config.join_timeout_s, required=required)
        if config.wait_peers:
            found = await self._membership.wait_for(config.wait_peers, config.wait_peers_s)
            if found < config.wait_peers:
                self._note(
                    f"{found} of {config.wait_peers} peers came within {config.wait_peers_s:g} s; starting"
                )

    async def _loop(self) -> None:
        async for event in self._inbox:
            # In a thread: mixing a large adapter must not stop the sockets for longer than a switch interval.
            actions = await trio.to_thread.run_sync(self._node.handle, event, trio.current_time())
            for action in actions:
                await self._perform(action)
            if self._finished.is_set():
                return

    async def _perform(self, action: Action) -> None:
        match action:
            case Train():
                self._nursery.start_soon(self._train, action)
            case Publish():
                self._publisher.publish(action.published)
            case Fetch():
                self._nursery.start_soon(self._fetch, action)
            case SetTimer():
                self._nursery.start_soon(self._time, action)
            case Penalize():
                self._membership.strike(action.peer, action.reason)
            case Report():
                await self._report(action.report)
            case Finish():
                self._finished.set()
            case _:
                assert_never(action)

    async def _linger(self) -> None:
        """Measure the result, then serve the last adapter to those who are not done yet."""
        complete = self._node.round >= self._node.rounds
        if complete:
            await self._evaluate(self._node.round)
            if self._config.personalize:
                await self._personalize()
            with trio.move_on_after(LINGER_S):
                while not self._membership.all_reached(self._node.rounds):
                    await trio.sleep(0.2)  # no event says that the last of the others is done
        self._journal.emit(
            "finished",
            complete=complete,
            round=self._node.round,
            adapter=self._home.adapter,
            load=load_line_of(self._home.adapter, self._config) if self._checkpoint else None,
        )

    # -- training

    async def _start_trainer(self) -> Ready:
        resume = self._checkpoint.trainer_state if self._checkpoint else None

        def preparing(stage: str, done: float | None) -> None:
            self._journal.emit("preparing", stage=stage, done=done)

        self._trainer, ready = await self._start(self._config, resume, preparing)
        return ready

    async def _train(self, action: Train) -> None:
        """Local steps of one round, surviving one death of the training process."""
        while True:
            try:
                assert self._trainer
                if action.round % self._config.eval_every == 0:
                    await self._evaluate(action.round)
                save_to = self._home.begin(action.round + 1) / TRAINER_STATE
                result = await self._trainer.train(
                    action.state,
                    action.round,
                    save_to,
                    self._on_step(action.round),
                    action.trainable,
                    action.correction,
                )
            except TrainerDied as death:
                await self._revive_trainer(death)
                continue
            self._post(Trained(result.state, result.steps, result.loss))
            return

    async def _revive_trainer(self, death: TrainerDied) -> None:
        self._trainer_deaths += 1
        if self._trainer_deaths > 1:
            raise TrainerFailed(
                f"the training process died a second time: {death.reason}\n"
                f"The last complete checkpoint is of round {self.round}; start again to go on from there."
            ) from death
        self._note(f"the training process died: {death.reason}\nrestarting it from round {self.round}")
        await self._start_trainer()

    async def _evaluate(self, round: int) -> None:
        assert self._trainer
        result = await self._trainer.evaluate(self._node.state)
        self._journal.emit(
            "eval",
            round=round,
            own=result.own,
            all=result.all,
            per_file=dict(result.per_file),
            accuracy=result.accuracy,
            accuracy_all=result.accuracy_all,
        )

    async def _personalize(self) -> None:
        """Keep the mix of our own and the common adapter that does best on our held-out rows."""
        assert self._trainer
        own = self._node.own
        if own is None:
            self._note("no personal adapter: our own was not kept over the restart; run more rounds for one")
            return
        event = await personalize(self._trainer, own, self._node.state, self._home, self._export)
        self._journal.emit("personal", **event)

    def _on_step(self, round: int) -> OnStep:
        last = -STEP_EVENT_S

        def on_step(step: Step) -> None:
            nonlocal last
            if time.monotonic() - last >= STEP_EVENT_S:
                last = time.monotonic()
                self._journal.emit("step", round=round, step=step.step, steps=step.steps, loss=step.loss)

        return on_step

    # -- exchange

    async def _fetch(self, action: Fetch) -> None:
        request = Pull(
            self._manifest.fingerprint, action.round, action.newer_than, action.wait_s, base=action.base
        )
        try:
            published = await pull(
                self._transport, action.peer, request, self._methods.lengths, self._traffic
            )
        except RemoteError as error:
            if error.reason != "nothing":
                self._traffic.fetches_failed += 1
            if error.reason in FAULTS:
                self._membership.strike(action.peer, error.reason)
            self._post(FetchFailed(action.peer, error.reason))
        else:
            self._traffic.fetches_ok += 1
            self._post(Fetched(action.peer, published))

    async def _serve_control(self, stream: Stream) -> None:
        await self._listening.wait()  # the first knock can come before we know our own transport
        try:
            await self._membership.serve_control(stream)
        except RemoteError as error:
            await self._rejected(stream, error)

    async def _serve_adapter(self, stream: Stream) -> None:
        try:
            published = await self._publisher.serve(stream)
            if published:
                self._post(Served(stream.peer, published.round))
        except RemoteError as error:
            await self._rejected(stream, error)

    async def _rejected(self, stream: Stream, error: RemoteError) -> None:
        """Count what came over a stream that we were serving; end the stream, and for a fault the connection."""
        await stream.reset()
        if error.reason in FAULTS:
            self._membership.strike(stream.peer, error.reason)
            await self._transport.drop(stream.peer)
        elif not isinstance(error, Unreachable):
            self._traffic.rejected[error.reason] += 1

    async def _time(self, action: SetTimer) -> None:
        await trio.sleep(action.delay_s)
        self._post(TimerFired(action.round))

    # -- the round's end

    async def _report(self, report: RoundReport) -> None:
        node, config, membership = self._node, self._config, self._membership
        snapshot = node.snapshot()
        if report.merging and self._checkpoint:
            self._home.begin(snapshot.round, self._checkpoint.trainer_state)
        self._checkpoint = await trio.to_thread.run_sync(
            self._home.commit,
            report.state,
            snapshot,
            self._manifest.fields(),
            self._export,
            config.keep_checkpoints,
        )
        self.round = snapshot.round
        if (others := membership.addresses_up()) and others != self._remembered:
            self._home.remember_peers(others)
            self._remembered = others
        membership.progressed(snapshot.round)
        for peer, reason in report.failed:
            if reason == "late":
                membership.suspect(peer)
        traffic = self._traffic
        self._journal.emit(
            "round",
            round=report.round,
            rounds=node.rounds,
            merging=report.merging,
            loss=None if report.merging else report.loss,
            age=report.age,
            mixed=[membership.display_name(peer) for peer, _, _ in report.mixed],
            mixed_rounds=[round for _, round, _ in report.mixed],
            failed=[[membership.display_name(peer), reason] for peer, reason in report.failed],
            objections=[[membership.display_name(peer), reason] for peer, reason in report.objections],
            drift=report.mixing_change,
            cross_term=None if math.isnan(report.cross_term) else report.cross_term,
            collect_s=report.collect_s,
            deadline_s=report.deadline_s,
            peers=membership.up_count,
            bytes_in=traffic.bytes_in,
            bytes_out=traffic.bytes_out,
            fetches_ok=traffic.fetches_ok,
            fetches_failed=traffic.fetches_failed,
            rejected=dict(traffic.rejected),
        )

    def _check_run(self, manifest: RunManifest) -> None:
        """Refuse to go on with a checkpoint of another run."""
        if self._checkpoint is None:
            return
        for name, value in manifest.fields().items():
            before = self._checkpoint.run.get(name)
            if before != value:
                raise HomeError(
                    f"{self._home.path} holds a run whose {name} is {before!r}, now it would be {value!r}: "
                    "use the settings it was begun with, or another --home"
                )

    def _post(self, event: Event) -> None:
        self._post_to.send_nowait(event)

    def _note(self, text: str) -> None:
        self._journal.emit("note", text=text)
