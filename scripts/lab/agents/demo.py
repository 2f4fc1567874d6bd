"""Four agents with a skill each, as real processes: alone, sharing answers, weights or both, and one with all skills.

    python scripts/testnet.py --task agent

Every regime is a ``peer run`` with other flags and takes as many optimizer steps on as many answers; the central one
practices all skills, with as many answers a step as all four together.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from peer.config import OPTIONS
from peer.journal_words import megabytes
from scripts.lab.figures import new_figure, png
from scripts.lab.testnet.config import TestnetConfig
from scripts.lab.testnet.plan import ANY_PORT, PlannedPeer, gives, meeting
from scripts.lab.testnet.run import reason_of, run_processes
from scripts.lab.testnet.view import PeerView, Watch

if TYPE_CHECKING:
    from rich.console import Console

SKILLS = ("reverse", "sort", "shift", "swap")
"""An agent for each; the base model ``novice`` has been taught a little of all."""

GROUPS = 8
"""Questions an agent answers in groups a step, others' answers included; half of them where answers are shared."""

BASE: Mapping[str, object] = {
    "task": "agent",
    "model": "novice",
    "adapter": "full",
    "threads": 1,
    "rounds": 12,
    "local_steps": 10,
    "learning_rate": 4e-4,
    "schedule": "linear",
    "warmup_steps": 15,
    "max_length": 32,
    "eval_every": 3,
    "eval_blocks_max": 64,
    "topology": "complete",
}
"""Flags of every process. Source: our trials (scripts/lab/agents), one seed."""

REGIMES: Mapping[str, Mapping[str, object]] = {
    "isolated": {"own": GROUPS, "external": 0},
    "rollouts": {"own": GROUPS // 2, "external": GROUPS // 2, "share": "rollouts"},
    "weights": {"own": GROUPS, "external": 0, "share": "weights", "check_rows": 64},
    "both": {"own": GROUPS // 2, "external": GROUPS // 2, "share": "both", "check_rows": 64},
    "central": {"own": GROUPS * len(SKILLS), "external": 0},
}
"""What is shared, and the flags for it."""

ASKED = 16
"""Of so many held-out questions of each skill, the first is shown that regimes answer differently; most are answered
alike by all, right or wrong. Source: ours."""


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """How a regime ended; accuracies are means over its agents, 0 to 1.

    Attributes:
        all: over all skills.
        own: over an agent's own skill; of the central one, over all.
        others: over the other agents' skills; None of the central one.
        read_bytes: what an agent read.
        curve: accuracy over all skills by rounds.
        seconds: wall time.
    """

    regime: str
    all: float
    own: float
    others: float | None
    read_bytes: float
    curve: tuple[tuple[int, float], ...]
    seconds: float


def launch_agents(config: TestnetConfig) -> None:
    """Run all regimes; print the table and a transcript, write picture and numbers."""
    from rich.console import Console

    from scripts.lab.testnet.screen import prepare_model, watching

    console = Console()
    started = time.monotonic()
    config.out.mkdir(parents=True, exist_ok=True)
    prepare_model(dataclasses.replace(config, model="novice"), console)
    views: dict[str, list[PeerView]] = {}
    results = []
    with watching(console) as watch:
        for regime in REGIMES:
            begun = time.monotonic()
            views[regime] = _run(plan(config, regime), watch)
            results.append(result_of(regime, views[regime], time.monotonic() - begun))
    base = views["isolated"][0].evaluations[0].accuracy_all or 0.0
    shown = transcript(config.out)
    record: dict[str, Any] = {
        "base": base,
        "results": [dataclasses.asdict(result) for result in results],
        "transcript": shown,
    }
    (config.out / "summary.json").write_text(json.dumps(record, indent=2) + "\n")
    (config.out / "curves.png").write_bytes(picture(base, results))
    print_results(base, results, shown, console)
    console.print(f"curves in {config.out / 'curves.png'}, numbers in {config.out / 'summary.json'}")
    console.print(f"took {time.monotonic() - started:.0f} s")


def plan(config: TestnetConfig, regime: str) -> list[PlannedPeer]:
    """Return the processes of a regime; makes the homes and identities of those that must find each other."""
    folder = config.out / regime
    if regime == "central":
        flags = _flags(config, regime, ",".join(SKILLS))
        return [PlannedPeer("central", regime, folder / "central", (*flags, *ANY_PORT))]
    each = {skill: _flags(config, regime, skill) for skill in SKILLS}
    if regime == "isolated":
        return [
            PlannedPeer(skill, regime, folder / skill, (*flags, *ANY_PORT)) for skill, flags in each.items()
        ]
    return meeting(regime, folder, each, is_open=gives(config.options, "open"))


def _flags(config: TestnetConfig, regime: str, tasks: str) -> list[str]:
    options: dict[str, object] = {**BASE, **REGIMES[regime], "seed": config.seed, "tasks": tasks}
    options["eval_tasks"] = ",".join(SKILLS)
    if config.rounds is not None:
        options["rounds"] = config.rounds
    words = [
        word
        for name, value in options.items()
        if not gives(config.options, name)
        for word in (OPTIONS[name].flag, str(value))
    ]
    return [*words, *config.options]


def _run(planned: Sequence[PlannedPeer], watch: Watch) -> list[PeerView]:
    try:
        return trio.run(run_processes, planned, len(SKILLS), watch)
    except BaseExceptionGroup as group:
        raise reason_of(group) from None


def result_of(regime: str, views: Sequence[PeerView], seconds: float) -> Result:
    """Return how a regime ended, from what its processes told."""
    ends = [view.evaluations[-1] for view in views]
    own = _mean([end.accuracy or 0.0 for end in ends])
    over_all = _mean([end.accuracy_all or 0.0 for end in ends])
    measured = zip(*(view.evaluations for view in views), strict=True)
    return Result(
        regime=regime,
        all=over_all,
        own=own,
        others=(len(SKILLS) * over_all - own) / (len(SKILLS) - 1) if len(views) > 1 else None,
        read_bytes=_mean([view.round.bytes_in if view.round else 0.0 for view in views]),
        curve=tuple(
            (points[0].round, _mean([point.accuracy_all or 0.0 for point in points])) for points in measured
        ),
        seconds=round(seconds, 1),
    )


def transcript(out: Path) -> list[dict[str, str]]:
    """Return, for one question of each skill, the answers of the base model and of the agent ``reverse`` of regimes."""
    from peer.training import base_models
    from peer.training.agent.environment import HELD_OUT_EVERY
    from peer.training.agent.environments import ENVIRONMENTS
    from peer.training.agent.episodes import Player, Question
    from peer.training.inference import load_adapter, load_model

    players = {"base": load_model(base_models.resolve("novice").folder, ())}
    players |= {
        regime: load_adapter(out / regime / SKILLS[0] / "adapter")
        for regime in REGIMES
        if regime != "central"
    }
    asked = [
        Question(ENVIRONMENTS[skill], HELD_OUT_EVERY * number) for skill in SKILLS for number in range(ASKED)
    ]
    rows = [{"question": question.environment.prompt(question.number)} for question in asked]
    for name, (model, tokenizer) in players.items():
        player = Player(model, tokenizer, int(str(BASE["max_length"])))
        episodes = player.played(asked, None)
        for row, episode, right in zip(rows, episodes, player.judged(asked, episodes), strict=True):
            row[name] = f"{episode.answer} {'right' if right else 'wrong'}"
    of_skills = [rows[first : first + ASKED] for first in range(0, len(rows), ASKED)]
    return [_telling(of_skill) for of_skill in of_skills]


def _telling(rows: Sequence[dict[str, str]]) -> dict[str, str]:
    """Return the first question that is answered right by some and wrong by others; the first if there is none."""

    def divides(row: dict[str, str]) -> bool:
        answers = [answer for name, answer in row.items() if name != "question"]
        return len({answer.endswith("right") for answer in answers}) > 1

    return next(filter(divides, rows), rows[0])


def print_results(
    base: float, results: Sequence[Result], shown: Sequence[Mapping[str, str]], console: Console
) -> None:
    """Print the table and the transcript."""
    from rich.table import Table

    title = f"right answers to held-out questions (base model: {base:.1%})"
    table = Table(title=title, title_justify="left")
    for column in ("", "all skills", "own skill", "others' skills", "read by an agent", "seconds"):
        table.add_column(column, justify="left" if not column else "right")
    for result in results:
        others = "" if result.others is None else f"{result.others:.1%}"
        read = megabytes(round(result.read_bytes))
        table.add_row(
            result.regime, f"{result.all:.1%}", f"{result.own:.1%}", others, read, f"{result.seconds:.0f}"
        )
    console.print(table)
    title = f"what the agent {SKILLS[0]} answers: of each skill, the first question on which it differs"
    answers = Table(title=title, title_justify="left")
    for column in shown[0]:
        answers.add_column(column)
    for row in shown:
        answers.add_row(*row.values())
    console.print(answers)


def picture(base: float, results: Sequence[Result]) -> bytes:
    """Return a PNG: accuracy over all skills by rounds."""
    figure, (ax,) = new_figure(7.0, 4.2)
    for result in results:
        rounds, shares = zip(*result.curve, strict=True)
        ax.plot(rounds, shares, "o-", ms=4, label=f"{result.regime}: {result.all:.2f}")
    ax.axhline(base, color="gray", ls=":", label=f"base model: {base:.2f}")
    ax.set_xlabel("rounds")
    ax.set_ylabel("right answers over all skills, mean of agents")
    ax.legend(frameon=False)
    return png(figure)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
