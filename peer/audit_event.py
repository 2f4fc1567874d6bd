"""What a peer tells of an audit at the end of its run: an event of the journal, as those of ``journal_events.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """With `--audit`, at the end: how well an adapter tells our rows from rows that it never saw; one event for
    each."""

    kind: ClassVar[str] = "audited"
    is_transient: ClassVar[bool] = False

    adapter: str
    """Which one: the finished one (after the final merge, if there was one); ours after the last round before that
    (mixed) and as last trained before mixing (own); a neighbor's as it last came (received from NAME)."""
    members: int
    """Rows of ours that were looked at."""
    held_out: int
    """Rows held out of the same files that were looked at."""
    auc: float
    """Share of pairs of one row of each kind in which the adapter tells which is ours; 0.5 = guessing."""
    auc_interval: tuple[float, float]
    """Its 95 % interval."""
    tpr_1: float
    """Share of our rows that are found while at most 1 % of the others are taken for ours."""
    tpr_1_interval: tuple[float, float]
    """Its 95 % interval. It says little where `held_out` is below 100."""
    tpr_5: float
    """The same at 5 %."""
    tpr_5_interval: tuple[float, float]
    """Its 95 % interval."""
    canaries: int
    """Canaries that were planted."""
    exposure_mean: float | None
    """Mean of their exposures, bits; null without canaries."""
    exposure_highest: float | None
    """The highest of them."""
    exposure_chance: float | None
    """What the mean would be, had none of them been seen."""
    exposure_limit: float | None
    """The most bits that can be shown."""
    seconds: float
    """How long measuring took."""

    def sentence(self) -> str | None:
        """Return what somebody learns who has this adapter."""
        low, high = (round(100 * bound) for bound in self.auc_interval)
        told = (
            f"audit of the adapter {self.adapter}: it tells our rows from held-out ones in {100 * self.auc:.0f} of "
            f"100 pairs ({low} to {high}; 50 = guessing)"
        )
        if self.held_out >= 20:
            told += f", and finds {self.tpr_5:.0%} of ours at 5 % false alarms"
        if self.exposure_mean is not None and self.exposure_chance is not None:
            told += (
                f"; canaries stand out by {self.exposure_mean:.1f} bits (unseen ones by {self.exposure_chance:.1f}, "
                f"at most {self.exposure_limit:.1f})"
            )
        return told
