"""What sender and readers remember of what a lossy codec lost: the catalogue of feedback rules.

A rule is a value with pure functions; ``publish`` returns what is sent, what every reader will make of it, and the
sender's new memory. It knows no peers: who keeps whose replica, and at which round it stands, is the caller's.
Vectors are differences from the adapter that all peers began with. To add a rule: one function and one line in
``FEEDBACKS``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gossip.adapter import AdapterSpec
from gossip.errors import RemoteError
from gossip.methods.catalogue import Entry
from gossip.methods.codecs import CODECS, Codec
from gossip.methods.requirements import State

WITHOUT_MEMORY = frozenset({"float32", "bfloat16", "int8"})
"""Codecs that lose too little to remember it. Source: their errors, below 0.5 %, are below the noise of a local step
(ml-runtime.md section 9); a memory costs P float32 and a mixing step size below 1."""

_WHOLE = CODECS["float32"].make()


class Published(NamedTuple):
    """One round's vector on its way out.

    Attributes:
        payload: what readers that are up to date need.
        base: round at which a reader's replica must stand to use ``payload``; -1 = it needs none.
        whole: makes what the others need: the replica after this round, float32, to be read with base -1. ``None``
            where nobody keeps replicas.
        seen: float32[P], what every reader makes of it, bit for bit.
    """

    payload: bytes
    base: int
    whole: Callable[[], bytes] | None
    seen: Tensor


class Feedback(NamedTuple):
    """Memory around a codec, which has none.

    Attributes:
        init: P -> S.
        publish: ``(values float32[P], codec, layout, round, S) -> (Published, S)``; neither is written in place.
        read: ``(payload, base, codec, layout, round, replica float32[P] or None) -> float32[P]``, a new tensor: the
            sender's vector, and where ``keeps_replicas`` also the reader's replica from now on. ``base`` is that of
            what was sent: the replica must stand there. Raises ``RemoteError`` as the codec does, and ``"gap"`` where
            a replica is needed and there is none.
        keeps_replicas: readers keep the last vector of each neighbor, 4 P bytes each.
        doc: one line.
    """

    init: Callable[[int], State]
    publish: Callable[[Tensor, Codec, AdapterSpec, int, State], tuple[Published, State]]
    read: Callable[[bytes | bytearray, int, Codec, AdapterSpec, int, Tensor | None], Tensor]
    keeps_replicas: bool
    doc: str


def none() -> Feedback:
    """Nothing is remembered: C(x) is sent."""

    def publish(
        values: Tensor, codec: Codec, spec: AdapterSpec, round: int, state: State
    ) -> tuple[Published, State]:
        payload = codec.encode(values, spec, round)
        return Published(payload, -1, None, codec.decode(payload, spec, round)), state

    return Feedback(lambda size: {}, publish, _read, keeps_replicas=False, doc=_first_line(none))


def error() -> Feedback:
    """The sender adds what was lost to the next round's vector (DeepSqueeze, arXiv 1907.07346).

    v = x + e; C(v) is sent; e' = v - C(v). Nothing per neighbor, so that any graph will do. The price: what is sent is
    never nearer to x than the codec comes, and disagreement stops falling there.
    """

    def publish(
        values: Tensor, codec: Codec, spec: AdapterSpec, round: int, state: State
    ) -> tuple[Published, State]:
        wanted = values + state["error"]
        payload = codec.encode(wanted, spec, round)
        seen = codec.decode(payload, spec, round)
        return Published(payload, -1, None, seen), {"error": wanted - seen}

    return Feedback(
        lambda size: {"error": torch.zeros(size)},
        publish,
        _read,
        keeps_replicas=False,
        doc=_first_line(error),
    )


def replica() -> Feedback:
    """Changes are sent, of a replica that all readers keep of the sender (CHOCO-SGD, arXiv 1902.00340).

    q = C(x - y); y' = y + q on both sides, where y is the replica. Changes shrink as peers agree, and the error with
    them: disagreement falls to zero. A reader that missed a round reads the replica whole. The first round goes whole
    too, as nobody has a replica yet: y' = x, exactly (in the paper y begins at 0; the readers pay the same bytes).
    """

    def init(size: int) -> State:
        return {"replica": torch.zeros(size), "round": torch.tensor(-1)}

    def publish(
        values: Tensor, codec: Codec, spec: AdapterSpec, round: int, state: State
    ) -> tuple[Published, State]:
        base = int(state["round"])
        if base < 0:
            payload, seen = _WHOLE.encode(values, spec, round), values.clone()
        else:
            payload = codec.encode(values - state["replica"], spec, round)
            seen = state["replica"] + codec.decode(payload, spec, round)
        whole = lambda: _WHOLE.encode(seen, spec, round)  # noqa: E731 - made only if somebody asks
        return Published(payload, base, whole, seen), {"replica": seen, "round": torch.tensor(round)}

    def read(
        payload: bytes | bytearray,
        base: int,
        codec: Codec,
        spec: AdapterSpec,
        round: int,
        kept: Tensor | None,
    ) -> Tensor:
        if base < 0:
            return _WHOLE.decode(payload, spec, round)
        if kept is None:
            raise RemoteError("gap", f"a change from round {base} came, but there is no replica to add it to")
        return kept + codec.decode(payload, spec, round)

    return Feedback(init, publish, read, keeps_replicas=True, doc=_first_line(replica))


def default_feedback(codec: str) -> str:
    """Return the name of the rule for a codec as it is written, such as ``"topk:0.05"``."""
    return "none" if codec.strip().lower().partition(":")[0] in WITHOUT_MEMORY else "error"


def _read(
    payload: bytes | bytearray, base: int, codec: Codec, spec: AdapterSpec, round: int, kept: Tensor | None
) -> Tensor:
    return codec.decode(payload, spec, round)


def _first_line(make: Callable[[], Feedback]) -> str:
    return (make.__doc__ or "").split("\n")[0]


FEEDBACKS: dict[str, Entry[Feedback]] = {
    "none": Entry(none, _first_line(none)),
    "error": Entry(error, _first_line(error)),
    "replica": Entry(replica, _first_line(replica)),
}
