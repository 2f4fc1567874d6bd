"""Questions about short words and small numbers, each with one right answer, compared letter by letter."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable

from peer.training.agent.environment import Environment, is_held_out

LETTERS = "abcdefgh"
"""Of words. Source: ours; with all 26, a model of 0.1 million parameters needs three times as long for an alphabet."""
WORD_LETTERS = 4
"""Length of a word. Source: the length at which a model of 0.1 million parameters can learn all of these."""

DRAWS_MAX = 1000
"""Words drawn until one belongs to the part that is asked for; an eighth does. More would mean a fault of ours."""

TURN_BYTES = 8
"""The longest right answer has 4 bytes; a few more, so that an agent must learn to stop."""

Question = tuple[str, str]
"""A question's text after the name of its environment, and its answer."""


def _word(draw: random.Random, letters: str = LETTERS) -> str:
    return "".join(draw.choices(letters, k=WORD_LETTERS))


def _of_word(answer: Callable[[str], str]) -> Callable[[random.Random], Question]:
    """Return what asks for a function of a word."""

    def question(draw: random.Random) -> Question:
        word = _word(draw)
        return word, answer(word)

    return question


def _shifted(word: str) -> str:
    """Each letter's successor, from the last to the first."""
    return "".join(LETTERS[(LETTERS.index(letter) + 1) % len(LETTERS)] for letter in reversed(word))


def _swapped(word: str) -> str:
    """Neighbors change places."""
    return "".join(word[start : start + 2][::-1] for start in range(0, len(word), 2))


def _count(draw: random.Random) -> Question:
    """How often a letter stands in a word of few letters."""
    word = _word(draw, "abc")
    letter = draw.choice("abc")
    return f"{letter} {word}", str(word.count(letter))


def _except(draw: random.Random) -> Question:
    """A word without one of its letters."""
    word = _word(draw)
    letter = draw.choice(word)
    return f"{letter} {word}", word.replace(letter, "")


def _sum(draw: random.Random) -> Question:
    first, second = draw.randrange(50), draw.randrange(50)
    return f"{first}+{second}", str(first + second)


def _environment(name: str, doc: str, question: Callable[[random.Random], Question]) -> Environment:
    """Return an environment of questions with one answer."""

    def drawn(index: int) -> Question:
        return _drawn(name, question, index)

    return Environment(
        name=name,
        version=1,
        doc=doc,
        turn_bytes=TURN_BYTES,
        prompt=lambda index: f"{name} {drawn(index)[0]}:",
        check=lambda index, answer: answer == drawn(index)[1],
    )


def _drawn(name: str, question: Callable[[random.Random], Question], index: int) -> Question:
    """Draw a question. Two indices may give the same one, but never a held-out index and another one."""
    draw = random.Random(f"{name} {index}")
    for _ in range(DRAWS_MAX):
        asked = question(draw)
        if is_held_out(zlib.crc32(asked[0].encode())) == is_held_out(index):
            return asked
    raise AssertionError(f"{name} has no question of that part")


def solution(environment: Environment, index: int) -> str:
    """Return the answer of one of these; a base model is warmed up with them, and tests look at them."""
    return _drawn(environment.name, QUESTIONS[environment.name], index)[1]


QUESTIONS: dict[str, Callable[[random.Random], Question]] = {
    "reverse": _of_word(lambda word: word[::-1]),
    "sort": _of_word(lambda word: "".join(sorted(word))),
    "shift": _of_word(_shifted),
    "swap": _of_word(_swapped),
    "rotate": _of_word(lambda word: word[1:] + word[0]),
    "count": _count,
    "except": _except,
    "sum": _sum,
}
"""What is asked, by name."""

DOCS = {
    "reverse": "a word from its end",
    "sort": "a word's letters by the alphabet",
    "shift": "a word from its end, each letter replaced by the next of eight",
    "swap": "a word, neighbors having changed places",
    "rotate": "a word whose first letter has gone to its end",
    "count": "how often a letter stands in a word",
    "except": "a word without one of its letters",
    "sum": "the sum of two numbers below 50",
}

STRINGS = tuple(_environment(name, DOCS[name], question) for name, question in QUESTIONS.items())
"""All of them."""
