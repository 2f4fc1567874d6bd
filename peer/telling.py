"""Events of the journal, made of what the rooms know: the training process, the node's reports, counts of traffic."""

from __future__ import annotations

from gossip.events import Distrust, Joined, RolloutReport, RoundReport
from peer.config import PeerConfig
from peer.exchange import Traffic
from peer.joining_event import JoinedLate
from peer.journal import Journal
from peer.journal_events import Measured, ModelReady, Note, Preparing, RoundDone, StepTaken
from peer.left_out_event import LeftOut
from peer.membership import Membership
from peer.rate_event import RateChosen
from peer.rollouts_event import RolloutsShared
from peer.training.frames import Evaluated, RateChoice, Ready, Step
from peer.training.supervisor import Callbacks


def training_callbacks(journal: Journal) -> Callbacks:
    """Return what tells the journal of the training process."""

    def preparing(stage: str, done: float | None) -> None:
        journal.emit(Preparing(stage=stage, done=done))

    def step(round: int, step: Step) -> None:
        journal.emit(StepTaken(round=round, step=step.step, steps=step.steps, loss=step.loss))

    def evaluated(round: int, result: Evaluated) -> None:
        journal.emit(measured(round, result))

    def restarting(reason: str, round: int) -> None:
        text = f"the training process died: {reason}\nrestarting it from round {round}"
        journal.emit(Note(text=text))

    return Callbacks(preparing=preparing, step=step, evaluated=evaluated, restarting=restarting)


def model_ready(config: PeerConfig, ready: Ready) -> ModelReady:
    """Return the event of a training process that is ready."""
    return ModelReady(
        model=ready.model_name,
        dtype=ready.manifest["base_dtype"],
        device=ready.device,
        base_parameters=ready.base_parameters,
        adapter=config.model.adapter,
        adapter_values=ready.initial.spec.size,
        data_report=ready.data_report,
        rows=ready.rows,
        rows_held_out=ready.rows_held_out,
        sequences=ready.sequences,
        seconds=ready.seconds,
    )


def rate_chosen(choice: RateChoice) -> RateChosen:
    """Return the event of a learning rate that the user did not give."""
    return RateChosen(
        rate=choice.rate,
        source=choice.source,
        why=choice.why,
        tried_rates=tuple(rate for rate, _ in choice.tried),
        gains=tuple(gain for _, gain in choice.tried),
    )


def measured(round: int, result: Evaluated) -> Measured:
    """Return the event of a measurement after ``round`` rounds."""
    return Measured(
        round=round,
        own=result.own,
        all=result.all,
        per_file=dict(result.per_file),
        accuracy=result.accuracy,
        accuracy_all=result.accuracy_all,
    )


def dropped_step(round: int, batch_size: int) -> str:
    """Return what the user is told of a step that did not fit into memory; ``round``: from 0."""
    return (
        f"a step of round {round + 1} did not fit into memory and was dropped; from now on a batch has at most "
        f"{max(1, batch_size // 2)} sequences. To choose yourself: a lower --batch-size or --max-length"
    )


def left_out(distrust: Distrust, membership: Membership) -> LeftOut:
    """Return the event of a neighbor that is left out."""
    return LeftOut(
        peer=membership.display_name(distrust.peer),
        round=distrust.round,
        loss=distrust.loss,
        limit=distrust.limit,
        rounds=distrust.rounds,
    )


def joined_late(joined: Joined, rounds: int, membership: Membership) -> JoinedLate:
    """Return the event of our coming to a run under way; ``rounds``: how many there will be in all."""
    peers = tuple(map(membership.display_name, joined.peers))
    return JoinedLate(
        round=joined.round, rounds=rounds, peers=peers, asked=joined.asked, why_not=joined.why_not
    )


def round_done(
    report: RoundReport,
    rounds: int,
    membership: Membership,
    traffic: Traffic,
    *,
    saved: bool,
    shares_weights: bool,
) -> RoundDone:
    """Return the event of a round; ``rounds``: how many there will be in all; ``saved``: it survives a crash."""
    name = membership.display_name
    return RoundDone(
        round=report.round,
        rounds=rounds,
        merging=report.merging,
        loss=report.loss,
        age=report.age,
        shares_weights=shares_weights,
        mixed=tuple(name(peer) for peer, _, _ in report.mixed),
        mixed_rounds=tuple(round for _, round, _ in report.mixed),
        failed=tuple((name(peer), reason) for peer, reason in report.failed),
        objections=tuple((name(peer), reason) for peer, reason in report.objections),
        neighbors=tuple(name(one.peer) for one in report.neighbors),
        distances=tuple(one.distance for one in report.neighbors),
        distance_ratios=tuple(one.ratio for one in report.neighbors),
        cosines=tuple(one.cosine for one in report.neighbors),
        drifts=tuple(one.drift for one in report.neighbors),
        trimmed=tuple((one.trimmed, one.rounds) for one in report.neighbors),
        objected=tuple(one.objections for one in report.neighbors),
        measurements=report.measurements,
        drift=report.mixing_change,
        cross_term=report.cross_term,
        collect_s=report.collect_s,
        deadline_s=report.deadline_s,
        peers=membership.up_count,
        bytes_in=traffic.bytes_in,
        bytes_out=traffic.bytes_out,
        mask_bytes=traffic.mask_bytes,
        fetches_ok=traffic.fetches_ok,
        fetches_failed=traffic.fetches_failed,
        rejected=dict(traffic.rejected),
        saved=saved,
    )


def rollouts_shared(round: int, report: RolloutReport, membership: Membership) -> RolloutsShared:
    """Return the event of what a round has shared of rollouts."""
    name = membership.display_name
    return RolloutsShared(
        round=round,
        published=report.published,
        bytes=report.bytes,
        came=tuple((name(peer), count) for peer, count in report.came),
        usable=tuple((name(peer), count) for peer, count in report.usable),
    )
