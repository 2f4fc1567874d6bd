"""Present adapters as they are, for those who come late: how they are shown, read, and become one to begin with.

Whatever travels in rounds (a part, a change, running sums), these are whole adapters, coded as in the final merge. It
knows neither events nor time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gossip.adapter import AdapterState
from gossip.errors import RemoteError
from gossip.final_merge import MERGE_ROUNDS_MAX
from gossip.methods import guards
from gossip.methods.centers import middle_mean
from gossip.methods.contribution import Contribution, Guarded
from gossip.methods.merging import clipped_product
from gossip.methods.method_set import resolve
from gossip.methods.pipeline import Pipeline
from gossip.methods.stage import RoundContext
from gossip.published import PublishedAdapter
from gossip.settings import NodeSettings
from gossip.wire import BASE_BYTES

UNMADE = bytes(BASE_BYTES)
"""Stands for the base of a payload that nobody can use: all are given what is made of it when the first one asks."""


class WholeAdapters:
    """One peer's.

    Args:
        me: our peer id.
        settings: what the node runs.
        initial: the adapter that all peers began with.

    Attributes:
        are_shown: others may read them: not where rows say who reads whom, where no weights travel, or under masks.
        alone_bring_up: what travels in rounds is what they have changed, which brings nobody up to the others.
    """

    def __init__(self, me: str, settings: NodeSettings, initial: AdapterState) -> None:
        methods = resolve(settings.names, initial.spec)
        self.are_shown = settings.shares_weights and not settings.roster and not settings.masked
        self.alone_bring_up = methods.sends_changes
        self._me, self._settings, self._initial, self._plan = me, settings, initial, methods.merge
        self._ranks_differ = methods.factor_rule.refactors

    def shown(self, state: AdapterState, round: int, age: int) -> PublishedAdapter | None:
        """Return the adapter that a round begins with as it is published; it is coded when somebody asks."""
        if not self.are_shown:
            return None

        def coded() -> PublishedAdapter:
            context = RoundContext(
                round=round, age=age, steps=1, start=state, trained=state, readers=lambda: 0
            )
            return replace(self._pipeline().publish(context), kind="whole")

        return PublishedAdapter(round, age, self._plan.codec, b"", UNMADE, coded, kind="whole")

    def read(self, sender: str, published: PublishedAdapter) -> Contribution:
        """Return the present adapter of another peer.

        Raises:
            RemoteError: ``"malformed"``: none can be of that kind or round; else as ``Pipeline.read``.
        """
        if published.kind != "whole" or published.round > self._settings.rounds + MERGE_ROUNDS_MAX:
            raise RemoteError("malformed", f"round {published.round} has no adapter of kind {published.kind}")
        return self._pipeline().read(sender, published, 1.0)

    def guarded(self, came: Sequence[Contribution]) -> Guarded:
        """Return what may be used of what came, and what guards object to; distances are from the initial adapter."""
        own = Contribution(self._me, self._plan.part.of(self._initial), 0.0, 0, 0)
        guard = guards.of_another_rank if self._ranks_differ else guards.apply_all
        return guard(own, came, self._settings.norm_cap)

    def merged(self, came: Sequence[Contribution]) -> AdapterState:
        """Return the coordinate-wise median of one adapter or more, the clipped mean product where ranks may differ.

        What never travels is that of the initial adapter.
        """
        states, part = [one.state for one in came], self._plan.part
        if self._ranks_differ:
            shared = clipped_product(states, [1.0 / len(states)] * len(states), part.spec)
        else:
            middle = middle_mean([state.flat for state in states], (len(states) - 1) // 2)
            shared = AdapterState(part.spec, middle)
        return part.into(self._initial, shared)

    def _pipeline(self) -> Pipeline:
        """Return a pipeline that nobody else uses: what is shown may be coded in another thread."""
        return Pipeline(self._me, self._plan, self._initial, self._settings.norm_cap)
