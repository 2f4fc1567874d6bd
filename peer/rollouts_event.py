"""What a peer tells of the rollouts that it shares: an event as those of ``journal_events.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from peer.journal_words import megabytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutsShared:
    """What a round has shared of rollouts, in runs that share them; told with the round."""

    kind: ClassVar[str] = "rollouts"
    is_transient: ClassVar[bool] = False

    round: int
    """The round, from 0."""
    published: int
    """How many of our own were published."""
    bytes: int
    """Length of their publication."""
    came: tuple[tuple[str, int], ...]
    """Pairs of name and how many: whose publications came since the last such event."""
    usable: tuple[tuple[str, int], ...]
    """Pairs of name and how many: whose rollouts this round's training was given."""

    def sentence(self) -> str | None:
        """Return the counts in one line."""
        came = ", ".join(f"{count} of {name}" for name, count in self.came) or "none"
        return (
            f"rollouts of round {self.round + 1}: published {self.published} ({megabytes(self.bytes)}), came {came}; "
            f"it was trained with {sum(count for _, count in self.usable)}"
        )
