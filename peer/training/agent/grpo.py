"""The trainer of agents: answers drawn from the model, judged, and the better ones made more probable (GRPO).

This is the trainer called ``grpo``; what a trainer is, ``trainers.py`` says. A step asks ``--own`` questions of our own
environments, ``--group`` times each, and learns besides from ``--external`` as many groups of others' verified answers
(``lessons.py``). What we hand out is our own right answers. Source: SAPO (arXiv 2509.08721) for own and external
shares; the rule for external ones is ours.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gossip.adapter import AdapterState
from gossip.errors import Diverged, LocalError
from gossip.events import TrainableFactors
from gossip.rollouts import Received, Rollout
from peer.config import PeerConfig
from peer.training import rates
from peer.training.adapted_model import AdaptedModel
from peer.training.agent import lessons
from peer.training.agent.advantages import group_advantages, objective, token_log_probabilities
from peer.training.agent.environment import HELD_OUT_EVERY, INDICES, Environment
from peer.training.agent.environments import ENVIRONMENTS, environments_of
from peer.training.agent.episodes import Episode, Player, Question
from peer.training.agent.lessons import Lessons
from peer.training.agent.refusals import check_agent
from peer.training.frames import Evaluated, OnStep, Progress, Ready, Step, Trained
from peer.training.local_steps import Shift, frozen_but
from peer.training.own_optimizer import OwnOptimizer
from peer.training.plain_steps import NON_FINITE_MAX
from peer.training.schedules import WHOLE_RUN, Position
from peer.training.trainers import Trainer

PUBLISHED_MAX = 96
"""Right answers handed out in a round, the latest. Source: so many of the longest fit into a publication."""

ASKED_AT_ONCE = 64
"""Held-out questions answered together. Source: guess; as many as a usual step."""

Worth = tuple[Episode, float]
"""An answer and its advantage."""


def make_trainer(config: PeerConfig, progress: Progress) -> Trainer:
    """Return the trainer of a peer that has a process to itself."""
    return AgentTrainer(config, progress=progress)


class AgentTrainer:
    """One peer's environments, generators and optimizer, on a model of its own or one lent to several peers.

    Args:
        config: settings of the peer.
        model: the model to train on; without one, its own is built from ``config``.
        progress: told of stages while a model is built.

    Raises:
        LocalError: the model or an environment does not exist, there is data, or a question is too long.
    """

    def __init__(
        self, config: PeerConfig, model: AdaptedModel | None = None, progress: Progress | None = None
    ):
        self.config = config = rates.with_rate(config)
        check_agent(config)
        self.environments = environments_of(config.agent.tasks)
        measured = environments_of(config.agent.eval_tasks)
        self._measured = {**measured, **self.environments}
        self._known = {**ENVIRONMENTS, **self._measured}
        self._eval_tasks = tuple(measured)
        if model is not None:
            model.check(config)
        self.model = model or AdaptedModel(config, progress)
        self.initial = self.model.initial
        self._player = Player(self.model.module, self.model.tokenizer, config.training.max_length)
        self._optimizer = OwnOptimizer(config, self.model)
        self._own = _generator(config, "own")
        self._lent = _generator(config, "lent")
        self._success: dict[str, float] = {}
        self._non_finite = 0

    def ready(self, seconds: float) -> Ready:
        """Return what the network process is told of us; see ``Trainer``."""
        return Ready(
            initial=self.initial,
            manifest=self.model.manifest,
            model_name=self.model.source.name,
            device=self.model.device,
            data_report="\n".join(
                f"{name}: {environment.doc}, such as {environment.prompt(1)!r}"
                for name, environment in self.environments.items()
            ),
            rows=0,  # without end
            rows_held_out=len(self.environments) * self.config.data.eval_blocks_max,
            sequences=self.config.agent.own * self.config.agent.group * self.config.training.local_steps,
            base_parameters=self.model.base_parameters,
            seconds=seconds,
            export=self.model.export,
        )

    def train(
        self,
        state: AdapterState,
        trainable: TrainableFactors = "all",
        correction: Tensor | None = None,
        on_step: OnStep | None = None,
        position: Position = WHOLE_RUN,
        rollouts: Sequence[Received] = (),
    ) -> Trained:
        """Take ``local_steps`` steps from ``state``; see ``Trainer``.

        Args:
            rollouts: what others have found; without ``--external`` nothing of it is even looked at.

        Returns:
            as loss, the share of our own answers that were wrong; as tokens, those that our agent or a lesson said.

        Raises:
            Diverged: the model's probabilities or the objective are no numbers any more.
            LocalError: the adapter has nothing of that part; an environment failed.
        """
        start, steps = time.monotonic(), self.config.training.local_steps
        trained = self._optimizer.selected(trainable)
        self.model.put(state)
        self._optimizer.begin_round()
        found: dict[tuple[str, int, str], Rollout] = {}
        wrong, answers, sequences, tokens = 0, 0, 0, 0
        with self._optimizer.own_generators(), frozen_but(trained, self.model.parameters):
            known = self._lessons(rollouts)
            shift = Shift(trained, state, correction, self.config.training.proximal)
            for step in range(1, steps + 1):
                self._optimizer.set_rate(self.config.training.learning_rate, position, step - 1)
                batch, right, asked = self._practiced(found)
                batch += known.drawn(self.config.agent.external * self.config.agent.group, self._lent)
                self._learn(batch, shift)
                said = sum(sum(episode.said) for episode, _ in batch)
                wrong, answers = wrong + asked - right, answers + asked
                sequences, tokens = sequences + len(batch), tokens + said
                if on_step is not None:
                    on_step(Step(step, steps, 1 - right / asked, said))
        return Trained(
            self.model.state(),
            wrong / answers,
            steps,
            sequences,
            tokens,
            time.monotonic() - start,
            rollouts=tuple(found.values())[-PUBLISHED_MAX:],
        )

    def _lessons(self, received: Sequence[Received]) -> Lessons:
        """Verify what others have found, and measure how much of it we need."""
        if not self.config.agent.external:
            return Lessons((), {})
        checked = lessons.verified(received, self._known, self._player)
        self.model.module.eval()
        questions = [question for question, _ in checked]
        measured = lessons.measured_success(questions, self._player, self._lent)
        self._success = lessons.smoothed(self._success, measured)
        return Lessons([lesson for _, lesson in checked], self._success)

    def _practiced(self, found: dict[tuple[str, int, str], Rollout]) -> tuple[list[Worth], int, int]:
        """Answer some questions in groups; note right answers; return all with their advantages, how many were right,
        and how many there are.
        """
        agent = self.config.agent
        self.model.module.eval()
        asked = [question for question in self._questions() for _ in range(agent.group)]
        episodes = self._player.played(asked, self._own)
        right = self._player.judged(asked, episodes)
        worth: list[float] = []
        for first in range(0, len(asked), agent.group):
            worth += group_advantages([float(hit) for hit in right[first : first + agent.group]])
        for (environment, index), episode, hit in zip(asked, episodes, right, strict=True):
            if hit:
                one = Rollout(environment.name, environment.version, index, episode.answer)
                found.setdefault((one.task, one.index, one.answer), one)
        return list(zip(episodes, worth, strict=True)), sum(right), len(asked)

    def _questions(self) -> list[Question]:
        """Draw the questions of a step: of each environment as many as of any other, but for what does not divide."""
        own, known = self.config.agent.own, list(self.environments.values())
        first = int(torch.randint(len(known), (), generator=self._own))
        block, place = (
            torch.randint(high, (own,), generator=self._own).tolist()
            for high in (INDICES // HELD_OUT_EVERY, HELD_OUT_EVERY - 1)
        )
        return [
            Question(known[(first + turn) % len(known)], HELD_OUT_EVERY * block[turn] + place[turn] + 1)
            for turn in range(own)
        ]

    def _learn(self, batch: Sequence[Worth], shift: Shift) -> None:
        """Take one optimizer step, or as many as ``--updates`` says, on the same answers.

        Answers without an advantage teach nothing and are left out; where none has one, only the correction is added.
        """
        total = sum(sum(episode.said) for episode, _ in batch)
        batch = [(episode, worth) for episode, worth in batch if worth]
        self.model.module.train()
        before: Tensor | None = None
        for _ in range(self.config.agent.updates):
            if batch:
                before = self._update(batch, total, before, shift)
            shift.add_correction()

    def _update(self, batch: Sequence[Worth], total: int, before: Tensor | None, shift: Shift) -> Tensor:
        """Take one optimizer step; return the log-probabilities before the first one on these answers."""
        longest = max(len(episode.tokens) for episode, _ in batch)
        pad = self.model.tokenizer.pad_token_id or 0

        def padded(of: Sequence[Sequence[int]], filler: int) -> Tensor:
            rows = [[*row, *[filler] * (longest - len(row))] for row in of]
            return torch.tensor(rows, device=self.model.device)

        tokens = padded([episode.tokens for episode, _ in batch], pad)
        mask = padded([[1] * len(episode.tokens) for episode, _ in batch], 0)
        counts = padded([episode.said for episode, _ in batch], 0)[:, 1:].bool()
        worth = torch.tensor([worth for _, worth in batch], device=self.model.device)
        logits = self.model.module(input_ids=tokens, attention_mask=mask).logits
        now = token_log_probabilities(logits, tokens)
        before = now.detach() if before is None else before
        loss = objective(now, before, worth, counts, total)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        shift.pull_back()
        norm = torch.nn.utils.clip_grad_norm_(shift.trained.values(), self.config.training.max_grad_norm)
        if math.isfinite(loss.item()) and math.isfinite(norm.item()):
            self._optimizer.torch.step()
            self._non_finite = 0
        else:
            self._non_finite += 1
        self._optimizer.torch.zero_grad(set_to_none=True)
        if self._non_finite == NON_FINITE_MAX:
            raise Diverged(
                f"objective {loss.item()}, gradient norm {norm.item()}: not finite for {NON_FINITE_MAX} steps in a "
                "row. Lower learning_rate, or train in float32."
            )
        return before

    def evaluate(self, state: AdapterState) -> Evaluated:
        """Return the shares of held-out questions that ``state`` answers wrong, its most probable tokens being its
        answer; and right, as accuracy.
        """
        right = {
            name: self._accuracy(state, {name: environment}, self.config.data.eval_blocks_max)
            for name, environment in self._measured.items()
        }
        own = _mean([right[name] for name in self.environments])
        everything = _mean(list(right.values()))
        others = {name: right[name] for name in self._eval_tasks}
        if not others:
            return Evaluated(1 - own, None, {}, own)
        wrong = {name: 1 - rate for name, rate in others.items()}
        return Evaluated(1 - own, 1 - everything, wrong, own, everything, others)

    def probe(self, state: AdapterState, rows: int) -> float:
        """Return the share of wrong answers to so many of our held-out questions; see ``Trainer``."""
        each = min(self.config.data.eval_blocks_max, math.ceil(rows / len(self.environments)))
        return 1 - self._accuracy(state, self.environments, each)

    def _accuracy(self, state: AdapterState, environments: dict[str, Environment], each: int) -> float:
        """Return the share of the first ``each`` held-out questions of environments that are answered right."""
        self.model.put(state)
        self.model.module.eval()
        questions = [
            Question(environment, HELD_OUT_EVERY * number)
            for number in range(each)
            for environment in environments.values()
        ]
        right = 0
        for first in range(0, len(questions), ASKED_AT_ONCE):
            some = questions[first : first + ASKED_AT_ONCE]
            right += sum(self._player.judged(some, self._player.played(some, None)))
        return right / len(questions)

    def save(self, path: Path) -> None:
        """Write all that ``train`` goes on from; see ``Trainer``."""
        written: dict[str, Any] = {
            "trainer": "grpo",
            "success": self._success,
            "non_finite": self._non_finite,
        }
        self._optimizer.save(path, written, {"own": self._own.get_state(), "lent": self._lent.get_state()})

    def load(self, path: Path) -> None:
        """Continue where ``save`` was called; see ``Trainer``."""
        written, tensors = self._optimizer.read(path)
        if written.get("trainer") != "grpo":
            raise LocalError(
                f"cannot resume from {path}: another trainer wrote it. Start anew with another --home."
            )
        self._success, self._non_finite = written["success"], written["non_finite"]
        self._own.set_state(tensors["own"])
        self._lent.set_state(tensors["lent"])
        self._optimizer.restore(tensors)


def _generator(config: PeerConfig, what: str) -> torch.Generator:
    """Return a generator that no other peer of the run has: else all would ask the same questions."""
    text = f"{config.run.seed} {config.network.name} {config.run.home} {what}"
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
