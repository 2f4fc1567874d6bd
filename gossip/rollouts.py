"""Rollouts: answers to tasks, as they travel and as they are kept. What they are worth, each receiver finds out itself.

A rollout names a task, a question of it by number, and an answer. The receiver makes the question again and judges the
answer; no key, reward or log-probability travels. Answers are text and nothing else: nobody runs them. A publication is
one after the other, all numbers little-endian:

    length of the task's name (1 byte), name, version (4), index (8), length of the answer (2), answer in UTF-8

Received ones wait in a ``Buffer``, a value with limits on each sender, so that whoever floods it pushes out nobody
else's. Pure; it knows neither tasks nor learning. Source: SAPO (arXiv 2509.08721) for sharing them; the form is ours.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from gossip.errors import LocalError, RemoteError

CODEC = "rollouts"
"""What their offers name as codec."""
ROLLOUTS_BYTES_MAX = 64 * 1024
"""A publication is at most this long. Source: ours; 120 of the longest answers, a hundredth of an adapter."""
ANSWER_BYTES_MAX = 512
"""An answer is at most this long in UTF-8. Source: ours; a few sentences, or a transcript of a small game."""
TASK_BYTES_MAX = 64
"""The name of a task is at most this long. Source: ours."""
VERSION_MAX = 2**31 - 1
INDEX_MAX = 2**53 - 1
"""Largest number of a question: what every language reads exactly, also out of JSON."""
CAPACITY = 1024
"""So many rollouts of others are kept. Source: ours; four times the 256 with which verified sharing was measured, so
that one sender's quarter is as many."""
ROUNDS_KEPT = 2
"""A rollout is of use for so many more rounds. Source: ours; policies move on, and questions never end."""
SENDER_SHARE = 4
"""At most one in so many of those kept is of one sender: one that floods has its part and no more. Source: ours."""

Share = Literal["weights", "rollouts", "both"]
"""What the peers of a run read of one another."""

_NUMBERS = struct.Struct("<IQH")


class Rollout(NamedTuple):
    """One answer to one question.

    Attributes:
        task: name of the task, printable ASCII, 1 to ``TASK_BYTES_MAX`` bytes.
        version: of the task, 0 to ``VERSION_MAX``.
        index: number of the question, 0 to ``INDEX_MAX``: with the task it makes the question, everywhere alike.
        answer: at most ``ANSWER_BYTES_MAX`` bytes of UTF-8, perhaps of characters that no terminal should see.
    """

    task: str
    version: int
    index: int  # type: ignore[assignment]  # hides a method of tuples that nobody calls here
    answer: str


class Received(NamedTuple):
    """A rollout of another peer, and the round in which it was published."""

    sender: str
    round: int
    rollout: Rollout


_Key = tuple[str, int, str]


def key(rollout: Rollout) -> _Key:
    """Return what two rollouts have in common that are the same."""
    return rollout.task, rollout.index, rollout.answer


def encode(rollouts: Iterable[Rollout]) -> bytes:
    """Return a publication; of those that are the same, the first.

    Raises:
        LocalError: one is not within the limits, or all together are too many.
    """
    distinct: dict[_Key, Rollout] = {}
    for rollout in rollouts:
        distinct.setdefault(key(rollout), rollout)
    payload = b"".join(map(_packed, distinct.values()))
    if len(payload) > ROLLOUTS_BYTES_MAX:
        raise LocalError(
            f"{len(distinct)} rollouts take {len(payload)} bytes, more than {ROLLOUTS_BYTES_MAX}: the trainer must "
            "hand out fewer a round, or shorter answers"
        )
    return payload


def decode(payload: bytes | bytearray | memoryview) -> tuple[Rollout, ...]:
    """Return the rollouts of a publication, no two of which are the same.

    Raises:
        RemoteError: ``"malformed"``, for anything else than whole, bounded and distinct rollouts.
    """
    if len(payload) > ROLLOUTS_BYTES_MAX:
        raise RemoteError("malformed", f"{len(payload)} bytes of rollouts, at most {ROLLOUTS_BYTES_MAX}")
    rollouts, seen, rest = list[Rollout](), set[_Key](), bytes(payload)
    place = 0
    while place < len(rest):
        rollout, place = _unpacked(rest, place)
        if key(rollout) in seen:
            raise RemoteError("malformed", "the same rollout comes twice")
        seen.add(key(rollout))
        rollouts.append(rollout)
    return tuple(rollouts)


def _packed(rollout: Rollout) -> bytes:
    try:
        task, answer = rollout.task.encode("ascii"), rollout.answer.encode()
    except UnicodeEncodeError as error:
        raise LocalError(
            f"a rollout's task is not ASCII, or its answer no UTF-8: {rollout!r:.200}"
        ) from error
    if not (
        _is_name(task)
        and 0 <= rollout.version <= VERSION_MAX
        and 0 <= rollout.index <= INDEX_MAX
        and len(answer) <= ANSWER_BYTES_MAX
    ):
        raise LocalError(
            f"a rollout is not within the limits (a task of 1 to {TASK_BYTES_MAX} printable letters, an answer of at "
            f"most {ANSWER_BYTES_MAX} bytes): {rollout!r:.200}"
        )
    return b"".join(
        (bytes((len(task),)), task, _NUMBERS.pack(rollout.version, rollout.index, len(answer)), answer)
    )


def _unpacked(payload: bytes, place: int) -> tuple[Rollout, int]:
    """Return the rollout that begins at a place, and where it ends."""
    numbers_at = place + 1 + payload[place]
    answer_at = numbers_at + _NUMBERS.size
    if answer_at > len(payload):
        raise RemoteError("malformed", "the last rollout is not whole")
    task = payload[place + 1 : numbers_at]
    version, index, length = _NUMBERS.unpack_from(payload, numbers_at)
    end = answer_at + length
    if end > len(payload):
        raise RemoteError("malformed", "the last rollout is not whole")
    if not _is_name(task) or version > VERSION_MAX or index > INDEX_MAX or length > ANSWER_BYTES_MAX:
        raise RemoteError("malformed", "a rollout is not within the limits")
    try:
        return Rollout(task.decode("ascii"), version, index, payload[answer_at:end].decode()), end
    except UnicodeDecodeError as error:
        raise RemoteError("malformed", "an answer is no UTF-8") from error


def _is_name(task: bytes) -> bool:
    """Tell whether a task may be called so: it reaches terminals and logs."""
    return 0 < len(task) <= TASK_BYTES_MAX and all(0x20 <= byte < 0x7F for byte in task)


# -- those received


@dataclass(frozen=True, slots=True)
class Buffer:
    """Rollouts of others, as a value.

    Args:
        items: those kept, in the order of ``add``; of one sender no two are the same.
        capacity: how many at most.
    """

    items: tuple[Received, ...] = ()
    capacity: int = CAPACITY

    @property
    def quota(self) -> int:
        """How many of one sender at most."""
        return max(1, self.capacity // SENDER_SHARE)

    def of(self, sender: str) -> int:
        """Return how many are kept of a sender."""
        return sum(item.sender == sender for item in self.items)

    def usable(self) -> tuple[Received, ...]:
        """Return those kept, no two of which are the same: of copies, the one that was published first."""
        firsts: dict[_Key, Received] = {}
        for item in self.items:
            known = firsts.get(key(item.rollout))
            if known is None or item.round < known.round:
                firsts[key(item.rollout)] = item
        return tuple(item for item in self.items if firsts[key(item.rollout)] is item)


def add(buffer: Buffer, sender: str, round: int, rollouts: Sequence[Rollout]) -> Buffer:
    """Return the buffer with a publication.

    What is known of this sender is of the newer round from now on. Beyond its quota a sender's own oldest go; beyond
    the capacity, the oldest of whoever has most (of several, the last in order of ids): so nobody pushes out more of
    another's than brings it down to its own part.

    Args:
        sender: who published it.
        round: of which round; a publication may come after a newer one.
        rollouts: what was in it, no two the same (``decode``).
    """
    kept = {(item.sender, key(item.rollout)): item for item in buffer.items}
    for rollout in rollouts:
        place = sender, key(rollout)
        if place not in kept or kept[place].round < round:
            kept.pop(place, None)
            kept[place] = Received(sender, round, rollout)
    count = Counter(item.sender for item in kept.values())
    allowed = Counter(count)
    allowed[sender] = min(count[sender], buffer.quota)
    for _ in range(allowed.total() - buffer.capacity):
        allowed[max(allowed, key=lambda one: (allowed[one], one))] -= 1
    items = list(kept.values())
    for one in count:
        items = _without_oldest(items, one, count[one] - allowed[one])
    return replace(buffer, items=tuple(items))


def fresh(buffer: Buffer, round: int) -> Buffer:
    """Return the buffer without what is of no use any more in ``round``."""
    return replace(buffer, items=tuple(item for item in buffer.items if item.round >= round - ROUNDS_KEPT))


def _without_oldest(items: list[Received], sender: str, count: int) -> list[Received]:
    """Return a list without so many of a sender's: those of the earliest rounds, and of one round the first."""
    if not count:
        return items
    own = [place for place, item in enumerate(items) if item.sender == sender]
    dropped = set(sorted(own, key=lambda place: (items[place].round, place))[:count])
    return [item for place, item in enumerate(items) if place not in dropped]
