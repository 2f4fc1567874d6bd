"""One run of one method of learning together by trial: four agents in one process, on one model in memory.

Trainer, judges, wire form and buffer of answers are the program's own; only the network is left out: everybody reads
everybody after each round. Everything is seeded: the same trial gives the same numbers on one machine.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from gossip import rollouts as wire
from gossip.adapter import AdapterState
from gossip.rollouts import Buffer, Rollout
from peer.config import PeerConfig
from peer.training.adapted_model import AdaptedModel
from peer.training.agent import novice
from peer.training.agent.environment import HELD_OUT_EVERY, is_verified
from peer.training.agent.environments import ENVIRONMENTS
from peer.training.agent.grpo import AgentTrainer
from peer.training.frames import Evaluated
from peer.training.schedules import Position

FAMILIES = novice.TAUGHT
"""An agent for each; of the setting ``one``, each practices its own alone."""

HOSTILE = 3
"""Which agent lies, where one does."""

Setting = Literal["all", "one"]
Method = Literal["isolated", "own-replay", "rollouts", "weights", "both", "central", "hostile", "without-one"]
METHODS: tuple[Method, ...] = (
    "isolated",
    "own-replay",
    "rollouts",
    "weights",
    "both",
    "central",
    "hostile",
    "without-one",
)
"""``own-replay``: the control, in which each reads its own answers alone; ``hostile``: rollouts, and the last agent
publishes junk; ``without-one``: rollouts among the others, the last agent publishing nothing."""

WARMUP_STEPS = 15
"""Source: our trials, central, one seed: 0.586 with it, a falling rate and 4e-4, 0.523 at a constant 2e-4."""

SHARES_ANSWERS = ("own-replay", "rollouts", "both", "hostile", "without-one")
SHARES_WEIGHTS = ("weights", "both")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What to run.

    Attributes:
        setting: whether each practices all families, or one of its own.
        method: what is shared.
        seed: of the base model and of all draws.
        rounds, local_steps, learning_rate: of training.
        own, external: groups a step, where answers are shared; else all groups are own.
        taught_steps: how much the base model has been taught.
    """

    setting: Setting
    method: Method
    seed: int = 0
    rounds: int = 15
    local_steps: int = 10
    learning_rate: float = 4e-4
    own: int = 4
    external: int = 4
    taught_steps: int = novice.STEPS


class Outcome(NamedTuple):
    """What came of it; accuracies are of greedy answers to held-out questions, 0 to 1, means over honest agents.

    Attributes:
        start, all: over all families, before and after.
        own: over an agent's own families, after.
        read_bytes: what an agent read, the mean.
        dropped: answers that were received and were wrong, all agents together.
        seconds: of processor time.
    """

    start: float
    all: float
    own: float
    read_bytes: float
    dropped: int
    seconds: float


@dataclass(slots=True)
class _Agent:
    name: str
    trainer: AgentTrainer
    state: AdapterState
    buffer: Buffer = field(default_factory=Buffer)
    read_bytes: int = 0
    dropped: int = 0


def base_of(trial: Trial, folder: Path) -> Path:
    """Return the base model of a trial's seed, made if it is not there yet."""
    path = folder / f"novice-{trial.seed}-{trial.taught_steps}"
    if not (path / "config.json").exists():
        path.mkdir(parents=True, exist_ok=True)
        novice.teach(path, lambda stage, done: None, FAMILIES, trial.taught_steps, trial.seed)
    return path


def run_trial(trial: Trial, folder: Path, eval_each: int = 64) -> Outcome:
    """Run it.

    Args:
        folder: where base models are kept.
        eval_each: held-out questions a family.
    """
    started = time.process_time()
    configs = _configs(trial, base_of(trial, folder), eval_each)
    model = AdaptedModel(next(iter(configs.values())))
    agents = [_Agent(name, AgentTrainer(config, model), model.initial) for name, config in configs.items()]
    start = agents[0].trainer.evaluate(model.initial)
    for round in range(trial.rounds):
        _round(trial, agents, round)
    honest = agents[:HOSTILE] if trial.method in ("hostile", "without-one") else agents
    ends = [agent.trainer.evaluate(agent.state) for agent in honest]
    return Outcome(
        start=_over_families(start),
        all=_mean([_over_families(end) for end in ends]),
        own=_mean([end.accuracy or 0.0 for end in ends]),
        read_bytes=_mean([agent.read_bytes for agent in honest]),
        dropped=sum(agent.dropped for agent in agents),
        seconds=time.process_time() - started,
    )


def _configs(trial: Trial, base: Path, eval_each: int) -> Mapping[str, PeerConfig]:
    """Return the settings of each agent, by name."""
    shares = trial.method in SHARES_ANSWERS
    groups = trial.own if shares else trial.own + trial.external
    common = PeerConfig.of(
        task="agent",
        model=str(base),
        adapter="full",
        device="cpu",
        threads=1,
        seed=trial.seed,
        rounds=trial.rounds,
        local_steps=trial.local_steps,
        learning_rate=trial.learning_rate,
        schedule="linear",
        warmup_steps=min(WARMUP_STEPS, trial.rounds * trial.local_steps // 2),
        max_length=32,
        eval_blocks_max=eval_each,
        eval_tasks=FAMILIES,
        own=groups,
        external=trial.external if shares else 0,
    )
    if trial.method == "central":
        return {"central": common.with_options(tasks=FAMILIES, own=groups * len(FAMILIES), name="central")}
    return {
        family: common.with_options(tasks=FAMILIES if trial.setting == "all" else (family,), name=family)
        for family in FAMILIES
    }


def _round(trial: Trial, agents: Sequence[_Agent], round: int) -> None:
    """Let all take a round's steps, then read one another."""
    published = []
    for place, agent in enumerate(agents):
        agent.buffer = wire.fresh(agent.buffer, round)
        trained = agent.trainer.train(
            agent.state, position=Position(round, trial.rounds), rollouts=agent.buffer.usable()
        )
        agent.state = trained.state
        published.append(wire.encode(_said(trial, place, trained.rollouts)))
    if trial.method in SHARES_ANSWERS:
        for place, agent in enumerate(agents):
            for other, payload in enumerate(published):
                if (other == place) == (trial.method == "own-replay"):
                    _read(agent, agents[other].name, round, payload)
    if trial.method in SHARES_WEIGHTS:
        mean = torch.stack([agent.state.flat for agent in agents]).mean(dim=0)
        for agent in agents:
            agent.state = AdapterState(agent.state.spec, mean.clone())
            agent.read_bytes += 4 * agent.state.spec.size * (len(agents) - 1)


def _said(trial: Trial, place: int, honest: Sequence[Rollout]) -> Sequence[Rollout]:
    """Return what an agent publishes: what it found, nothing, or answers of nobody to questions of all families."""
    if place != HOSTILE or trial.method not in ("hostile", "without-one"):
        return honest
    if trial.method == "without-one":
        return ()
    return [
        Rollout(family, 1, HELD_OUT_EVERY * number + 1, "aaaa") for number in range(24) for family in FAMILIES
    ]


def _read(agent: _Agent, sender: str, round: int, payload: bytes) -> None:
    agent.read_bytes += len(payload)
    rollouts = wire.decode(payload)
    agent.dropped += sum(
        not is_verified(ENVIRONMENTS[task], version, index, answer)
        for task, version, index, answer in rollouts
    )
    agent.buffer = wire.add(agent.buffer, sender, round, rollouts)


def _over_families(evaluated: Evaluated) -> float:
    return _mean([evaluated.accuracy_per_file[family] for family in FAMILIES])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
