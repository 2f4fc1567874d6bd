"""Environments of several turns, in which an agent calls tools and sees what they return.

What travels between peers is the agent's own turns; whoever receives them plays the game again, so that nobody has to
be believed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from peer.training.agent.environment import Environment

SIDE = 3
"""Width and height of the grid. Source: ours; small enough for a model of 0.1 million parameters."""
MOVES_MAX = 6
"""Moves until the game is over; the farthest field is 4 away, and one wall costs 2."""
STEPS = {"u": (0, -1), "d": (0, 1), "l": (-1, 0), "r": (1, 0)}
"""The one tool: a move, by its letter."""

Place = tuple[int, int]
"""Column and row, from 0."""


def _grid(index: int) -> tuple[Place, Place, tuple[Place, Place]]:
    """Return start, goal, and two neighboring fields with a wall between them that nobody sees until it stops them."""
    draw = random.Random(f"grid {index}")
    fields = [(column, row) for column in range(SIDE) for row in range(SIDE)]
    start, goal = draw.sample(fields, 2)
    here = draw.choice(fields)
    beside = [place for place in (_moved(here, step) for step in STEPS) if place != here]
    return start, goal, (here, draw.choice(beside))


def _moved(place: Place, step: str) -> Place:
    """Return where a move ends; at the border it stays."""
    across, down = STEPS[step]
    column, row = place[0] + across, place[1] + down
    return (column, row) if 0 <= column < SIDE and 0 <= row < SIDE else place


def _played(index: int, turns: Sequence[str]) -> Place | None:
    """Return where a walk stands; None if a turn was no move, or came after the game was over."""
    here, goal, wall = _grid(index)
    for count, turn in enumerate(turns):
        if turn not in STEPS or here == goal or count == MOVES_MAX:
            return None
        there = _moved(here, turn)
        here = here if {here, there} == set(wall) else there
    return here


def _grid_prompt(index: int) -> str:
    start, goal, _ = _grid(index)
    return f"grid {start[0]}{start[1]}>{goal[0]}{goal[1]}:\n"


def _grid_reply(index: int, turns: Sequence[str]) -> str | None:
    """Say where the walk stands; nothing more at the goal, after the last move, or after what was no move."""
    here = _played(index, turns)
    if here is None or here == _grid(index)[1] or len(turns) >= MOVES_MAX:
        return None
    return f"{here[0]}{here[1]}\n"


def _grid_check(index: int, answer: str) -> bool:
    turns = answer.split("\n", MOVES_MAX + 1)
    return _played(index, turns) == _grid(index)[1]


WORD_LETTERS = 3
KEYS = "abcdefgh"


def _lookup(index: int) -> tuple[str, str]:
    """Return the key that is asked for, and the word behind it."""
    draw = random.Random(f"lookup {index}")
    return draw.choice(KEYS), "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=WORD_LETTERS))


def _lookup_reply(index: int, turns: Sequence[str]) -> str | None:
    """Give the word to whoever calls the tool with the right key; a second turn ends it."""
    key, word = _lookup(index)
    return f"{word}\n" if list(turns) == [f"get {key}"] else None


def _lookup_check(index: int, answer: str) -> bool:
    key, word = _lookup(index)
    return answer == f"get {key}\n{word}"


GAMES = (
    Environment(
        name="grid",
        version=1,
        doc="walk to a goal, a move (u, d, l, r) a turn; a wall shows only when it stops one",
        turn_bytes=2,
        prompt=_grid_prompt,
        check=_grid_check,
        reply=_grid_reply,
    ),
    Environment(
        name="lookup",
        version=1,
        doc="call a tool (get and a key), then tell the word that it returned",
        turn_bytes=6,
        prompt=lambda index: f"lookup {_lookup(index)[0]}:\n",
        check=_lookup_check,
        reply=_lookup_reply,
    ),
)
"""All of them."""
