"""Answers of other peers: which of them are right, and which are needed. The rule is the receiver's alone.

A sender is believed nothing: neither that an answer is right nor what it is worth. Each is judged again by our own
environment; what is right is drawn by need, and counts by how often *we* answer its task right. A filter by the
sender's own advantage would drop what novices need: an expert's groups are all right, and have none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from gossip.rollouts import Received
from peer.training.agent.advantages import need, received_advantage
from peer.training.agent.environment import Environment, is_verified
from peer.training.agent.episodes import Episode, Player, Question

KEPT = 256
"""So many verified answers of others are drawn from, the latest. Source: ours (docs/agents.md)."""

ASKED = 16
"""So many questions of a task are asked to learn how often we answer it right. Source: guess; an error of 0.12."""

FRESHNESS = 0.5
"""Weight of the latest measurement of that, against those before. Source: guess."""


class Lesson(NamedTuple):
    """A verified answer of another, ready to be learned."""

    task: str
    episode: Episode


class Lessons:
    """The verified answers of a round.

    Args:
        lessons: they.
        success: task -> our own rate of right answers, 0 to 1, for every task among them.
    """

    def __init__(self, lessons: Sequence[Lesson], success: Mapping[str, float]):
        self._lessons = lessons
        self._success = success

    def drawn(self, count: int, generator: torch.Generator) -> list[tuple[Episode, float]]:
        """Return so many different ones by need, or all if there are fewer, each with its advantage."""
        count = min(count, len(self._lessons))
        if not count:
            return []
        weights = torch.tensor([need(self._success[lesson.task]) for lesson in self._lessons])
        chosen = torch.multinomial(weights, count, generator=generator).tolist()
        return [
            (lesson.episode, received_advantage(self._success[lesson.task]))
            for lesson in (self._lessons[place] for place in chosen)
        ]


def verified(
    received: Sequence[Received], environments: Mapping[str, Environment], player: Player
) -> list[tuple[Question, Lesson]]:
    """Return the latest right answers among those received, each once, in the order in which they came.

    Dropped are those to tasks or versions that we do not know, to held-out questions, wrong ones, and such as are too
    long for our model.
    """
    found: dict[tuple[str, int, str], tuple[Question, Lesson]] = {}
    for _, _, (task, version, index, answer) in received:
        environment = environments.get(task)
        if (task, index, answer) in found or environment is None:
            continue
        if is_verified(environment, version, index, answer):
            question = Question(environment, index)
            episode = player.written(question, answer)
            if episode is not None:
                found[task, index, answer] = question, Lesson(task, episode)
    return list(found.values())[-KEPT:]


def measured_success(
    questions: Sequence[Question], player: Player, generator: torch.Generator
) -> dict[str, float]:
    """Return our rate of right answers of every task among questions, measured on a few of them."""
    asked: dict[str, list[Question]] = {}
    for question in questions:
        asked.setdefault(question.environment.name, []).append(question)
    chosen = [question for task in sorted(asked) for question in asked[task][-ASKED:]]
    right = player.judged(chosen, player.played(chosen, generator)) if chosen else []
    hits: dict[str, list[bool]] = {}
    for question, hit in zip(chosen, right, strict=True):
        hits.setdefault(question.environment.name, []).append(hit)
    return {task: sum(found) / len(found) for task, found in hits.items()}


def smoothed(before: Mapping[str, float], measured: Mapping[str, float]) -> dict[str, float]:
    """Return rates after a measurement: the mean of what was known and what was found, weighted by ``FRESHNESS``."""
    return {
        **before,
        **{
            task: rate if task not in before else FRESHNESS * rate + (1 - FRESHNESS) * before[task]
            for task, rate in measured.items()
        },
    }
