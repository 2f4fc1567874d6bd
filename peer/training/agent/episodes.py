"""A question and its answer as tokens: played by a model, or written down from a transcript.

An episode begins with the environment's question; then turns of the agent and replies of the environment follow one
another until the environment has nothing more to say. Only the agent's tokens are ever learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from gossip.errors import LocalError
from peer.training.agent.environment import TURNS_MAX, Environment, is_right
from peer.training.agent.sampling import continued
from peer.training.libraries import BaseModel, Tokenizer

TURN_END = "\n"
"""Ends each turn where there are several; a single answer ends with the tokenizer's end of text."""


class Episode(NamedTuple):
    """One question, answered.

    Attributes:
        tokens: question, turns and replies.
        said: of each token, whether it is the agent's.
        answer: the turns as text, joined by newlines.
        is_whole: whether each turn came to its end; what was cut is no answer.
    """

    tokens: tuple[int, ...]
    said: tuple[bool, ...]
    answer: str
    is_whole: bool


class Question(NamedTuple):
    """A question of an environment."""

    environment: Environment
    number: int


class Player:
    """Plays episodes with one model.

    Args:
        model: in evaluation mode while it plays.
        tokenizer: of the model.
        longest: tokens of an episode at most.

    Raises:
        LocalError: the tokenizer has no token that ends a text.
    """

    def __init__(self, model: BaseModel, tokenizer: Tokenizer, longest: int):
        if tokenizer.eos_token_id is None:
            raise LocalError(
                "--task agent needs a model whose tokenizer has a token that ends a text; use another"
            )
        self._model, self._tokenizer, self._longest = model, tokenizer, longest
        self._end: int = tokenizer.eos_token_id
        self._pad = tokenizer.pad_token_id or 0
        self._turn_ends = frozenset[int]()

    def played(self, questions: Sequence[Question], generator: torch.Generator | None) -> list[Episode]:
        """Return an episode of each question; without a generator, of the most probable tokens.

        Raises:
            LocalError: a question leaves no room for an answer.
            Diverged: the model's probabilities are no numbers.
        """
        tables = [_Table(question, self._question_tokens(question)) for question in questions]
        going = [table for table in tables if not table.is_over]
        for _ in range(TURNS_MAX):
            if not going:
                break
            ends = [self._ends(table.question.environment) for table in going]
            room = [min(table.turn_room, self._longest - len(table.tokens)) for table in going]
            turns = continued(
                self._model,
                [table.tokens for table in going],
                room,
                frozenset().union(*ends),
                self._pad,
                generator,
            )
            for table, turn, end in zip(going, turns, ends, strict=True):
                self._take(table, turn, end)
            going = [table for table in going if not table.is_over]
        return [table.episode() for table in tables]

    def written(self, question: Question, answer: str) -> Episode | None:
        """Return the episode in which a right answer came about; None if it is too long for this model."""
        environment, index = question
        tokens = self._question_tokens(question)
        said = [False] * len(tokens)
        if environment.reply is None:
            turns, end = [answer], [self._end]
        else:
            turns, end = answer.split(TURN_END), self._tokens(TURN_END)
        for count, turn in enumerate(turns, 1):
            own = [*self._tokens(turn), *end]
            reply = environment.reply(index, turns[:count]) if environment.reply is not None else None
            heard = self._tokens(reply) if reply is not None else []
            tokens, said = [*tokens, *own, *heard], [*said, *[True] * len(own), *[False] * len(heard)]
        if len(tokens) > self._longest:
            return None
        return Episode(tuple(tokens), tuple(said), answer, is_whole=True)

    def judged(self, questions: Sequence[Question], episodes: Sequence[Episode]) -> list[bool]:
        """Say of each episode whether its answer is right.

        Raises:
            LocalError: a judge failed.
        """
        return [
            episode.is_whole and is_right(environment, index, episode.answer)
            for (environment, index), episode in zip(questions, episodes, strict=True)
        ]

    def _question_tokens(self, question: Question) -> list[int]:
        environment, index = question
        tokens = self._tokens(environment.prompt(index))
        if not 0 < len(tokens) < self._longest:
            raise LocalError(
                f"the question {index} of {environment.name} has {len(tokens)} tokens: it must have at least one, and "
                f"--max-length {self._longest} must leave room for an answer"
            )
        return tokens

    def _tokens(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _ends(self, environment: Environment) -> frozenset[int]:
        """Return the tokens that end a turn."""
        if environment.reply is None:
            return frozenset((self._end,))
        if not self._turn_ends:
            size = len(self._tokenizer)
            lines = (token for token in range(size) if TURN_END in self._tokenizer.decode([token]))
            self._turn_ends = frozenset((self._end, *lines))
        return self._turn_ends

    def _take(self, table: _Table, turn: Sequence[int], ends: frozenset[int]) -> None:
        """Note a turn, and hear what the environment says to it."""
        environment, index = table.question
        table.say(turn)
        if not turn or turn[-1] not in ends:
            table.is_over = True
            return
        if environment.reply is None:
            table.turns.append(self._tokenizer.decode(turn[:-1]))
            table.is_over = table.is_whole = True
            return
        text = self._tokenizer.decode(turn)
        if turn[-1] == self._end or not text.endswith(TURN_END):
            table.is_over = True
            return
        table.turns.append(text.removesuffix(TURN_END))
        reply = environment.reply(index, table.turns)
        table.is_over = table.is_whole = reply is None
        if reply is not None:
            table.hear(self._tokens(reply))
            table.is_over = len(table.tokens) >= self._longest


class _Table:
    """An episode that is being played."""

    def __init__(self, question: Question, tokens: list[int]):
        self.question = question
        self.tokens = tokens
        self.said = [False] * len(tokens)
        self.turns: list[str] = []
        self.is_over = False
        self.is_whole = False
        self.turn_room = question.environment.turn_bytes + 1  # a token has at least a byte; and the end

    def say(self, tokens: Sequence[int]) -> None:
        self.tokens += tokens
        self.said += [True] * len(tokens)

    def hear(self, tokens: Sequence[int]) -> None:
        self.tokens += tokens
        self.said += [False] * len(tokens)

    def episode(self) -> Episode:
        return Episode(tuple(self.tokens), tuple(self.said), TURN_END.join(self.turns), self.is_whole)
