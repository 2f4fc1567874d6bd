"""The run manifest: all that must be equal between two peers for mixing their adapters to make sense.

It is exchanged first; a difference is a polite refusal that names the first field that differs. Nothing in it selects
code, a path or a model at the receiver: it is only compared.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

PROTOCOL_VERSION = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RunManifest:
    """Fields in the order in which a difference is reported: the most telling first.

    Args:
        protocol: version of messages and streams.
        base_model: SHA-256 (hex) of the frozen base's weights and configuration.
        dtype: precision in which the base runs, e.g. ``"bfloat16"``: peers must adapt the same function.
        tokenizer: SHA-256 (hex) of the tokenizer.
        adapter: canonical text of the adapter's kind and hyperparameters.
        layout: fingerprint of the ``AdapterSpec``.
        seed: seed of the run.
        initial: SHA-256 (hex) of the initial adapter: averaging factors with independent A does not work
            (relative error 0.87 against near 0 with a shared A, algorithms.md section 3).
        factors, mixing, optimizer, codec, feedback, merge: how the methods are written (``method_set.MethodNames``).
        gamma: mixing step size, as text.
        rounds: rounds before the final merge: from that number on, adapters are of the merge, encoded in its way.
        overlap: "yes" if neighbors are read while the local steps run.
        fragments: parts of the adapter that take turns, round t carries part t mod F.
        private: "yes" if a classification's head stays at home: then payloads are shorter.
        mask: "none"; else what hides single adapters, and the digest of roster and W whose sums are read.
    """

    protocol: int = PROTOCOL_VERSION
    base_model: str
    dtype: str
    tokenizer: str
    adapter: str
    layout: str
    seed: int
    initial: str
    factors: str
    mixing: str
    optimizer: str
    codec: str
    feedback: str
    gamma: str
    rounds: int
    merge: str
    overlap: str
    private: str
    fragments: int = 1
    mask: str = "none"

    def fields(self) -> dict[str, str | int]:
        """Return name -> value in report order, as it travels in ``Hello``."""
        return dataclasses.asdict(self)

    @property
    def fingerprint(self) -> bytes:
        """First 16 bytes of the SHA-256 over the canonical JSON of all fields: the run's id."""
        canonical = json.dumps(self.fields(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).digest()[:16]


def first_difference(ours: Mapping[str, str | int], theirs: Mapping[str, str | int]) -> str | None:
    """Return a sentence naming the first field that differs and both values, or None if all are equal.

    Args:
        ours, theirs: ``RunManifest.fields()`` of two peers; either may come from the network. A refusal is written from
            the refused peer's point of view, so that "ours" means the reader's in both their terminals.
    """
    names = [field.name for field in dataclasses.fields(RunManifest)]
    for name in [*names, *sorted((set(ours) | set(theirs)) - set(names))]:
        if ours.get(name) != theirs.get(name):
            return f"{name} differs: ours is {_short(ours.get(name))}, theirs is {_short(theirs.get(name))}"
    return None


def _short(value: object) -> str:
    text = "missing" if value is None else str(value)
    return text if len(text) <= 60 else text[:24] + "..." + text[-24:]
