"""The run manifest: all that must be equal between two peers for mixing their adapters to make sense.

It is exchanged first; a difference is a polite refusal that names the first field that differs, both values, and what
to write to have the other's. Nothing in it selects code, a path or a model at the receiver: it is only compared.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

PROTOCOL_VERSION = 4
SHOWN = 60
"""Letters of a value that are shown; of longer ones, those around the first that differs. Source: ours."""
OWN = "own"
"""Stands in place of a learning rate that nobody can compare: with noise, or under a trainer of one's own."""
RATE = "learning_rate"
"""The one setting that may be ``OWN``; so it is compared, and not a part of the fingerprint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunManifest:
    """Fields in the order in which a difference is reported: the most telling first.

    Args:
        protocol: version of messages and streams.
        base_model: SHA-256 (hex) of the frozen base's weights and configuration.
        dtype: precision in which the base runs, e.g. ``"bfloat16"``: peers must adapt the same function.
        tokenizer: SHA-256 (hex) of the tokenizer.
        task: what is learned, with its labels, as JSON.
        settings: options that all peers have alike, by name, as text. Where rollouts alone are shared, none of model
            and training is among them, and what follows from those says "any": rollouts are text.
        frozen: SHA-256 (hex) of an adapter's parts that are not trained; empty if there are none.
        layout: fingerprint of the ``AdapterSpec``.
        seed: seed of the run.
        initial: SHA-256 (hex) of the initial adapter: averaging factors with independent A does not work
            (relative error 0.87 against near 0 with a shared A, algorithms.md section 3).
        factors, mixing, optimizer, codec, feedback, merge: how the methods are written (``method_set.MethodNames``).
        gamma: mixing step size, as text.
        rounds: rounds before the final merge: from that number on, adapters are of the merge, encoded in its way.
        overlap: "yes" if neighbors are read while the local steps run.
        private: "yes" if a classification's head stays at home: then payloads are shorter.
        mask: "none"; else what hides single adapters, and the digest of roster and W whose sums are read.
    """

    protocol: int = PROTOCOL_VERSION
    base_model: str
    dtype: str
    tokenizer: str
    task: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    frozen: str = ""
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
    mask: str = "none"

    def fields(self) -> dict[str, str | int]:
        """Return name -> value in report order, as it travels in ``Hello``; settings stand under their own names."""
        said: dict[str, str | int] = {}
        for declared in dataclasses.fields(self):
            value = getattr(self, declared.name)
            said |= value if declared.name == "settings" else {declared.name: value}
        return said

    @property
    def fingerprint(self) -> bytes:
        """First 16 bytes of the SHA-256 over the canonical JSON of all fields but the learning rate: the run's id."""
        compared = {name: value for name, value in self.fields().items() if name != RATE}
        canonical = json.dumps(compared, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).digest()[:16]


WAYS_OUT: dict[str, str] = {
    "protocol": "install the same version of gossip-peer",
    "base_model": "use the same files with --model",
    "dtype": "give the same --dtype, with the same files",
    "tokenizer": "use the same files with --model",
    "task": "give the same --task, and its --labels in the same order",
    "private": "give --private-head on all peers or on none",
    "mask": "give the same --mask, --roster and --topology",
    **dict.fromkeys(("layout", "initial", "frozen"), "it follows from model, adapter and seed; use theirs"),
}
"""What to do about a field that is no option of its own."""


def first_difference(
    ours: Mapping[str, str | int], theirs: Mapping[str, str | int], *, advise: bool = False
) -> str | None:
    """Return a sentence naming the first field that differs and both values, or None if all are equal.

    Args:
        ours, theirs: ``RunManifest.fields()`` of two peers; either may come from the network. A refusal is written from
            the refused peer's point of view, so that "ours" means the reader's in both their terminals.
        advise: say what to write to have theirs.
    """
    for name in [*ours, *sorted(set(theirs) - set(ours))]:
        mine, other = ours.get(name), theirs.get(name)
        if mine == other or (name == RATE and OWN in (mine, other)):
            continue
        told, shown = _shown(mine, other)
        advice = f"; {_way_out(name, other)}" if advise else ""
        return f"{name} differs: ours is {told}, theirs is {shown}{advice}"
    return None


def _way_out(name: str, theirs: str | int | None) -> str:
    """Return what the reader can do to have theirs."""
    if name in WAYS_OUT:
        return WAYS_OUT[name]
    flag = "--" + name.replace("_", "-")
    match theirs:
        case None:
            return WAYS_OUT["protocol"]
        case "yes":
            return f"give {flag}"
        case "no":
            return f"leave out {flag}"
        case "":
            return f"leave out {flag}"
        case _:
            return f"give {flag} {_cut(str(theirs), 0)}"


def _shown(ours: str | int | None, theirs: str | int | None) -> tuple[str, str]:
    """Return two values for people: whole where they are short, else from shortly before the place where they part."""
    texts = ["missing" if value is None else str(value) or "empty" for value in (ours, theirs)]
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False))
    alike = sum(1 for _ in pairs)
    begin = 0 if max(map(len, texts)) <= SHOWN else max(0, alike - SHOWN // 4)
    return _cut(texts[0], begin), _cut(texts[1], begin)


def _cut(text: str, begin: int) -> str:
    """Return ``SHOWN`` letters of a text, with dots for what is left out."""
    return (
        f"{'...' if begin else ''}{text[begin : begin + SHOWN]}{'...' if len(text) > begin + SHOWN else ''}"
    )
