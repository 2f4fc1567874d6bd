"""Learning by trial: advantages against plain sums, answers of others only where right and needed, exact laws."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossip.adapter import AdapterState
from gossip.errors import LocalError
from gossip.rollouts import Received, Rollout, encode
from peer.config import PeerConfig
from peer.inputs import check_inputs
from peer.run_manifest import join_line
from peer.run_plan import plan_run
from peer.training.adapted_model import AdaptedModel
from peer.training.agent import lessons
from peer.training.agent.advantages import (
    ADVANTAGE_MAX,
    group_advantages,
    need,
    objective,
    received_advantage,
    token_log_probabilities,
)
from peer.training.agent.environment import HELD_OUT_EVERY, Environment
from peer.training.agent.environments import ENVIRONMENTS
from peer.training.agent.episodes import Player, Question
from peer.training.agent.grpo import PUBLISHED_MAX, AgentTrainer
from peer.training.agent.lessons import Lesson, Lessons
from peer.training.agent.strings import STRINGS, solution

Configure = Callable[..., PeerConfig]
REVERSE = ENVIRONMENTS["reverse"]


# -- what an answer is worth


@given(st.lists(st.integers(0, 1), min_size=2, max_size=16))
def test_advantages_of_a_group_are_its_standard_scores(rewards: list[int]) -> None:
    found = group_advantages([float(reward) for reward in rewards])
    if len(set(rewards)) == 1:
        assert found == [0.0] * len(rewards)
        return
    mean, deviation = statistics.fmean(rewards), statistics.pstdev(rewards)
    assert found == pytest.approx([(reward - mean) / deviation for reward in rewards])
    assert sum(found) == pytest.approx(0, abs=1e-9)


@given(st.integers(1, 64), st.integers(0, 64))
def test_another_s_answer_is_worth_what_our_own_right_one_would_be_in_such_a_group(
    size: int, right: int
) -> None:
    right = min(right, size)
    worth = received_advantage(right / size)
    if 0 < right < size:
        own = max(group_advantages([1.0] * right + [0.0] * (size - right)))
        assert worth == pytest.approx(min(own, ADVANTAGE_MAX))
    else:
        assert worth == (0.0 if right else ADVANTAGE_MAX)
    assert need(right / size) == pytest.approx(1.02 - right / size)


def test_the_objective_in_a_first_step_is_the_policy_gradient() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 7, generator=draw, requires_grad=True)
    tokens = torch.randint(7, (3, 5), generator=draw)
    worth, counts = torch.tensor([1.5, -0.5, 0.0]), torch.tensor([[False, True, True, False]] * 3)
    now = token_log_probabilities(logits, tokens)
    assert now[1, 2].item() == pytest.approx(
        math.log(logits[1, 2].softmax(-1)[tokens[1, 3]].item()), abs=1e-6
    )
    (clipped,) = torch.autograd.grad(
        objective(now, now.detach(), worth, counts, 6), logits, retain_graph=True
    )
    (plain,) = torch.autograd.grad(-(now * counts * worth[:, None]).sum() / 6, logits)
    torch.testing.assert_close(clipped, plain)


@pytest.mark.parametrize(
    ("ratio", "worth", "moves"), [(1.27, 1, True), (1.29, 1, False), (0.81, -1, True), (0.79, -1, False)]
)
def test_beyond_the_bounds_nothing_is_gained(ratio: float, worth: float, moves: bool) -> None:
    now = torch.tensor([[math.log(ratio)]], requires_grad=True)
    loss = objective(now, torch.zeros(1, 1), torch.tensor([worth]), torch.ones(1, 1, dtype=torch.bool), 1)
    (gradient,) = torch.autograd.grad(loss, now)
    assert (gradient.abs().item() > 0) == moves


# -- the trainer


@pytest.fixture
def configure(quick: Configure, half_taught: Path) -> Configure:
    """Return what makes a configuration of an agent that counts letters right now and then."""
    settings = {
        "task": "agent",
        "tasks": ("count",),
        "data": (),
        "model": str(half_taught),
        "learning_rate": 1e-3,
        "local_steps": 2,
        "max_length": 32,
        "eval_blocks_max": 8,
    }
    return lambda **options: quick(**{**settings, **options})


def answers(count: int, *, right: bool, sender: str = "them", round: int = 0) -> list[Received]:
    """Return answers to questions that are trained on."""
    task = ENVIRONMENTS["count"]
    indices = [HELD_OUT_EVERY * number + 1 for number in range(count)]
    said = [solution(task, index) for index in indices]
    return [
        Received(sender, round, Rollout("count", 1, index, text if right else text + "!"))
        for index, text in zip(indices, said, strict=True)
    ]


def digest_after(config: PeerConfig, rounds: Sequence[Sequence[Received]], model: AdaptedModel) -> str:
    trainer = AgentTrainer(config, model)
    state = trainer.initial
    for received in rounds:
        state = trainer.train(state, rollouts=received).state
    return state.digest()


def test_without_external_answers_it_is_local_training_to_the_bit(configure: Configure) -> None:
    alone = configure(external=0)
    model = AdaptedModel(alone)
    expected = digest_after(alone, [(), ()], model)
    assert digest_after(alone, [answers(9, right=True), answers(20, right=False)], model) == expected
    assert digest_after(configure(external=3), [(), ()], model) == expected, "where nobody says anything, too"
    with_others = digest_after(configure(external=3), [answers(9, right=True), ()], model)
    assert with_others != expected, "right answers do teach"


def test_what_is_not_right_here_changes_no_bit(configure: Configure) -> None:
    config = configure(external=3)
    model = AdaptedModel(config)
    right = answers(9, right=True)
    junk = [
        *answers(30, right=False, sender="liar"),
        Received("liar", 0, Rollout("count", 2, 1, right[0].rollout.answer)),
        Received("liar", 0, Rollout("no such task", 1, 1, "1")),
        Received(
            "liar", 0, Rollout("count", 1, HELD_OUT_EVERY, solution(ENVIRONMENTS["count"], HELD_OUT_EVERY))
        ),
        Received("liar", 0, Rollout("count", 1, 2**53 - 1, "0")),
        Received("liar", 0, Rollout("sum", 1, 1, "__import__('os').abort()")),
        Received("liar", 0, right[3].rollout),  # a copy of what somebody else said first
    ]
    mixed = [*right[:4], *junk, *right[4:]]
    assert digest_after(config, [mixed], model) == digest_after(config, [right], model)
    assert digest_after(config, [junk[:-1]], model) == digest_after(config, [()], model)


def test_it_hands_out_its_right_answers_once_each(configure: Configure) -> None:
    trainer = AgentTrainer(configure(own=8, local_steps=4))
    said = trainer.train(trainer.initial).rollouts
    assert 0 < len(said) <= PUBLISHED_MAX
    assert len(set(said)) == len(said)
    for task, version, index, answer in said:
        assert (task, version) == ("count", 1)
        assert index % HELD_OUT_EVERY
        assert answer == solution(ENVIRONMENTS[task], index)
    encode(said)


def test_peers_of_a_run_ask_different_questions(configure: Configure) -> None:
    model = AdaptedModel(configure())
    asked = [
        [question.number for question in AgentTrainer(configure(name=name), model)._questions()]
        for name in ("a", "b", "a")
    ]
    assert asked[0] == asked[2] != asked[1]
    assert all(number % HELD_OUT_EVERY for number in asked[0])


def test_several_updates_go_on_from_the_same_answers(configure: Configure) -> None:
    once, twice = AgentTrainer(configure(local_steps=1)), AgentTrainer(configure(local_steps=1, updates=2))
    first, second = once.train(once.initial), twice.train(twice.initial)
    assert first.rollouts == second.rollouts
    assert first.tokens == second.tokens
    moved = [(trained.state.flat - once.initial.flat).norm() for trained in (first, second)]
    assert moved[1] > 1.2 * moved[0] > 0


def test_what_was_learned_of_need_is_resumed(configure: Configure, tmp_path: Path) -> None:
    config = configure(external=3)
    model = AdaptedModel(config)
    trainer = AgentTrainer(config, model)
    first = trainer.train(trainer.initial, rollouts=answers(9, right=True)).state
    trainer.save(tmp_path / "trainer")
    resumed = AgentTrainer(config, model)
    resumed.load(tmp_path / "trainer")
    later = answers(20, right=True, round=1)
    expected = trainer.train(first, rollouts=later)
    again = resumed.train(first, rollouts=later)
    assert again.state.digest() == expected.state.digest()
    assert again.rollouts == expected.rollouts


# -- drawing by need


def test_the_needed_are_drawn_and_at_most_as_many_as_there_are(configure: Configure) -> None:
    player = AgentTrainer(configure())._player
    episodes = {}
    for environment in STRINGS[:2]:
        episode = player.written(Question(environment, 1), solution(environment, 1))
        assert episode is not None
        episodes[environment.name] = episode
    pool = [Lesson(name, episode) for name, episode in episodes.items() for _ in range(40)]
    known = Lessons(pool, {"reverse": 1.0, "sort": 0.25})
    generator = torch.Generator().manual_seed(0)
    drawn = known.drawn(20, generator)
    worths = [worth for _, worth in drawn]
    assert len(drawn) == 20
    assert worths.count(pytest.approx(math.sqrt(3))) >= 17
    assert set(worths) <= {0.0, math.sqrt(3.0)}
    assert len(known.drawn(1000, generator)) == 80
    assert Lessons([], {}).drawn(5, generator) == []


def test_only_the_latest_are_kept(configure: Configure) -> None:
    player = AgentTrainer(configure())._player
    received = answers(lessons.KEPT + 20, right=True)
    kept = lessons.verified(received, ENVIRONMENTS, player)
    assert [question.number for question, _ in kept] == [
        one.rollout.index for one in received[-lessons.KEPT :]
    ]


def test_need_follows_what_we_can_do(configure: Configure) -> None:
    trainer = AgentTrainer(configure())
    asked = [Question(ENVIRONMENTS[task], index) for task in ("count", "shift") for index in range(1, 8)]
    trainer.model.module.eval()
    measured = lessons.measured_success(asked, trainer._player, torch.Generator().manual_seed(0))
    assert measured["shift"] == 0.0, "never taught"
    assert 0 < measured["count"] <= 1
    assert lessons.smoothed({"shift": 0.5, "sort": 1.0}, {"shift": 0.0, "count": 0.25}) == {
        "shift": 0.25,
        "sort": 1.0,
        "count": 0.25,
    }


# -- episodes


@pytest.mark.parametrize("environment", ENVIRONMENTS.values(), ids=lambda one: one.name)
def test_an_episode_that_is_written_down_is_the_one_that_was_played(
    configure: Configure, environment: Environment
) -> None:
    """Played by a model that knows the answer, token by token."""
    index = 1
    answer = {"grid": _walk, "lookup": _look_up}.get(environment.name, solution_of)(environment, index)
    assert environment.check(index, answer)
    model = AdaptedModel(configure())
    player = Player(model.module, model.tokenizer, 64)
    written = player.written(Question(environment, index), answer)
    assert written is not None
    spoken = Player(_Recital(written.tokens), model.tokenizer, 64).played(
        [Question(environment, index)], None
    )
    assert spoken == [written]
    assert player.written(Question(environment, index), "u\n" * 40) is None, "too long"
    said = [token for token, own in zip(written.tokens, written.said, strict=True) if own]
    ends = "\n" if environment.reply else ""
    assert model.tokenizer.decode(said).replace("<end>", "") == answer + ends


class _Recital(torch.nn.Module):
    """A model that says a text by heart, with the signature of one of transformers."""

    def __init__(self, tokens: Sequence[int]):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self._tokens = tokens

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, **_: object) -> _Said:
        following = [
            self._tokens[min(place + 1, len(self._tokens) - 1)] for place in position_ids[0].tolist()
        ]
        return _Said(torch.nn.functional.one_hot(torch.tensor([following]), 258).float())


class _Said:
    past_key_values = None

    def __init__(self, logits: torch.Tensor):
        self.logits = logits


def solution_of(environment: Environment, index: int) -> str:
    return solution(environment, index)


def _walk(grid: Environment, index: int) -> str:
    """Search all walks of up to six moves."""
    walks = [""]
    for walk in walks:
        turns = walk.split("\n") if walk else []
        if turns and grid.check(index, walk):
            return walk
        if len(turns) < 6:
            walks += ["\n".join([*turns, step]) for step in "udlr"]
    raise AssertionError("no way")


def _look_up(lookup: Environment, index: int) -> str:
    call = f"get {lookup.prompt(index).removeprefix('lookup ')[0]}"
    assert lookup.reply is not None
    return f"{call}\n{(lookup.reply(index, [call]) or '').strip()}"


# -- what goes together


def test_an_agent_needs_no_data_and_tells_friends_of_tasks(configure: Configure) -> None:
    config = configure()
    check_inputs(config)
    assert plan_run(config).config.agent.tasks == ("count",)
    line = join_line(config, ("/ip4/1.2.3.4/tcp/5/p2p/x",))
    assert "--tasks THEIR,TASKS" in line
    assert "--task agent" in line
    assert "--data" not in line


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tasks": ()}, "needs --tasks"),
        ({"tasks": ("rewind",)}, "unknown task 'rewind'"),
        ({"data": (Path("text.txt"),)}, "not from text.txt"),
        ({"adapter": "prompt-tuning"}, "use lora"),
        ({"dp_epsilon": 8.0}, "an agent has none"),
        ({"audit": True}, "an agent has none"),
        ({"task": "causal-lm", "data": (Path("text.txt"),)}, "for --task agent alone"),
    ],
)
def test_what_does_not_go_together_is_refused(
    configure: Configure, options: dict[str, object], says: str
) -> None:
    with pytest.raises(LocalError, match=says):
        plan_run(configure(**options))


def test_a_question_must_leave_room_for_an_answer(configure: Configure) -> None:
    trainer = AgentTrainer(configure(max_length=8))
    with pytest.raises(LocalError, match="must leave room"):
        trainer.train(trainer.initial)


def test_values_that_are_no_numbers_end_it(configure: Configure) -> None:
    trainer = AgentTrainer(configure())
    broken = AdapterState(trainer.initial.spec, torch.full_like(trainer.initial.flat, torch.nan))
    with pytest.raises(LocalError, match="learning_rate"):
        trainer.train(broken)
