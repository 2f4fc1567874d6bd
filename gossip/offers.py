"""What an offer must be to answer a pull of this run: everything about it that can be judged before the payload comes.

An honest peer's offers always pass, so whatever does not is its sender's fault. What is in the payload is judged where
it is decoded (``methods/pipeline.py``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from gossip.errors import RemoteError
from gossip.final_merge import MERGE_ROUNDS_MAX
from gossip.messages import Kind, Offer, Pull
from gossip.methods.method_set import MethodSet
from gossip.published import is_news
from gossip.rollouts import ROLLOUTS_BYTES_MAX, Share

STEPS_PER_ROUND_MAX = 10_000
"""No peer takes more local steps a round: an age beyond so many for each of its rounds is a lie. Source: ours; DiLoCo
takes 500 (arXiv 2311.08105)."""


@dataclass(frozen=True, slots=True)
class RunShape:
    """What all offers and pulls of a run have in common.

    Args:
        rounds: rounds before the final merge.
        lengths: payload sizes in bytes that there are of each kind; where parts of an adapter take turns, of each part.
        replicas: payloads may build on replicas (``base``).
        masked: nobody reads an adapter of the others unmasked, but that which all began with.
    """

    rounds: int
    lengths: Mapping[Kind, Sequence[Collection[int]]]
    replicas: bool
    masked: bool = False

    @staticmethod
    def of(methods: MethodSet, rounds: int, *, masked: bool = False, share: Share = "weights") -> RunShape:
        """Return the shape of a run with these methods."""
        lengths: dict[Kind, Sequence[Collection[int]]] = {}
        if share != "rollouts":
            lengths["round"] = [frozenset(plan.specs) for plan in methods.parts]
            lengths["merge"] = lengths["whole"] = [frozenset(methods.merge.specs)]
            lengths["initial"] = [frozenset((4 * methods.spec.size,))]
        if share != "weights":
            lengths["rollouts"] = [range(ROLLOUTS_BYTES_MAX + 1)]
        return RunShape(rounds, lengths, methods.names.feedback == "replica", masked)

    def check_pull(self, pull: Pull) -> None:
        """Raise ``RemoteError``, "malformed", for a question that nobody in this run asks."""
        if pull.kind not in self.lengths:
            raise RemoteError("malformed", f"nothing of kind {pull.kind} is shared in this run")
        if (pull.keys is not None) != (self.masked and pull.kind != "initial"):
            raise RemoteError("malformed", "keys come with a pull where payloads are masked, and only there")
        if pull.keys is not None and pull.round is None:
            raise RemoteError("malformed", "a masked payload belongs to a round")
        if pull.base and not (self.replicas or pull.keys):
            raise RemoteError("malformed", "a base was given, but nobody keeps replicas in this run")

    def check(self, offer: Offer, pull: Pull) -> None:
        """Check what was offered for a question.

        Raises:
            RemoteError: ``"malformed"`` (not what was asked for, or impossible in this run), ``"stale"`` (of a round
                that may not answer this question) or ``"shape"`` (of a size that no adapter of this run has).
        """
        if offer.kind != pull.kind or offer.offset != pull.offset or offer.base not in (b"", pull.base):
            raise RemoteError("malformed", "an offer of the kind, offset and base asked for was expected")
        if not self._is_possible(offer):
            raise RemoteError("malformed", f"no adapter of round {offer.round} and age {offer.age} can exist")
        if not is_news(offer.round, pull):
            raise RemoteError("stale", f"round {offer.round} came, newer than {pull.newer_than} was wanted")
        of_parts = self.lengths[offer.kind]
        lengths = of_parts[offer.round % len(of_parts)]
        if offer.length not in lengths:
            known = " or ".join(map(str, sorted(lengths)[:8]))
            raise RemoteError("shape", f"{offer.length} bytes offered, payloads of this run have {known}")

    def _is_possible(self, offer: Offer) -> bool:
        first, end = {
            "initial": (0, 1),
            "round": (0, self.rounds),
            "rollouts": (0, self.rounds),
            "merge": (self.rounds, self.rounds + MERGE_ROUNDS_MAX),
            "whole": (0, self.rounds + MERGE_ROUNDS_MAX + 1),
        }[offer.kind]
        return first <= offer.round < end and offer.age <= STEPS_PER_ROUND_MAX * (offer.round + 1)
