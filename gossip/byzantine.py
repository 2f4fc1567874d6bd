"""How a Byzantine member serves its adapters: what readers get instead of what it has trained.

Values are changed in payloads of the codec float32, of which every four bytes are one value; what others send in place
of a payload of another codec, decoders judge. It draws from seeds alone, so a reader that asks again gets the same.
"""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
from numpy.typing import NDArray

from gossip.errors import LocalError
from gossip.fault_kinds import Byzantine
from gossip.published import PublishedAdapter


class Cheater:
    """One Byzantine member.

    Args:
        kind: what it does.
        seed: of its noise.
    """

    def __init__(self, kind: Byzantine, seed: str) -> None:
        self._kind = kind
        self._seed = seed
        self._first: PublishedAdapter | None = None

    def answer(self, reader: str, published: PublishedAdapter) -> PublishedAdapter | None:
        """Return what a reader gets instead of ``published``; None = nothing, ever.

        Raises:
            LocalError: values are to be changed, and the codec is not float32.
        """
        self._first = self._first or published
        match self._kind.behavior:
            case "silent":
                return None
            case "replay":
                return self._first
            case behavior:
                if published.codec != "float32":
                    raise LocalError(f"a member can cheat by {behavior} with codec float32 only")
                values = np.frombuffer(published.payload, "<f4")
                with np.errstate(over="ignore"):  # an infinity is a payload like any other
                    changed = self._changed(values, reader, published.round).astype("<f4")
                return dataclasses.replace(published, payload=changed.tobytes(), base=b"", whole=None)

    def _changed(self, values: NDArray[np.float32], reader: str, round: int) -> NDArray[np.float64]:
        exact, factor = values.astype(np.float64), self._kind.factor
        if self._kind.behavior == "scale":
            return exact * factor
        if self._kind.behavior == "sign":
            return exact * -factor
        to_whom = reader if self._kind.behavior == "equivocate" else ""
        digest = hashlib.sha256(f"{self._seed}/{to_whom}/{round}".encode()).digest()
        noise = np.random.default_rng(int.from_bytes(digest[:8])).standard_normal(len(exact))
        length = float(np.linalg.norm(noise)) or 1.0
        return exact + noise * (factor * float(np.linalg.norm(exact)) / length)
