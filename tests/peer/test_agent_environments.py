"""Environments: questions are the same everywhere, judges bear any text, and only right answers of strangers count."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.errors import LocalError
from peer.training.agent.environment import HELD_OUT_EVERY, INDICES, Environment, is_right, is_verified
from peer.training.agent.environments import ENVIRONMENTS, environments_of
from peer.training.agent.strings import STRINGS, solution

indices = st.integers(0, INDICES - 1)
HOSTILE = (
    "",
    " ",
    "\n" * 400,
    "\0" * 512,
    "\ud800",
    "a" * 100_000,
    "（" * 300,
    "__import__('os').system('touch ran')",
    "9" * 5000,
    "u\nd\n" * 128,
    "get a\nget a\nget a",
)


@pytest.mark.parametrize("environment", ENVIRONMENTS.values(), ids=lambda one: one.name)
@given(index=indices, answer=st.text(max_size=40))
def test_a_judge_bears_any_text_and_a_question_stays_the_same(
    environment: Environment, index: int, answer: str
) -> None:
    assert environment.prompt(index) == environment.prompt(index) != ""
    if environment.reply is None:
        accepted = is_right(environment, index, answer)
        assert accepted == (answer == solution(environment, index))


@pytest.mark.parametrize("environment", ENVIRONMENTS.values(), ids=lambda one: one.name)
def test_hostile_answers_are_wrong_and_run_nothing(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for answer in HOSTILE:
        assert not is_right(environment, 3, answer)
        assert not is_verified(environment, environment.version, 3, answer)
    assert not list(tmp_path.iterdir())


@given(index=indices)
def test_answers_of_strings_are_what_their_names_say(index: int) -> None:
    by_name = {one.name: (one.prompt(index).removesuffix(":"), solution(one, index)) for one in STRINGS}

    def word(name: str) -> tuple[str, str]:
        question, answer = by_name[name]
        return question.split()[-1], answer

    asked, answer = word("reverse")
    assert answer == "".join(reversed(asked))
    asked, answer = word("sort")
    assert list(answer) == sorted(asked)
    asked, answer = word("swap")
    assert answer == asked[1] + asked[0] + asked[3] + asked[2]
    asked, answer = word("rotate")
    assert answer[-1] + answer[:-1] == asked
    asked, answer = word("shift")
    assert len(answer) == len(asked)
    assert (answer[0] == "a") == (asked[-1] == "h")
    asked, answer = word("sum")
    assert sum(map(int, asked.split("+"))) == int(answer)
    _, letter, asked = by_name["count"][0].split()
    assert by_name["count"][1] == str(asked.count(letter))
    _, letter, asked = by_name["except"][0].split()
    assert letter not in by_name["except"][1]
    assert len(by_name["except"][1]) + asked.count(letter) == len(asked)


@pytest.mark.parametrize("environment", STRINGS, ids=lambda one: one.name)
def test_no_question_that_is_learned_is_one_that_is_measured(environment: Environment) -> None:
    held_out = {environment.prompt(HELD_OUT_EVERY * block) for block in range(200)}
    learned = {environment.prompt(HELD_OUT_EVERY * block + 1 + block % 7) for block in range(200)}
    assert not held_out & learned


@given(index=indices)
def test_a_walk_that_goes_to_the_goal_is_right_and_what_the_tool_says_can_be_followed(index: int) -> None:
    """Walk by the environment's replies alone: along one axis, then the other, around the wall where it stops us."""
    grid = ENVIRONMENTS["grid"]
    assert grid.reply is not None
    start, goal = grid.prompt(index).removeprefix("grid ").removesuffix(":\n").split(">")
    turns: list[str] = []
    here, stopped = start, ""
    while True:
        steps = [step for step, closer in _steps(here, goal) if closer and step != stopped]
        step = steps[0] if steps else next(step for step, _ in _steps(here, goal) if step != stopped)
        turns.append(step)
        reply = grid.reply(index, turns)
        if reply is None:
            break
        stopped = step if reply.strip() == here else ""
        here = reply.strip()
    answer = "\n".join(turns)
    assert grid.check(index, answer) or len(turns) == 6
    assert not grid.check(index, answer + "\nu"), "nothing comes after the end"
    assert not grid.check(index, answer + "\n")
    assert not grid.check(index, answer.upper())


def _steps(here: str, goal: str) -> list[tuple[str, bool]]:
    """Return the moves that stay in the grid, and whether each comes closer to the goal."""
    places = {"u": (0, -1), "d": (0, 1), "l": (-1, 0), "r": (1, 0)}
    found = []
    for step, (across, down) in places.items():
        there = int(here[0]) + across, int(here[1]) + down
        if all(0 <= place < 3 for place in there):
            before = abs(int(here[0]) - int(goal[0])) + abs(int(here[1]) - int(goal[1]))
            found.append((step, abs(there[0] - int(goal[0])) + abs(there[1] - int(goal[1])) < before))
    return found


def test_a_tool_answers_the_right_call_alone() -> None:
    lookup = ENVIRONMENTS["lookup"]
    assert lookup.reply is not None
    key = lookup.prompt(5).removeprefix("lookup ").removesuffix(":\n")
    word = lookup.reply(5, [f"get {key}"])
    assert word is not None
    assert lookup.check(5, f"get {key}\n{word.strip()}")
    assert not lookup.check(5, word.strip()), "a word that was not looked up is a guess"
    assert lookup.reply(5, [f"get {key} "]) is None
    assert lookup.reply(5, [f"get {key}", word.strip()]) is None


def test_a_stranger_s_answer_counts_only_if_it_is_right_here() -> None:
    reverse = ENVIRONMENTS["reverse"]
    right = solution(reverse, 3)
    assert is_verified(reverse, 1, 3, right)
    assert not is_verified(reverse, 2, 3, right), "another version asks something else"
    assert not is_verified(reverse, 1, 3, right + " ")
    assert not is_verified(reverse, 1, 8, solution(reverse, 8)), "held out"
    assert not is_verified(reverse, 1, INDICES + 1, right)
    assert not is_verified(reverse, 1, -5, right)


# -- the user's own


class Vowels:
    """Name a vowel."""

    def prompt(self, seed: int) -> str:
        return f"vowel {seed}:"

    def check(self, seed: int, answer: str) -> bool:
        if answer == "crash":
            raise ValueError(answer)
        return answer in set("aeiou")


def test_an_environment_of_the_user_is_a_class_on_this_machine() -> None:
    (own,) = environments_of((f"{__name__}:Vowels",)).values()
    assert (own.name, own.version, own.reply, own.doc) == ("vowels", 1, None, "Name a vowel.")
    assert is_right(own, 1, "a")
    with pytest.raises(LocalError, match="must bear any text"):
        is_right(own, 1, "crash")
    assert not is_verified(own, 1, 1, "crash"), "a stranger cannot end our training"
    assert list(environments_of(("reverse, sort", f"{__name__}:Vowels"))) == ["reverse", "sort", "vowels"]


@pytest.mark.parametrize(
    ("tasks", "says"),
    [
        (("revers",), "unknown task 'revers'; known: reverse, sort"),
        (("sort,reverse,sort",), "names an environment twice"),
        (("nowhere_at_all:Task",), "there is no class without arguments there"),
        ((f"{__name__}:Missing",), "there is no class without arguments there"),
        (("pathlib:Path",), "has no prompt and no check"),
    ],
)
def test_what_is_no_environment_is_refused(tasks: tuple[str, ...], says: str) -> None:
    with pytest.raises(LocalError, match=says):
        environments_of(tasks)
