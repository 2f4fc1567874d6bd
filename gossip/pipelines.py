"""The two pipelines of a node, that of its rounds and that of the final merge, and which adapter is whose.

Rounds from ``settings.rounds`` on are those of the final merge. It knows neither events nor time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gossip.adapter import AdapterState
from gossip.errors import RemoteError
from gossip.events import Train
from gossip.final_merge import MERGE_ROUNDS_MAX
from gossip.messages import Kind
from gossip.methods.contribution import Contribution
from gossip.methods.factors import switching_interval
from gossip.methods.method_set import resolve
from gossip.methods.pipeline import Mixed, Pipeline
from gossip.methods.requirements import State
from gossip.methods.stage import RoundContext
from gossip.published import PublishedAdapter
from gossip.settings import NodeSettings
from topology.consensus import measured_contraction


class Pipelines:
    """One peer's numbers.

    Args:
        me: our peer id.
        settings: what the node runs.
        initial: the adapter that all peers began with.
        saved: ``tensors()`` of an earlier life.
    """

    def __init__(
        self,
        me: str,
        settings: NodeSettings,
        initial: AdapterState,
        saved: State | None = None,
    ) -> None:
        self._methods = methods = resolve(settings.names, initial.spec)
        self._settings = settings
        self._rounds = Pipeline(me, methods.rounds, initial, settings.norm_cap, saved)
        self._merge = Pipeline(me, methods.merge, initial, settings.norm_cap)
        self._interval = methods.factor_rule.interval  # None until it is measured

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
        return self._rounds.tensors()

    def base_of(self, peer: str) -> bytes:
        """Return the fingerprint of what we keep of a peer that its next payload may build on; empty = nothing."""
        return self._rounds.base_of(peer)

    def forget(self, peer: str) -> None:
        """Drop what is of no use once a peer has gone."""
        self._rounds.forget(peer)

    def likeness(self, mixed: Mixed) -> dict[str, float]:
        """Return peer -> cosine between what it has learned and what we have, in [-1, 1]."""
        return self._rounds.likeness(mixed)

    def train(self, state: AdapterState, round: int, members: int) -> Train:
        """Return what local steps this round begins with; so many members are known."""
        if self._interval is None:
            self._interval = switching_interval(measured_contraction(self._settings.topology, members))
        trainable = self._methods.factor_rule.trainable(round, self._interval)
        return Train(state, round, trainable, self._rounds.correction(state.spec))

    def publish(self, context: RoundContext) -> PublishedAdapter:
        """Return our adapter of a round."""
        published = self._of(context.round).publish(context)
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
        """Tell whether an adapter can be mixed in a round: of the other phase than ours only plain adapters can."""
        of_merge = self.is_merging(contribution.round)
        if of_merge == self.is_merging(round):
            return True
        return self._methods.sends_plain_adapters and (of_merge or self._methods.merges_as_it_mixes)

    def mix(
        self, context: RoundContext, contributions: Sequence[Contribution], neighbor_weight: float
    ) -> Mixed:
        """Mix a round's row; returns the adapter to go on with.

        Args:
            contributions: what has come and is usable, in sorted order of senders.
            neighbor_weight: the share of the row of W that is not ours.
        """
        pipeline = self._of(context.round)
        if not self._settings.overlap or self.is_merging(context.round):
            return pipeline.mix(context, contributions, neighbor_weight)
        # What was published is mixed; what has been learned meanwhile comes on top.
        start = context.start
        mixed = pipeline.mix(replace(context, trained=start), contributions, neighbor_weight)
        flat = mixed.state.flat + (context.trained.flat - start.flat)
        return replace(mixed, state=AdapterState(start.spec, flat))

    def _of(self, round: int) -> Pipeline:
        return self._merge if self.is_merging(round) else self._rounds
