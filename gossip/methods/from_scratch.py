"""Which codecs a model that was drawn at random can be trained with: refused at start-up, with a way out.

Codecs are given what an adapter has become since the beginning that all share. In fine-tuning that stays small; here
it is all that is learned, it grows with every round, and a codec that lets few values through shows readers a small
share of it whatever is remembered of the rest. Measured: four peers with ``nano``, 240 steps each, nats a byte held
out: alone 2.237, together with all weights 2.146, with ``topk:0.03`` 2.459 (``error``) and 2.432 (``replica``), with as
many bytes of what each round has changed 2.194.
"""

from __future__ import annotations

from gossip.errors import LocalError
from gossip.methods.feedback import rule_of
from gossip.methods.method_set import MethodNames

FEW_VALUES = frozenset({"topk", "randomk", "chunked", "lowrank"})
"""Codecs that let so few values through. Source: measured of ``topk``; the others lose as much of a growing vector."""


def check_from_scratch(names: MethodNames, budget_mb: float = 0.0) -> None:
    """Refuse a codec with which a model from scratch learns less than it would alone.

    Args:
        names: how the run's methods are written.
        budget_mb: has chosen their codec; 0 = the user has.

    Raises:
        LocalError: says why, and a way out.
    """
    name = names.codec.partition(":")[0]
    if name in FEW_VALUES and not rule_of(names.feedback, names.codec)[1].changes:
        chosen = f"--budget-mb {budget_mb:g} leaves room for " if budget_mb else ""
        raise LocalError(
            f"{chosen}--codec {names.codec}, which with --feedback {names.feedback} sends a few of all "
            "the values that have changed since the beginning, and in a model from scratch all change and matter: its "
            "peers would do worse than alone. To send few bytes use --codec chunked --topology complete, which sends "
            "what each round has changed; or use --codec int8"
        )
