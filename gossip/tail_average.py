"""The mean of an adapter over the last rounds, which takes its place when the last round ends.

Steps at a constant rate wander around what they have found, and the mean of where they have been is nearer to it than
where they happen to stop: averaging SGD's tail (arXiv 1610.03774), stochastic weight averaging (arXiv 1803.05407),
latest weight averaging (arXiv 2209.14981). The course of the rounds before stays as it is, bit for bit: only the last
one ends elsewhere. Others see nothing of it but what comes to the final merge.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossip.adapter import AdapterState
from gossip.methods.requirements import State


class TailAverage:
    """A sum over the adapters with which the last rounds have ended so far.

    Args:
        rounds: all rounds of the run, before the final merge.
        last: over so many of them the mean is taken; 0 and 1 = the last adapter stays as it is.
        saved: ``tensors()`` of an earlier life, maybe among those of others. What was summed up for other ``rounds`` or
            another ``last`` is left aside: the mean is then one of the rounds since.
    """

    def __init__(self, rounds: int, last: int, saved: State) -> None:
        self._final = rounds - 1
        self._first = max(0, rounds - last)
        name = f"tail-average-{last}-of-{rounds}"
        self._sum_name, self._count_name = f"{name}/sum", f"{name}/count"
        self._sum: Tensor | None = (
            None  # float64[P]: the order of rounds leaves no trace at an adapter's precision
        )
        self._count = 0
        if self._sum_name in saved:
            self._sum, self._count = saved[self._sum_name], int(saved[self._count_name])

    def tensors(self) -> State:
        """Return what a checkpoint keeps; nothing where nothing has been summed up."""
        if self._sum is None:
            return {}
        return {self._sum_name: self._sum, self._count_name: torch.tensor(self._count)}

    def ends_with(self, round: int, state: AdapterState) -> AdapterState:
        """Return what is to be kept of a round that has ended with ``state``: the mean in the last one, else that."""
        if round != self._final or self._sum is None:
            return state
        mean = (self._sum + state.flat) / (self._count + 1)
        return AdapterState(state.spec, mean.to(torch.float32))

    def note(self, round: int, state: AdapterState) -> None:
        """Take what has been kept of a round."""
        if round >= self._final:
            self.reset()  # the mean has been taken
        elif round >= self._first:
            values = state.flat.to(torch.float64)
            self._sum = values if self._sum is None else self._sum + values
            self._count += 1

    def reset(self) -> None:
        """Forget the rounds so far: they led to an adapter that is given up."""
        self._sum, self._count = None, 0
