"""What an environment is: questions made from an index, and a judge of answers. Also judging answers of strangers.

An environment is a value made of functions. It is code of ours or of the user: what peers send names one and an index,
and the question is made again here. Answers are text that anybody may have written: a judge compares it, and never runs
or parses it as a program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gossip.errors import LocalError
from gossip.rollouts import ANSWER_BYTES_MAX

INDICES = 2**31
"""How many questions each environment has, at most: indices run from 0 up to here."""

HELD_OUT_EVERY = 8
"""Each so many-th index is held out: measured, never trained on, also not from others. Source: common practice, a
tenth or so."""

TURNS_MAX = 32
"""Longest transcript, turns. Source: guess; a turn of a game takes some 4 bytes."""


@dataclass(frozen=True, slots=True)
class Environment:
    """One line of the catalogue.

    Attributes:
        name: how it is called on the command line and among peers.
        version: new for every change of its questions or its judge; answers of other versions mean nothing here.
        doc: one line for help and tables.
        turn_bytes: the longest turn that can be of use, bytes; longer ones are cut while they are made.
        prompt: index -> the question; the same on every machine.
        check: (index, answer) -> whether the *whole* answer is right. It must bear any text.
        reply: (index, turns so far) -> what the environment says then, or None when it is over. None in place of the
            function: there is one turn, and it is the answer. Else the answer is the turns, joined by newlines.
    """

    name: str
    version: int
    doc: str
    turn_bytes: int
    prompt: Callable[[int], str]
    check: Callable[[int, str], bool]
    reply: Callable[[int, Sequence[str]], str | None] | None = None


def is_held_out(index: int) -> bool:
    """Say whether a question is measured and never trained on."""
    return index % HELD_OUT_EVERY == 0


def is_right(environment: Environment, index: int, answer: str) -> bool:
    """Judge an answer of our own model.

    Raises:
        LocalError: the environment's judge failed (the user's bug, or ours).
    """
    if len(answer.encode(errors="replace")) > ANSWER_BYTES_MAX:
        return False
    try:
        return bool(environment.check(index, answer))
    except Exception as error:
        raise LocalError(
            f"the environment {environment.name} failed to judge an answer to its question {index} "
            f"({type(error).__name__}: {error}): its check must bear any text"
        ) from error


def is_verified(environment: Environment, version: int, index: int, answer: str) -> bool:
    """Judge a stranger's answer: right, of our version, of a question that is trained on. It never raises: a judge that
    fails on what a stranger wrote says no, since a stranger must not be able to end our training.
    """
    if version != environment.version or not 0 <= index < INDICES or is_held_out(index):
        return False
    try:
        return is_right(environment, index, answer)
    except LocalError:
        return False
