"""What sender and readers remember of what a lossy codec lost: the catalogue of feedback rules, stages before a codec.

Vectors are differences from the adapter that all peers began with (``origin.py``). A rule is not used with an exact
codec, which loses nothing. To add a rule: one stage and one line in ``FEEDBACKS``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from gossip.adapter import AdapterSpec, AdapterState
from gossip.methods.catalogue import Entry, find
from gossip.methods.codecs import CODECS
from gossip.methods.requirements import Requirements, State
from gossip.methods.stage import Combination, Encoded, Incoming, RoundContext, Stage
from gossip.wire import BASE_BYTES
from topology.parameters import Parameter, fraction

WITHOUT_MEMORY = frozenset({"float32", "bfloat16", "int8"})
"""Codecs that lose too little to remember it. Source: their errors, below 0.5 %, are below the noise of a local step
(ml-runtime.md section 9); a memory costs P float32 and a mixing step size below 1."""
FOR_CHANGES = frozenset({"chunked"})
"""Codecs made for the changes of a round, not for adapters. Source: SparseLoCo (arXiv 2508.15706)."""
DECAY = 0.95
"""What is left of a loss after a round. Source: SparseLoCo (arXiv 2508.15706)."""

_WHOLE = CODECS["float32"].make()


class Feedback(NamedTuple):
    """Memory around a codec, which has none.

    Attributes:
        stage: makes the stage for vectors of a spec.
        equal_ranks: neighbors' vectors must have the size of ours.
        changes: what travels is what a round has changed, not an adapter: it counts from no common origin, and with all
            of the weight that W gives it.
        doc: one line.
        requires: what it asks of the run.
    """

    stage: Callable[[AdapterSpec], Stage]
    equal_ranks: bool
    doc: str
    requires: Requirements = Requirements()
    changes: bool = False


@dataclass(frozen=True, slots=True)
class NoMemory(Stage):
    """Nothing is remembered: C(x) is sent."""

    spec: AdapterSpec
    name: ClassVar[str] = "feedback"


@dataclass(frozen=True, slots=True)
class ErrorMemory(Stage):
    """The sender adds what was lost to the next round's vector (DeepSqueeze, arXiv 1907.07346).

    v = x + e; C(v) is sent; e' = v - C(v). Nothing per neighbor, so that any graph will do. The price: what is sent is
    never nearer to x than the codec comes, and disagreement stops falling there.
    """

    spec: AdapterSpec
    name: ClassVar[str] = "feedback"

    def init(self, initial: Tensor) -> State:
        """``error`` float32[P]: what was lost so far."""
        return {"error": torch.zeros(self.spec.size)}

    def publish(
        self, vector: Tensor, context: RoundContext, encode: Callable[[Tensor], Encoded], state: State
    ) -> tuple[Encoded, State]:
        """Hand on the vector and what was lost before."""
        wanted = vector + state["error"]
        encoded = encode(wanted)
        return encoded, {"error": wanted - encoded.as_decoded}


@dataclass(frozen=True, slots=True)
class Replicas(Stage):
    """Changes are sent, of a replica that all readers keep of the sender (CHOCO-SGD, arXiv 1902.00340).

    q = C(x - y); y' = y + q on both sides, where y is the replica. Changes shrink as peers agree, and the error with
    them: disagreement falls to zero. A reader that missed a round reads the replica whole. The first round goes whole
    too, as nobody has a replica yet: y' = x, exactly (in the paper y begins at 0; the readers pay the same bytes).
    """

    spec: AdapterSpec
    name: ClassVar[str] = "feedback"

    def init(self, initial: Tensor) -> State:
        """``replica`` float32[P] of us and the ``round`` at which it stands, -1 = there is none yet.

        Later: ``fingerprint`` of the replica, once a reader may have it from this life; ``of/PEER`` float32[P] and
        ``fingerprint_of/PEER``, the replica that we keep of a peer, 4 P bytes each. These are not saved: whoever has
        lost them reads and sends the whole.
        """
        return {"replica": torch.zeros(self.spec.size), "round": torch.tensor(-1)}

    def saved(self, state: State) -> State:
        """Our own replica."""
        return {name: state[name] for name in ("replica", "round")}

    def publish(
        self, vector: Tensor, context: RoundContext, encode: Callable[[Tensor], Encoded], state: State
    ) -> tuple[Encoded, State]:
        """Hand on the change; send the replica whole where readers cannot have the one before."""
        payload = None
        replica = vector.clone()
        if int(state["round"]) >= 0:
            change = encode(vector - state["replica"])
            payload, replica = change.payload, state["replica"] + change.as_decoded
        later = {
            **state,
            "replica": replica,
            "round": torch.tensor(context.round),
            "fingerprint": _fingerprint(replica),
        }
        make_whole = partial(_WHOLE.encode, replica, self.spec, context.round)  # made if somebody asks
        if payload is None or "fingerprint" not in state:
            return Encoded(make_whole(), replica), later
        return Encoded(payload, replica, _bytes(state["fingerprint"]), make_whole), later

    def read(
        self, incoming: Incoming, decode: Callable[[Incoming], Tensor], state: State
    ) -> tuple[Tensor, State]:
        """Return the sender's replica, which from now on is ours of it."""
        sender, published, spec = incoming
        if published.base:
            values = state[f"of/{sender}"] + decode(incoming)
        else:
            values = _WHOLE.decode(published.payload, spec, published.round)
        if not math.isfinite(float(values.sum())):
            return values, state  # guards refuse it; nothing is to be built on it
        return values, {
            **state,
            f"of/{sender}": values,
            f"fingerprint_of/{sender}": _fingerprint(values),
        }

    def base_of(self, peer: str, state: State) -> bytes:
        """The fingerprint of the replica that we keep of a peer."""
        fingerprint = state.get(f"fingerprint_of/{peer}")
        return b"" if fingerprint is None else _bytes(fingerprint)

    def forget(self, peer: str, state: State) -> State:
        """Drop the replica of a peer."""
        dropped = (f"of/{peer}", f"fingerprint_of/{peer}")
        return {name: tensor for name, tensor in state.items() if name not in dropped}

    def payload_sizes(self, spec: AdapterSpec) -> tuple[int, ...]:
        """The size of a whole replica."""
        return (_WHOLE.payload_bytes(spec),)


@dataclass(frozen=True, slots=True)
class PseudoGradients(Stage):
    """What the round's local steps have changed is sent, with a decaying memory (SparseLoCo, arXiv 2508.15706).

    e' = BETA e + (start - x); C(e') is sent; e = e' - C(e'). Whoever reads the row goes on from its own start less the
    row's mean of what was sent, ours among it as others see it: with equal starts and rows that read everybody, all end
    a round at one adapter, and what a codec lost is in the memories alone. Nothing draws peers together that are apart:
    who misses a change stays apart by it until the final merge, which takes whole adapters.
    """

    decay: float
    spec: AdapterSpec
    name: ClassVar[str] = "feedback"

    def init(self, initial: Tensor) -> State:
        """``error`` float32[P]: what was lost so far, faded."""
        return {"error": torch.zeros(self.spec.size)}

    def publish(
        self, vector: Tensor, context: RoundContext, encode: Callable[[Tensor], Encoded], state: State
    ) -> tuple[Encoded, State]:
        """Hand on the change and what was lost before; of ours, too, what was sent counts."""
        start = context.start.flat
        wanted = torch.add(start - vector, state["error"], alpha=self.decay)
        encoded = encode(wanted)
        sent = encoded.as_decoded
        return encoded._replace(as_decoded=start - sent), {"error": wanted - sent}

    def combine(self, row: Combination, state: State) -> tuple[Combination, State]:
        """Make adapters of changes: what their senders would have if they had begun where we have."""
        start = row.context.start.flat
        others = tuple(
            one._replace(state=AdapterState(self.spec, start - one.state.flat)) for one in row.others
        )
        own = row.own._replace(state=AdapterState(self.spec, row.own_as_decoded))
        return row._replace(own=own, others=others, own_is_as_sent=True), state


def default_feedback(codec: str) -> str:
    """Return the name of the rule for a codec as it is written, such as ``"topk:0.05"``."""
    name = codec.strip().lower().partition(":")[0]
    if name in FOR_CHANGES:
        return "pseudo-gradient"
    return "none" if name in WITHOUT_MEMORY else "error"


def rule_of(feedback: str, codec: str) -> tuple[str, Feedback]:
    """Return the rule for a codec, with its name; ``feedback``: as it is written, or auto = what fits the codec.

    Raises:
        LocalError: an unknown rule, or a bad parameter.
    """
    name = default_feedback(codec) if feedback == "auto" else feedback
    return name, find("feedback rule", name, FEEDBACKS)


def _fingerprint(values: Tensor) -> Tensor:
    """Return uint8[BASE_BYTES], a tensor so that it can stand in a state."""
    digest = hashlib.sha256(values.numpy().data).digest()[:BASE_BYTES]
    return torch.frombuffer(bytearray(digest), dtype=torch.uint8)


def _bytes(fingerprint: Tensor) -> bytes:
    return fingerprint.numpy().tobytes()


def _entry(
    stage: Callable[[AdapterSpec], Stage], requires: Requirements | None = None, *, equal_ranks: bool = False
) -> Entry[Feedback]:
    doc = (stage.__doc__ or "").split("\n")[0]
    return Entry(lambda: Feedback(stage, equal_ranks, doc, requires or Requirements()), doc)


def _of_changes(decay: float = DECAY) -> Feedback:
    requires = Requirements(uniform=True, lock_step=True, linear=True, whole_rows=True)
    doc = (PseudoGradients.__doc__ or "").split("\n")[0]
    return Feedback(partial(PseudoGradients, decay), False, doc, requires, changes=True)


FEEDBACKS: dict[str, Entry[Feedback]] = {
    "none": _entry(NoMemory),
    "error": _entry(ErrorMemory),
    "replica": _entry(Replicas, Requirements(all_parts=True), equal_ranks=True),
    "pseudo-gradient": Entry(
        _of_changes,
        _of_changes().doc,
        (
            Parameter(
                "BETA",
                "what is left of a loss after a round, 0 to 1, default 0.95",
                fraction(zero=True),
                required=False,
            ),
        ),
    ),
}
