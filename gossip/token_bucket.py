"""How often something may be done: on average, and how often at once."""

from __future__ import annotations


class TokenBucket:
    """Holds up to ``burst`` tokens and gains ``per_s`` of them a second; whatever is done takes one.

    Args:
        per_s: tokens a second, above 0.
        burst: tokens at the beginning, and at most; at least 1.
    """

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._tokens = burst
        self._at: float | None = None

    def has(self, now: float) -> bool:
        """Whether there is a token."""
        if self._at is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_s)
        self._at = now
        return self._tokens >= 1

    def take(self, now: float) -> bool:
        """Take a token if there is one; return whether there was."""
        if not self.has(now):
            return False
        self._tokens -= 1
        return True


class TokenBuckets:
    """One bucket for each of at most ``count_max`` keys; the one that was looked at longest ago is forgotten."""

    def __init__(self, per_s: float, burst: float, count_max: int) -> None:
        self._per_s = per_s
        self._burst = burst
        self._count_max = count_max
        self._buckets: dict[str, TokenBucket] = {}  # in order of use

    def of(self, key: str) -> TokenBucket:
        """Return the bucket of a key."""
        bucket = self._buckets.pop(key, None) or TokenBucket(self._per_s, self._burst)
        self._buckets[key] = bucket
        if len(self._buckets) > self._count_max:
            del self._buckets[next(iter(self._buckets))]
        return bucket

    def __len__(self) -> int:
        return len(self._buckets)
