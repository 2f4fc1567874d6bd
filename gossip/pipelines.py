"""The pipelines of a node, that of its rounds (one for each part that takes turns) and that of the final merge, and
which adapter is whose.

Rounds from ``settings.rounds`` on are those of the final merge. It knows neither events nor time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from gossip.adapter import AdapterState
from gossip.errors import RemoteError
from gossip.events import Train
from gossip.final_merge import MERGE_ROUNDS_MAX
from gossip.messages import Kind
from gossip.methods import products
from gossip.methods.catalogue import find
from gossip.methods.contribution import Contribution
from gossip.methods.factors import switching_interval
from gossip.methods.method_set import resolve
from gossip.methods.parts import Part, Starts
from gossip.methods.pipeline import Mixed, Pipeline
from gossip.methods.reach import Distances, Reach, RoundReach, vector_distance
from gossip.methods.requirements import State
from gossip.methods.robust import ROBUST, RobustRow
from gossip.methods.stage import RoundContext, RowRule
from gossip.published import PublishedAdapter
from gossip.settings import NodeSettings
from gossip.sightings import Sightings
from gossip.tail_average import TailAverage
from topology.consensus import measured_contraction


class Row(NamedTuple):
    """What a round mixes.

    Attributes:
        context: of the round; its ``trained`` is our adapter after local steps.
        contributions: what has come and is usable, in sorted order of senders.
        neighbor_weight: the share of the row of W that is not ours.
        reads: how many neighbors the row of W names, whether or not they came.
    """

    context: RoundContext
    contributions: Sequence[Contribution]
    neighbor_weight: float
    reads: int


class Pipelines:
    """One peer's numbers.

    Args:
        me: our peer id.
        settings: what the node runs.
        initial: the adapter that all peers began with.
        saved: ``tensors()`` of an earlier life.
        state: the adapter to go on from; None = ``initial``.
    """

    def __init__(
        self,
        me: str,
        settings: NodeSettings,
        initial: AdapterState,
        saved: State | None = None,
        state: AdapterState | None = None,
    ) -> None:
        self._initial = initial
        self._methods = methods = resolve(settings.names, initial.spec)
        self._settings = settings
        saved, parts = saved or {}, tuple(plan.part for plan in methods.parts)
        self._rounds = [
            Pipeline(me, plan, initial, settings.norm_cap, _of_part(number, len(parts), saved))
            for number, plan in enumerate(methods.parts)
        ]
        self._starts = Starts(parts, state or initial, saved)
        self._merge = Pipeline(me, methods.merge, initial, settings.norm_cap)
        self._tail = TailAverage(settings.rounds, settings.average_last, saved)
        self._interval = methods.factor_rule.interval  # None until it is measured
        self._distance = Distances(products.distance if methods.factor_rule.refactors else vector_distance)
        merged = (methods.merge.part,) if len(parts) > 1 else ()
        self._sightings = Sightings(*(part.of(initial) for part in (*parts, *merged)))
        self._robust = find("robust rule", settings.robust, ROBUST)
        self._reaches = [
            Reach(settings.step_cap, self._moved(part, initial, state) if state else 0.0) for part in parts
        ]

    @property
    def newest_only(self) -> bool:
        """An adapter older than the last one mixed of its sender must not be mixed."""
        return self._methods.mixer.newest_only

    def confirms(self, round: int) -> bool:
        """Tell whether a round counts only exchanges that both sides know of."""
        return self._methods.mixer.confirms and not self.is_merging(round)

    def is_merging(self, round: int) -> bool:
        """Tell whether a round is one of the final merge."""
        return round >= self._settings.rounds

    def kind_of(self, round: int) -> Kind:
        """Return what an adapter of a round is called on the wire."""
        return "merge" if self.is_merging(round) else "round"

    def tensors(self) -> State:
        """Return all that a checkpoint keeps; the final merge remembers nothing."""
        count, tensors = len(self._rounds), {**self._tail.tensors(), **self._starts.tensors()}
        for number, pipeline in enumerate(self._rounds):
            prefix = _prefix(number, count)
            tensors |= {prefix + name: tensor for name, tensor in pipeline.tensors().items()}
        return tensors

    def base_of(self, peer: str) -> bytes:
        """Return the fingerprint of what we keep of a peer that its next payload may build on; empty = nothing."""
        return self._rounds[0].base_of(peer)  # replicas and parts do not go together

    def forget(self, peer: str) -> None:
        """Drop what is of no use once a peer has gone."""
        for pipeline in self._rounds:
            pipeline.forget(peer)

    def likeness(self, mixed: Mixed) -> dict[str, float]:
        """Return peer -> cosine between what it has learned and what we have, in [-1, 1], of what was mixed."""
        plans = (*self._methods.parts, self._methods.merge)
        place = next(place for place, plan in enumerate(plans) if plan.shared_spec == mixed.own.state.spec)
        return (*self._rounds, self._merge)[place].likeness(mixed)

    def train(self, state: AdapterState, round: int, members: int) -> Train:
        """Return what local steps this round begins with; so many members are known."""
        if self._interval is None:
            self._interval = switching_interval(measured_contraction(self._settings.topology, members))
        trainable = self._methods.factor_rule.trainable(round, self._interval)
        return Train(state, round, trainable, self._of(round).correction(state.spec))

    def publish(self, context: RoundContext) -> PublishedAdapter:
        """Return our adapter of a round."""
        published = self._of(context.round).publish(self._starts.of(context))
        return replace(published, kind=self.kind_of(context.round))

    def read(self, sender: str, published: PublishedAdapter, weight: float) -> Contribution:
        """Return what a neighbor has published in one of its rounds, of this weight in our row.

        Raises:
            RemoteError: ``"malformed"``: no round of this run is like that; else as ``Pipeline.read``.
        """
        if published.kind != self.kind_of(published.round):
            raise RemoteError("malformed", f"round {published.round} cannot be of kind {published.kind}")
        if published.round >= self._settings.rounds + MERGE_ROUNDS_MAX:
            raise RemoteError("malformed", f"round {published.round} is beyond the end of this run")
        return self._of(published.round).read(sender, published, weight)

    def is_usable(self, contribution: Contribution, round: int) -> bool:
        """Tell whether an adapter can be mixed in a round: of the other phase only a plain one, and no other part."""
        of_merge = self.is_merging(contribution.round)
        if of_merge == self.is_merging(round):
            return of_merge or (contribution.round - round) % len(self._rounds) == 0
        return self._methods.sends_plain_adapters and (of_merge or self._methods.merges_as_it_mixes)

    def mix(self, row: Row, excluded: frozenset[str] = frozenset(), *, tried: Mixed | None = None) -> Mixed:
        """Mix a round's row; returns the adapter to go on with.

        Args:
            row: what has come.
            excluded: senders that are left out.
            tried: what ``try_mix`` has just returned of the same; it is kept, because to mix twice costs twice.
        """
        if tried is None:
            mixed = self._mixed(row, excluded)
        else:
            mixed = tried
            self._of(row.context.round).adopt_trial()
        self._tail.note(row.context.round, mixed.state)
        reach = self._reaches[row.context.round % len(self._reaches)]
        distances = {one.sender: self._distance(one.state, mixed.own.state) for one in mixed.came}
        if reach.is_on:
            movement, seen = self._movement(row.context), [distances[one.sender] for one in mixed.others]
            radius = reach.radius(movement, seen)
            reach.record(movement, [min(far, radius) for far in seen])
        self._starts.note(row.context.round, mixed.state)
        neighbors = self._sightings.note(mixed.own.state, mixed.came, distances, mixed.objections)
        self._distance.forget()
        return replace(mixed, neighbors=neighbors)

    def try_mix(self, row: Row, excluded: frozenset[str] = frozenset(), *, is_robust: bool = True) -> Mixed:
        """Return what ``mix`` would, or would without a robust rule, and leave everything as it is."""
        with self._of(row.context.round).trial():
            return self._mixed(row, excluded, is_robust=is_robust)

    def reset(self, state: AdapterState) -> None:
        """Forget what is remembered of an adapter that is given up for this one."""
        for pipeline, plan, reach in zip(self._rounds, self._methods.parts, self._reaches, strict=True):
            pipeline.reset()
            reach.went_to(self._moved(plan.part, self._initial, state))
        self._starts.reset(state)
        self._tail.reset()

    def _mixed(self, row: Row, excluded: frozenset[str], *, is_robust: bool = True) -> Mixed:
        mixed = self._mixed_row(row, excluded, is_robust=is_robust)
        return replace(mixed, state=self._tail.ends_with(row.context.round, mixed.state))

    def _mixed_row(self, row: Row, excluded: frozenset[str], *, is_robust: bool) -> Mixed:
        context, pipeline = row.context, self._of(row.context.round)
        robust = self._row_rule(row) if is_robust else None
        mix = partial(pipeline.mix, reach=self._round_reach(context), excluded=excluded, robust=robust)
        if not self._settings.overlap or self.is_merging(context.round):
            return mix(self._starts.of(context), row.contributions, row.neighbor_weight)
        # What was published is mixed; what has been learned meanwhile comes on top.
        start = context.start
        published = self._starts.of(replace(context, trained=start))
        mixed = mix(published, row.contributions, row.neighbor_weight)
        flat = mixed.state.flat + (context.trained.flat - start.flat)
        return replace(mixed, state=AdapterState(start.spec, flat))

    def _movement(self, context: RoundContext) -> float:
        """Return how far local steps have moved what travels of our adapter, since it travelled last."""
        parts = self._methods.parts
        if not self.is_merging(context.round):
            context = self._starts.of(context)
        return self._moved(parts[context.round % len(parts)].part, context.start, context.trained)

    def _moved(self, part: Part, start: AdapterState, end: AdapterState) -> float:
        return self._distance(part.of(end), part.of(start)) if self._settings.step_cap < math.inf else 0.0

    def _round_reach(self, context: RoundContext) -> RoundReach | None:
        """Return how far others may lie from us; in the merge, in which each is met once, only our path counts."""
        reach = self._reaches[context.round % len(self._reaches)]
        if not reach.is_on:
            return None
        movement, merging = self._movement(context), self.is_merging(context.round)
        radius = partial(self._longest if merging else reach.radius, movement)
        return RoundReach(self._distance, radius, by_weight=self._methods.factor_rule.refactors)

    def _longest(self, movement: float, distances: Sequence[float]) -> float:
        """Return the bound by our own path alone: of parts, the sum of theirs, which no whole is longer than."""
        return sum(reach.longest(movement, distances) for reach in self._reaches)

    def _row_rule(self, row: Row) -> RowRule | None:
        """Return the robust rule for a round's row; the merge has its own (``merging.py``)."""
        if self._settings.robust == "none" or self.is_merging(row.context.round):
            return None
        about = RobustRow(row.reads, self._distance, by_weight=self._methods.factor_rule.refactors)
        return lambda own, others: self._robust.apply(own, others, about)

    def _of(self, round: int) -> Pipeline:
        return self._merge if self.is_merging(round) else self._rounds[round % len(self._rounds)]


def _prefix(number: int, count: int) -> str:
    """Return what a checkpoint puts before the names of a part's tensors; nothing where there is one part."""
    return f"part-{number}-of-{count}/" if count > 1 else ""


def _of_part(number: int, count: int, saved: State) -> State:
    prefix = _prefix(number, count)
    return {name.removeprefix(prefix): tensor for name, tensor in saved.items() if name.startswith(prefix)}
