"""The adapter as one flat float32 vector, and the spec that gives its slices their names.

Mixing is a weighted sum, clipping a norm, int8 a reshape: all of them want one vector. Names and shapes matter only
where the vector meets peft (``peer/training/local_trainer.py``) and disk (``peer/checkpoints.py``). This file knows
neither.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gossip.errors import LocalError


@dataclass(frozen=True)
class AdapterSpec:
    """Names and shapes of an adapter's tensors, in wire order. Two adapters can be mixed only if specs are equal.

    Args:
        entries: ``(name, shape)`` in the order in which the tensors lie in the flat vector; names as in
            ``peft.get_peft_model_state_dict``, sorted.
    """

    entries: tuple[tuple[str, tuple[int, ...]], ...]

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> AdapterSpec:
        """Return the spec of named tensors, in sorted order of names (so that every peer agrees on it)."""
        return AdapterSpec(tuple((name, tuple(tensors[name].shape)) for name in sorted(tensors)))

    @cached_property
    def size(self) -> int:
        """Number of values (P in the comments of this package)."""
        return sum(math.prod(shape) for _, shape in self.entries)

    @cached_property
    def places(self) -> dict[tuple[str, tuple[int, ...]], slice]:
        """Where each entry lies in the flat vector, in wire order."""
        places, start = {}, 0
        for name, shape in self.entries:
            stop = start + math.prod(shape)
            places[name, shape] = slice(start, stop)
            start = stop
        return places

    def only(self, keep: Callable[[str], bool]) -> AdapterSpec:
        """Return the spec of the tensors whose names ``keep`` accepts, in the same order."""
        return AdapterSpec(tuple(entry for entry in self.entries if keep(entry[0])))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the canonical JSON of names and shapes."""
        canonical = json.dumps([[name, list(shape)] for name, shape in self.entries], separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class AdapterState:
    """One adapter's values. Never written in place after construction: mixing returns a new one.

    Args:
        spec: names and shapes.
        flat: float32[P], contiguous, on the CPU.

    Raises:
        LocalError: ``flat`` does not fit ``spec`` (our bug; what a peer sends is checked by the codec before).
    """

    spec: AdapterSpec
    flat: Tensor

    def __post_init__(self) -> None:
        if self.flat.dtype != torch.float32 or self.flat.shape != (self.spec.size,):
            raise LocalError(
                f"an adapter needs float32[{self.spec.size}], got {self.flat.dtype}{list(self.flat.shape)}"
            )

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> AdapterState:
        """Flatten named tensors of any float dtype and device into one float32 vector (a copy)."""
        spec = AdapterSpec.of(tensors)
        flat = torch.empty(spec.size, dtype=torch.float32)
        state = AdapterState(spec, flat)
        for name, view in state.tensors():
            view.copy_(tensors[name].detach())
        return state

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield ``(name, view)`` in wire order; the views share memory with ``flat``."""
        offset = 0
        for name, shape in self.spec.entries:
            count = math.prod(shape)
            yield name, self.flat[offset : offset + count].view(shape)
            offset += count

    def select(self, spec: AdapterSpec) -> AdapterState:
        """Return the tensors of ``spec``, made with ``AdapterSpec.only`` (a copy; the adapter itself if that is all).

        Raises:
            LocalError: ``spec`` has a tensor that this adapter has not, or has in another shape.
        """
        if spec == self.spec:
            return self
        places = self.spec.places
        _demand_contained(spec, self.spec)
        return AdapterState(spec, torch.cat([self.flat[:0], *(self.flat[places[e]] for e in spec.entries)]))

    def with_selected(self, selected: AdapterState) -> AdapterState:
        """Return this adapter with the tensors of ``selected`` in place of its own.

        Raises:
            LocalError: ``selected`` has a tensor that this adapter has not, or has in another shape.
        """
        if selected.spec == self.spec:
            return selected
        _demand_contained(selected.spec, self.spec)
        theirs = selected.spec.places
        pieces = (
            selected.flat[theirs[entry]] if entry in theirs else self.flat[place]
            for entry, place in self.spec.places.items()
        )
        return AdapterState(self.spec, torch.cat([self.flat[:0], *pieces]))

    def digest(self) -> str:
        """SHA-256 (hex) over the little-endian float32 bytes of ``flat``."""
        return hashlib.sha256(self.flat.numpy().astype("<f4", copy=False).data).hexdigest()


def _demand_contained(selected: AdapterSpec, whole: AdapterSpec) -> None:
    """Refuse a spec with tensors that another has not."""
    for name, shape in selected.entries:
        if (name, shape) not in whole.places:
            raise LocalError(
                f"the adapter has no tensor {name} of shape {list(shape)}: a selection must be made from the "
                "adapter's own spec with AdapterSpec.only"
            )
