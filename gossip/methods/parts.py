"""What of an adapter travels in a round: some of its tensors, or, with ``--fragments F``, one of F ranges of them.

Round t carries part t mod F, so that a round costs the F-th part of the bytes and every part travels every F rounds:
Streaming DiLoCo (arXiv 2501.18512). The paper cuts between layers; ours cuts at any value, which makes the parts equal
to one value whatever the model looks like (in a small one an embedding is half of all), and no method that goes
together with parts knows where a tensor ends. It knows neither peers nor rounds' contents.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gossip.adapter import AdapterSpec, AdapterState
from gossip.methods.requirements import State
from gossip.methods.stage import RoundContext

FRAGMENTS_MAX = 64
"""Parts of an adapter at most. Source: ours; a part that travels every 64 rounds has hardly met the others."""


@dataclass(frozen=True, slots=True)
class Part:
    """A range of the values of the tensors that travel.

    Args:
        tensors: spec of the tensors that travel.
        spec: of the part: ``tensors`` itself if it is all of them, else one vector.
        place: of the part among the values of ``tensors``.
    """

    tensors: AdapterSpec
    spec: AdapterSpec
    place: slice

    def of(self, state: AdapterState) -> AdapterState:
        """Return this part of an adapter (a view where that can be)."""
        selected = state.select(self.tensors)
        return selected if self.spec == self.tensors else AdapterState(self.spec, selected.flat[self.place])

    def into(self, state: AdapterState, part: AdapterState) -> AdapterState:
        """Return an adapter with this part in place of its own."""
        if self.spec == self.tensors:
            return state.with_selected(part)
        flat = state.select(self.tensors).flat.clone()
        flat[self.place] = part.flat
        return state.with_selected(AdapterState(self.tensors, flat))


def whole(tensors: AdapterSpec) -> Part:
    """Return the part that is all."""
    return Part(tensors, tensors, slice(0, tensors.size))


def parts_of(tensors: AdapterSpec, count: int) -> tuple[Part, ...]:
    """Return ``count`` parts, in order, that are all values together; the first ones have one more where they must."""
    if count == 1:
        return (whole(tensors),)
    smaller, larger = divmod(tensors.size, count)
    parts, begin = [], 0
    for index in range(count):
        size = smaller + (index < larger)
        spec = AdapterSpec(((f"part {index} of {count}", (size,)),))
        parts.append(Part(tensors, spec, slice(begin, begin + size)))
        begin += size
    return tuple(parts)


class Starts:
    """Where the present round of what travels in it began: each part as it was when it had travelled last.

    Of an adapter in one part that is where the round itself began, and nothing is kept.

    Args:
        parts: of the adapter.
        state: the adapter that we go on from.
        saved: ``tensors()`` of an earlier life, maybe among others.
    """

    def __init__(self, parts: tuple[Part, ...], state: AdapterState, saved: State) -> None:
        self._parts = parts
        self._name = f"starts-of-{len(parts)}"
        flat = saved.get(self._name)
        self._state = state if flat is None else AdapterState(state.spec, flat)

    def tensors(self) -> State:
        """Return what a checkpoint keeps."""
        return {self._name: self._state.flat} if len(self._parts) > 1 else {}

    def of(self, context: RoundContext) -> RoundContext:
        """Return a round with the start of what travels in it."""
        parts = len(self._parts)
        return replace(context, start=self._state, parts=parts) if parts > 1 else context

    def note(self, round: int, state: AdapterState) -> None:
        """Take where a round has ended: there the next of its part begins."""
        if len(self._parts) > 1:
            part = self._parts[round % len(self._parts)]
            self._state = part.into(self._state, part.of(state))

    def reset(self, state: AdapterState) -> None:
        """Begin anew with an adapter."""
        self._state = state
