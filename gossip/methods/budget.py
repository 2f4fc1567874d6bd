"""Which codec a peer can afford: bytes per round -> the most exact codec of a ladder.

Pure arithmetic on payload sizes. It knows no network; what a peer reads is counted, not what others read of it (on
average that is as much).
"""

from __future__ import annotations

from gossip.adapter import AdapterSpec
from gossip.errors import LocalError
from gossip.methods.catalogue import find
from gossip.methods.codecs import CODECS

LADDER = ("float32", "bfloat16", "int8", "int4", "sign", "topk:0.02", "topk:0.005")
"""From exact to cheap, about half to a quarter of the bytes a rung. Source: our measurement, the disagreement left
(Xi^2 / Xi_0^2) on a ring of 16 after 100 rounds with each codec's own feedback and step size, where the vectors have as
much in common as they differ in: 4e-6, 7e-6, 5e-5, 4e-3, 9e-2, 3e-1, 8e-1 (tests/laws/test_feedback.py keeps the
order). Not on it: topk:0.1 and randomk:0.1, larger than sign and no better; randomk:0.02, as good as topk:0.02, but
only while all peers are in the same round; lowrank, whose size depends on the shapes."""


def choose_codec(budget_bytes: int, spec: AdapterSpec, reads_per_round: int) -> str:
    """Return how the most exact codec is written with which a round's payloads stay within a budget.

    Args:
        budget_bytes: most bytes that a peer reads in a round.
        spec: of the vectors that travel.
        reads_per_round: neighbors read in a round, at least 1.

    Raises:
        LocalError: even the last rung is too large; says what the least budget is.
    """
    needed = 0
    for text in LADDER:
        needed = reads_per_round * find("codec", text, CODECS).payload_bytes(spec)
        if needed <= budget_bytes:
            return text
    raise LocalError(
        f"a budget of {budget_bytes:,} bytes a round is too small for {reads_per_round} neighbor(s) and "
        f"{spec.size:,} values: give at least {needed:,} bytes ({LADDER[-1]}), or read fewer neighbors"
    )
