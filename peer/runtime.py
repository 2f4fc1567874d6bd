"""One peer at work: one nursery, one inbox, one loop that gives events to the node and carries out its actions.

The node decides, this file performs: training in its process, pulls and serving over the transport, timers and
checkpoints. A bug of ours raises in the loop and stops the peer loudly; whatever another peer does is data. It knows
no libp2p (any ``TransportFactory`` will do) and no peft.

``run_peer`` is the life of a peer: its start, in which the training process says what the run is made of; ``Peer``,
which holds all that exists only while it takes part; and its polite end.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

import trio

from gossip.errors import Diverged
from gossip.events import (
    ROW,
    Action,
    Check,
    Checked,
    Distrust,
    Event,
    Fetch,
    FetchSum,
    Finish,
    Penalize,
    Publish,
    Report,
    SetTimer,
    Start,
    Stop,
    TimerFired,
    Train,
    Trained,
    TrainingFailed,
)
from gossip.node import GossipNode
from peer.audit_event import Audited
from peer.auditing import NoAudit, SeenAdapters, audit, warnings
from peer.checkpoints import Home
from peer.exchange import Traffic
from peer.journal import Journal
from peer.journal_events import Finished, Listening, Note, Resumed, Started
from peer.leaving import Leaving
from peer.membership import Membership
from peer.model_card import write_card
from peer.network.identity import peer_id
from peer.network.transport import TransportFactory
from peer.personal import personalize
from peer.prepared_run import PreparedRun, prepare_run
from peer.round_records import RoundRecords
from peer.run_manifest import join_line
from peer.run_plan import RunPlan
from peer.streams import Streams, open_streams
from peer.telling import dropped_step, left_out, measured, model_ready, rate_chosen, training_callbacks
from peer.training.export import load_line_of
from peer.training.process import TrainerProcess
from peer.training.supervisor import StartTrainer, TrainingSupervisor, supervised_training

LINGER_S = 60.0
"""After its last round a peer goes on serving for at most this long, or until all others are done. Source: guess."""


async def run_peer(
    plan: RunPlan,
    home: Home,
    key: bytes,
    factory: TransportFactory,
    journal: Journal,
    start_trainer: StartTrainer = TrainerProcess.start,
) -> int | None:
    """Run a peer until its rounds are done or a signal ends it; return that signal's number, if one did.

    Args:
        plan: what to do.
        home: the locked home folder.
        key: the identity's 32 private key bytes; ``factory`` was made with the same.
        factory: starts the transport.
        journal: where everything is told.
        start_trainer: starts the training process; measurements of everything else put an idle one in its place.

    Raises:
        LocalError: whatever makes going on impossible; what was saved stays.
    """
    leaving = Leaving(journal)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leaving.watch, signals)
            try:
                await live(plan, home, key, factory, journal, start_trainer, leaving)
            finally:
                nursery.cancel_scope.cancel()
    return leaving.signal


async def live(
    plan: RunPlan,
    home: Home,
    key: bytes,
    factory: TransportFactory,
    journal: Journal,
    start_trainer: StartTrainer,
    leaving: Leaving,
) -> None:
    """Start, take part, leave: ``run_peer`` without the signals, of which a process has only one set.

    Args:
        key: the identity's 32 private key bytes.
        leaving: ends it before its rounds are done.
    """
    config, callbacks, me = plan.config, training_callbacks(journal), peer_id(key)
    name = config.network.name or me[-6:]
    journal.emit(Started(name=name, peer_id=me, home=home.path))
    if note := plan.robust_note():
        journal.emit(Note(text=note))
    checkpoint, complaints = home.newest()
    for complaint in complaints:
        journal.emit(Note(text=complaint))
    round, trainer_state = (checkpoint.round, checkpoint.trainer_state) if checkpoint else (0, None)
    with leaving.scope:
        supervised = supervised_training(config, round, trainer_state, callbacks, start_trainer)
        async with supervised as (training, ready):
            run = prepare_run(plan.with_rate(ready.rate), home, key, name, checkpoint, ready)
            journal.emit(model_ready(config, ready))
            if ready.rate:
                journal.emit(rate_chosen(ready.rate))
            for note in ready.notes:
                journal.emit(Note(text=note))
            await take_part(run, training, factory, journal, leaving)
    if leaving.signal and not home.has_checkpoint:
        journal.emit(Note(text="stopped before the first round was complete; nothing to resume"))


async def take_part(
    run: PreparedRun,
    training: TrainingSupervisor,
    factory: TransportFactory,
    journal: Journal,
    leaving: Leaving,
) -> None:
    """Listen, join the others, go through the rounds, and say goodbye."""
    # Unbounded on purpose: every source is bounded by itself (one event per fetch, timer, round or announcement),
    # and posting must never wait, because the network loop does it.
    post_to, inbox = trio.open_memory_channel[Event](math.inf)
    post, traffic = post_to.send_nowait, Traffic()
    told, incarnation = lambda text: journal.emit(Note(text=text)), run.signer.incarnation
    membership = Membership(run.manifest, run.name, post, told, traffic, run.announced, incarnation)
    if run.checkpoint:
        journal.emit(Resumed(round=run.checkpoint.round, checkpoint=run.checkpoint.path))
    node = run.node()
    membership.progressed(node.round)
    async with (
        open_streams(factory, run, membership, traffic, post) as streams,
        trio.open_nursery() as nursery,
    ):
        peer = Peer(
            run=run,
            node=node,
            inbox=inbox,
            post=post,
            nursery=nursery,
            training=training,
            membership=membership,
            streams=streams,
            records=RoundRecords(run, membership, traffic, journal),
            seen=SeenAdapters(run.ready.initial, is_wanted=run.plan.config.privacy.audit),
            journal=journal,
        )
        await peer.records.saving.export()
        await peer.gather()
        with leaving.politely(lambda: post(Stop())):
            await peer.go_through_rounds()
        await peer.finish()
        nursery.cancel_scope.cancel()


@dataclass(slots=True, kw_only=True)
class Peer:
    """The shell around one ``GossipNode``; it exists while the transport is up, and has everything from the beginning.

    Args:
        run: what we take part in.
        node: decides.
        inbox, post: what happened, on its way to the node; ``post`` never blocks.
        nursery: where everything runs that takes its time.
        training: takes local steps and measures.
        membership: who is there.
        streams: what comes and goes over the transport.
        records: what stays of a round.
        seen: the adapters that are audited at the end.
        journal: where everything is told.
    """

    run: PreparedRun
    node: GossipNode
    inbox: trio.MemoryReceiveChannel[Event]
    post: Callable[[Event], None]
    nursery: trio.Nursery
    training: TrainingSupervisor
    membership: Membership
    streams: Streams
    records: RoundRecords
    seen: SeenAdapters
    journal: Journal
    is_done: bool = False
    has_stopped: bool = False  # training has; the user knows

    async def gather(self) -> None:
        """Say where we listen, join the peers we were given and wait for as many as wanted."""
        config, checkpoint = self.run.plan.config, self.run.checkpoint
        addresses = self.streams.addresses
        self.nursery.start_soon(self.membership.run)
        self.journal.emit(Listening(addresses=addresses, join=join_line(config, addresses)))
        remembered, complaints = self.run.home.remembered_peers() if checkpoint else ((), [])
        for complaint in complaints:
            self._note(complaint)
        if others := tuple(dict.fromkeys((*config.network.join, *remembered))):
            # A restarted peer's friends may be away just now: only a first start insists.
            await self.membership.join(others, config.network.join_timeout_s, required=checkpoint is None)
        wanted, wait_s = config.network.wait_peers, config.network.wait_peers_s
        if wanted and (came := await self.membership.wait_for(wanted, wait_s)) < wanted:
            self._note(f"{came} of {wanted} peers came within {wait_s:g} s; starting")

    async def go_through_rounds(self) -> None:
        """Let the node decide until it says that it is done."""
        self.post(Start())
        own_thread = trio.CapacityLimiter(1)  # nothing that others can delay may wait in the same row
        async for event in self.inbox:
            # In a thread: mixing a large adapter must not stop the sockets for longer than a switch interval.
            actions = await trio.to_thread.run_sync(
                self.node.handle, event, trio.current_time(), limiter=own_thread
            )
            for action in actions:
                await self._perform(action)
            if self.is_done:
                return

    async def finish(self) -> None:
        """Measure the result, serve the last adapter to those who are not done yet, and say goodbye."""
        complete = self.node.round >= self.node.rounds
        audits: list[Audited] = []
        if complete:
            self.journal.emit(measured(self.node.round, await self.training.evaluate(self.node.state)))
            if self.run.plan.config.mixing.personalize:
                await self._personalize()
            if self.run.plan.config.privacy.audit:
                audits = await self._audit()
            with trio.move_on_after(LINGER_S):
                while not self.membership.all_reached(self.node.rounds):
                    await trio.sleep(0.2)  # no event says that the last of the others is done
        await self.membership.say_goodbye()
        await self.records.saving.finish()
        await write_card(self.run, self.node.round, audits)
        adapter = self.run.home.adapter
        load = load_line_of(adapter, self.run.plan.config.model) if self.records.saving.checkpoint else None
        refused = dict(self.streams.refused)
        self.journal.emit(
            Finished(complete=complete, round=self.node.round, adapter=adapter, load=load, refused=refused)
        )

    async def _perform(self, action: Action) -> None:
        match action:
            case Train():
                self.nursery.start_soon(self._train, action)
            case Publish():
                self.streams.publish(action.published)
            case Fetch():
                self.nursery.start_soon(self.streams.fetch, action)
            case FetchSum():
                self.nursery.start_soon(self.streams.fetch_sum, action)
            case SetTimer():
                self.nursery.start_soon(self._wait, action)
            case Check():
                self.nursery.start_soon(self._check, action)
            case Distrust():
                self.journal.emit(left_out(action, self.membership))
            case Penalize():
                if action.peer != ROW:  # of a sum nobody knows whose fault it is
                    self.membership.strike(action.peer, action.reason)
            case Report():
                await self._report(action)
            case Finish():
                self.is_done = True
            case _:
                assert_never(action)

    async def _train(self, action: Train) -> None:
        try:
            trained = await self.training.train(
                action.state,
                action.round,
                action.trainable,
                action.correction,
                lambda: self.records.saving.trainer_file(action.round),
                action.rollouts,
            )
        except Diverged as error:
            self._note(f"training has diverged in round {action.round + 1}: {error}")
            self.records.saving.keep_trainer_file(action.round)
            self.post(TrainingFailed(action.round, str(error)))
        else:
            if trained.dropped:
                self._note(dropped_step(action.round, self.run.plan.config.training.batch_size))
            if trained.unsaved:
                self.records.saving.trainer_refused(action.round, trained.unsaved)
            if trained.stopped and not self.has_stopped:
                self.has_stopped = True
                self._note(f"from round {action.round + 1} on: {trained.stopped}")
            self.post(Trained(trained.state, trained.steps, trained.loss, trained.rollouts))

    async def _check(self, action: Check) -> None:
        rows = self.run.plan.config.mixing.check_rows
        self.post(Checked(action.round, await self.training.probe(action.candidate, rows)))

    async def _wait(self, action: SetTimer) -> None:
        await trio.sleep(action.delay_s)
        self.post(TimerFired(action.round))

    async def _report(self, action: Report) -> None:
        if action.whole:
            self.streams.publish(action.whole)
        if action.report.went_back:
            text = f"round {action.report.round + 1} did us no good: going on from the last adapter that was in order"
            self._note(text)
        self.seen.completed(action.report, self.membership.display_name)
        checkpoint = await self.records.write(action.report, self.node.snapshot(), self.node.rounds)
        if checkpoint:
            self.training.restart_from(checkpoint.round, checkpoint.trainer_state)

    async def _personalize(self) -> None:
        """Keep the mix of our own and the common adapter that does best on our held-out rows."""
        own = self.node.own
        if own is None:
            self._note("no personal adapter: our own was not kept over the restart; run more rounds for one")
            return
        home, export = self.run.home, self.run.ready.export
        self.journal.emit(await personalize(self.training, own, self.node.state, home, export))

    async def _audit(self) -> list[Audited]:
        """Measure what adapters of this run tell of our rows; return what was found."""
        found: list[Audited] = []

        def tell(outcome: Audited) -> None:
            found.append(outcome)
            self.journal.emit(outcome)

        adapters = self.seen.all(self.node.own, self.node.state)
        self._note(f"auditing {len(adapters)} adapters on our own rows")
        try:
            await audit(self.training, self.run.ready.initial, adapters, tell)
        except NoAudit as error:
            self._note(str(error))
        if text := warnings(found):
            self._note(text)
        return found

    def _note(self, text: str) -> None:
        self.journal.emit(Note(text=text))
