"""Push-sum with running counters, for one peer: exact averages over one-way links, whatever gets lost.

A peer holds an amount x of the adapter's values and a mass w; its adapter is x/w. Each round it keeps one share of
both and gives an equal one to every reader. An adapter carries all that one reader was ever given, so the next one
brings what a lost one held, and reading twice changes nothing (Vaidya, Hadjicostis & Dominguez-Garcia 2011; local
steps as in SGP, arXiv 1811.10792). The total of x and of w stays what it was: the ratio tends to its mean on every
strongly connected graph, without rows or columns that sum to 1.

Everybody begins with mass 1. Sums travel in the adapter's precision, and what that rounds off stays with the sender:
nothing is lost by it, but after T rounds a share comes with an error of T * 6e-8 of the values (float32). Whoever
reads believes the sender's mass, below ``MASS_MAX``: push-sum is for groups that trust each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gossip.adapter import AdapterSpec, AdapterState
from gossip.methods import guards
from gossip.methods.contribution import Contribution
from gossip.methods.requirements import State
from gossip.methods.stage import Combination, Encoded, RoundContext, Stage

EXTRA = 2
"""Values that travel after the adapter's: the mass given so far, and the rounds in which it was."""
MASS_MAX = 1e4
"""No honest peer gives more at once: all peers of a run together hold a mass of one each. Source: guess."""
MASS_MIN = 0.25
"""Whoever holds less gives nothing this round, and its local steps count in proportion to its mass: a peer that hears
of nobody, or runs ahead of those it reads, would give itself away, down to numbers that no ratio comes from, and x/w
would take steps without bound. Source: ours; steps grow fourfold at most."""
LEAD_MAX = 8
"""If a sender that we read for the first time is more than so many rounds ahead of us, its sums predate our first
contact: they are the baseline, of which nothing is meant for us. Peers that begin together are not that far apart.
Source: guess."""
GONE_MAX = 1000
"""Of so many peers that have gone it is remembered that they were read, by a number each; the P values are let go.
Source: ours; as many as members."""


@dataclass(frozen=True, slots=True)
class PushSum(Stage):
    """The stage that mixes by push-sum: running sums travel in the adapter's place."""

    spec: AdapterSpec
    name: ClassVar[str] = "mixer"

    @property
    def next_spec(self) -> AdapterSpec:
        """The adapter's values, and ``EXTRA`` more."""
        return AdapterSpec((*self.spec.entries, ("extra", (EXTRA,))))

    def init(self, initial: Tensor) -> State:
        """Begin with the adapter of all and mass 1."""
        return init(initial)

    def publish(
        self, vector: Tensor, context: RoundContext, encode: Callable[[Tensor], Encoded], state: State
    ) -> tuple[Encoded, State]:
        """Give every reader its share, and send what each was given so far."""
        sums, state = publish(vector, context.readers(), state)
        return encode(sums), state

    def combine(self, row: Combination, state: State) -> tuple[Combination, State]:
        """Take up what has come since we read each sender last."""
        others = []
        for contribution in row.others:
            values, weight, state = read(
                contribution.sender, contribution.state.flat, contribution.weight, state
            )
            others.append(contribution._replace(state=AdapterState(self.spec, values), weight=weight))
        row = guards.guarded(row._replace(others=tuple(others)))
        vector, state = mix(row.others, state)
        return row._replace(vector=vector), state

    def forget(self, peer: str, state: State) -> State:
        """Let go of the values that were read of a peer."""
        return forget(peer, state)


def init(own: Tensor) -> State:
    """Return the state of a peer that begins with this adapter [P] and mass 1.

    ``x`` float64[P] and ``w`` float64[1] are what it holds, ``given`` [P + 2] what each reader was given so far, in
    the adapter's dtype. Later: ``read/PEER`` the last ``given`` seen of a peer that is there, ``gone/PEER`` the rounds
    in it [1] of one that has gone, ``mass/PEER`` what came in this round.
    """
    return {
        "x": own.double(),
        "w": torch.ones(1, dtype=torch.float64),
        "given": own.new_zeros(own.numel() + EXTRA),
    }


def publish(own: Tensor, readers: int, state: State) -> tuple[Tensor, State]:
    """Take up the local steps and give every reader its share of what we hold.

    Args:
        own: our adapter [P] after local steps from x/w.
        readers: how many read us, 0 or more; all of them, and nobody else, in every round.

    Returns:
        What each reader was given so far, [P + 2], and the state after giving.
    """
    given = state["given"]
    mass = float(state["w"])
    steps = own.double() - _ratio(state).double()
    held = torch.cat([torch.add(state["x"], steps, alpha=min(1.0, mass / MASS_MIN)), state["w"]])
    before = given[:-1].double()
    share = 1.0 / (readers + 1) if mass >= MASS_MIN else 0.0
    sums = (before + share * held).to(given.dtype)
    held = torch.sub(held, sums.double() - before, alpha=readers)
    vector = torch.cat([sums, given[-1:] + 1])
    return vector, {**state, "x": held[:-1], "w": held[-1:], "given": vector}


def read(sender: str, vector: Tensor, weight: float, state: State) -> tuple[Tensor, float, State]:
    """Return what a sender has given since we read it last, as an adapter.

    Args:
        vector: its ``given`` as decoded, [P + 2].
        weight: its entry in our row of W; push-sum goes by mass and passes it on for the report.

    Returns:
        The adapter's values [P], their weight, and the state; nothing new gives our own adapter with weight 0.
        Values that no honest peer sends (a mass that is not above 0 or is beyond ``MASS_MAX``) become NaN, which the
        guards refuse.
    """
    ours, rounds = _ratio(state), float(vector[-1])
    later = {**state, f"read/{sender}": vector}
    last, gone = state.get(f"read/{sender}"), later.pop(f"gone/{sender}", None)
    if gone is not None and rounds >= float(gone):  # back, with the state that it had
        return ours, 0.0, later
    if last is None and gone is None and rounds > float(state["given"][-1]) + LEAD_MAX:
        return ours, 0.0, later
    if last is None or rounds < float(last[-1]):  # first contact, or it began anew without its state
        last = torch.zeros_like(vector)
    elif rounds == float(last[-1]):
        return ours, 0.0, state
    news = vector[:-1].double() - last[:-1].double()
    mass = news[-1:]
    if not news.any():  # it had too little to give
        return ours, 0.0, later
    if not 0.0 < float(mass) <= MASS_MAX:
        return torch.full_like(ours, torch.nan), weight, state
    return (news[:-1] / mass).to(vector.dtype), weight, {**later, f"mass/{sender}": mass}


def forget(peer: str, state: State) -> State:
    """Return the state without the values that were read of a peer.

    When it is back, what it has given by then is the baseline of what it gives from then on, as for one that we meet
    late: what it gave in between is lost, adapter and mass alike, and nothing is counted twice.
    """
    last = state.get(f"read/{peer}")
    if last is None:
        return state
    gone = [name for name in state if name.startswith("gone/")]
    dropped = {f"read/{peer}", *gone[: max(0, len(gone) + 1 - GONE_MAX)]}
    kept = {name: tensor for name, tensor in state.items() if name not in dropped}
    return {**kept, f"gone/{peer}": last[-1:].clone()}


def mix(others: Sequence[Contribution], state: State) -> tuple[Tensor, State]:
    """Add what has come, each adapter times its mass, to what we hold; whatever the guards dropped is lost.

    Returns:
        Our adapter [P], and the state.
    """
    x, w = state["x"], state["w"]
    for contribution in others:
        mass = state.get(f"mass/{contribution.sender}")
        if mass is not None:
            x = torch.add(x, contribution.state.flat.double(), alpha=float(mass))
            w = w + mass
    state = {name: value for name, value in state.items() if not name.startswith("mass/")} | {"x": x, "w": w}
    return _ratio(state), state


def _ratio(state: State) -> Tensor:
    """Return x/w [P], in the adapter's dtype."""
    return (state["x"] / state["w"]).to(state["given"].dtype)
