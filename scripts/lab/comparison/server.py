"""What a server does with the adapters of a round: it averages them, or takes an outer step along their mean.

The server is a peer that has read all the others: the outer step is that of ``gossip/methods/optimizers.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gossip.adapter import AdapterSpec, AdapterState
from gossip.errors import LocalError
from gossip.methods.catalogue import find
from gossip.methods.contribution import Contribution
from gossip.methods.optimizer_stage import OptimizerStage
from gossip.methods.optimizers import OPTIMIZERS
from gossip.methods.requirements import State
from gossip.methods.stage import Combination, Encoded, RoundContext


class Server:
    """Makes of the peers' adapters the one that all go on with.

    Args:
        optimizer: as ``--optimizer`` takes it.
        initial: the adapter that all begin with.
        steps: local steps of a round.

    Raises:
        LocalError: unknown.
    """

    def __init__(self, optimizer: str, initial: AdapterState, steps: int) -> None:
        self._stage = OptimizerStage(find("optimizer", optimizer, OPTIMIZERS), initial.spec)
        self._adapter, self._steps, self._round = initial, steps, 0
        self._state: State = self._stage.init(initial.flat)

    def step(self, states: Mapping[str, AdapterState]) -> AdapterState:
        """Return the adapter to go on with, from the adapters that peers came to in a round."""
        age = self._steps * (self._round + 1)
        contexts = {name: self._context(state, age) for name, state in states.items()}
        rows = [
            Contribution(name, self._sent(context), 1 / len(states), age, self._round)
            for name, context in contexts.items()
        ]
        own, *others = rows
        row = Combination(
            context=contexts[own.sender],
            own=own,
            own_as_decoded=own.state.flat,
            others=tuple(others),
            vector=mean_adapter([one.state for one in rows]).flat,
            norm_cap=float("inf"),
            came=tuple(others),
        )
        row, self._state = self._stage.combine(row, self._state)
        self._adapter = AdapterState(self._adapter.spec, row.vector)
        self._round += 1
        return self._adapter

    def _context(self, trained: AdapterState, age: int) -> RoundContext:
        return RoundContext(
            round=self._round,
            age=age,
            steps=self._steps,
            start=self._adapter,
            trained=trained,
            readers=lambda: 0,
        )

    def _sent(self, context: RoundContext) -> AdapterState:
        """Return what a peer sends, all vectors of the optimizer."""

        def encode(vector: Tensor) -> Encoded:
            return Encoded(b"", vector)

        sent, _ = self._stage.publish(context.trained.flat, context, encode, self._state)
        return AdapterState(self._stage.next_spec, sent.as_decoded)

    def corrects(self) -> bool:
        """Tell whether local steps of the next round would have to be corrected, which no server does here."""
        return self._stage.correction(self._state) is not None


def check_server(optimizer: str) -> None:
    """Refuse an optimizer that is more than an outer step.

    Raises:
        LocalError: unknown, or it acts on local steps.
    """
    zero = AdapterState(AdapterSpec.of({"x": torch.zeros(1)}), torch.zeros(1))
    server = Server(optimizer, zero, 1)
    server.step({"a": zero, "b": zero})
    if server.corrects():
        raise LocalError(
            f"optimizer {optimizer!r} does more than an outer step (it corrects local steps), which a server is not "
            "given here: take it without a server, as 'complete optimizer=...', or another, such as diloco:0.5:1"
        )


def mean_adapter(states: Sequence[AdapterState]) -> AdapterState:
    """Return the mean of adapters; of equal ones to the bit the first of them."""
    first = states[0]
    if all(state is first or torch.equal(state.flat, first.flat) for state in states):
        return first
    return AdapterState(first.spec, torch.stack([state.flat for state in states]).mean(dim=0))
