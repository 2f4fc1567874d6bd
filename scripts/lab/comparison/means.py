"""Means of numbers and of adapters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from gossip.adapter import AdapterState


def average(values: Sequence[float]) -> float:
    """Return the mean."""
    return math.fsum(values) / len(values)


def mean_adapter(states: Sequence[AdapterState]) -> AdapterState:
    """Return the mean of adapters; of equal ones to the bit the first of them."""
    first = states[0]
    if all(state is first or torch.equal(state.flat, first.flat) for state in states):
        return first
    return AdapterState(first.spec, torch.stack([state.flat for state in states]).mean(dim=0))
