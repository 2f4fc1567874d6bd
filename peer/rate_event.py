"""What a peer tells of a learning rate that its user did not give: an event as those of ``journal_events.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class RateChosen:
    """No `--learning-rate` was given: the one that is taken. It stands in the line with which friends join."""

    kind: ClassVar[str] = "rate"
    is_transient: ClassVar[bool] = False

    rate: float
    """The learning rate."""
    source: str
    """Where it is from: tried (a short trial on our own text), usual (of the kind of adapter) or kept (from before a
    restart)."""
    why: str
    """Why it is the usual one; else empty."""
    tried_rates: tuple[float, ...]
    """Rates of the trial's steps, one each."""
    gains: tuple[float, ...]
    """By how much the loss was lower before that step than without training, on its batch; nats."""

    def sentence(self) -> str | None:
        """Return the rate, where it is from, and what to do for another."""
        other = "another with --learning-rate"
        if self.source == "tried":
            tried = f"{len(self.tried_rates)} short steps on our own text"
            return f"learning rate {self.rate:.2g}, found by {tried}; {other}"
        if self.source == "kept":
            return f"learning rate {self.rate:.2g}, as before; {other}"
        return f"learning rate {self.rate:.2g}, usual for this adapter ({self.why}); {other}"
