"""What a user asks to be compared, and the trials that answer it.

All methods of a comparison train on the same number of sequences of the same text, and begin with the same adapter; how
many of them a step takes, how many steps a round, and how the rate changes, a method may choose. It imports nothing
heavy and runs nothing.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossip.errors import LocalError
from scripts.lab.comparison.method import (
    BASELINES,
    COMMON_FIELDS,
    PEER_DEFAULTS,
    Method,
    read_settings,
    text_of,
    written_settings,
)
from scripts.lab.comparison.trial import TUNING_SEED, Trial
from scripts.lab.files import read_toml
from scripts.lab.spec import did_you_mean

LEARNING_RATES = (4e-3, 8e-3, 1.6e-2)
"""The grid if nothing else is said, before it is widened. Source: ours; around what short runs of LoRA with AdamW want,
factors of 2."""

UNTIL = ("rounds", "converged")
"""When training ends: after the rounds given, or when the validation loss falls no more."""

PATIENCE = 3
"""Evaluations without a better validation loss that end a training. Source: guess; one or two may be noise."""

ROUNDS_FACTOR = 10
"""A training that has not converged ends after so many times the rounds given. Source: ours; what it may cost."""

WIDENINGS = 4
"""How often a grid is widened on a side at most. Source: ours; a factor of 16 with factors of 2."""

POINTS_MIN = 10
"""Points of a curve if there are so many rounds. Source: guess; enough to see where methods part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What a user asks for.

    Args:
        baselines: regimes without gossip that are added to the methods, unless a method names one in a form of its own.
        methods: as written.
        local_steps: of a round where a method does not say; 0 = the workload's own.
        rounds: of such methods; one with other ``local_steps`` or ``batch_size`` gets rounds so that the sequences are
            as many.
        seeds, tune_seeds: how many to compare with, how many to tune with.
        learning_rates: the grid that the search of each method begins with; a single one = no search.
        widenings: how often a grid is widened on a side at most, while the best rate lies at its edge.
        evaluate_every: 0 = so that measuring costs about a quarter of training.
        settings: ``KEY=VALUE`` words for all methods.
        until: one of ``UNTIL``; with ``converged``, ``rounds`` may become ``rounds_factor`` times as many.
        patience: evaluations; see ``Trial``.
        rounds_factor: at least 1.

    Raises:
        LocalError: a value out of range.
    """

    workload: str
    partition: str = ""
    peers: int = 8
    rounds: int = 20
    local_steps: int = 0
    seeds: int = 5
    tune_seeds: int = 1
    learning_rates: tuple[float, ...] = LEARNING_RATES
    widenings: int = WIDENINGS
    baselines: tuple[str, ...] = tuple(BASELINES)
    methods: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    evaluate_every: int = 0
    latency_s: float = 0.05
    bandwidth_mbit: float = 20.0
    loss: float = 0.0
    step_s: float = 0.1
    until: str = "rounds"
    patience: int = PATIENCE
    rounds_factor: int = ROUNDS_FACTOR

    def __post_init__(self) -> None:
        least = {"peers": 2} | dict.fromkeys(
            ("rounds", "seeds", "tune_seeds", "patience", "rounds_factor"), 1
        )
        least |= dict.fromkeys(("local_steps", "evaluate_every", "widenings"), 0)
        for name, low in least.items():
            value = getattr(self, name)
            if type(value) is not int or value < low:
                raise LocalError(f"{name} must be a whole number of at least {low}, not {value!r}")
        if self.seeds > TUNING_SEED:
            raise LocalError(f"seeds must be at most {TUNING_SEED}: from there on they are for tuning")
        if not self.learning_rates or not all(rate > 0 for rate in self.learning_rates):
            raise LocalError(f"learning_rates must be numbers above 0, not {self.learning_rates!r}")
        if unknown := sorted(set(self.baselines) - set(BASELINES)):
            raise LocalError(f"unknown baseline {unknown[0]!r}; known: {', '.join(BASELINES)}")
        if self.until not in UNTIL:
            raise LocalError(f"until must be one of {', '.join(UNTIL)}, not {self.until!r}")
        if not 0 <= self.loss < 1:
            raise LocalError(f"loss must be a probability from 0 to below 1, not {self.loss!r}")
        for name in ("bandwidth_mbit", "step_s"):
            if not getattr(self, name) > 0:
                raise LocalError(f"{name} must be greater than 0, not {getattr(self, name)!r}")
        if not self.latency_s >= 0:
            raise LocalError(f"latency_s must be at least 0, not {self.latency_s!r}")

    def all_methods(self) -> tuple[str, ...]:
        """Return baselines and methods in canonical writing, each once."""
        methods = [Method.parse(text) for text in self.methods]
        named = {method.regime for method in methods}
        plain = [Method.parse(name) for name in self.baselines if name not in named]
        return tuple(dict.fromkeys(map(str, sorted([*plain, *methods], key=_place))))

    @property
    def searches(self) -> bool:
        """There is more than one learning rate to choose from."""
        return len(set(self.learning_rates)) > 1

    def tuning(self, grids: Mapping[str, Sequence[float]]) -> list[Trial]:
        """Return the trials that choose learning rates; none if there is nothing to choose.

        Args:
            grids: learning rates to try for each of ``all_methods``, as ``wider_grids`` gives them.
        """
        if not self.searches:
            return []
        return [
            self._trial(method, rate, TUNING_SEED + index)
            for index in range(self.tune_seeds)
            for method in self.all_methods()
            for rate in sorted(grids[method])
        ]

    def evaluation(self, rates: Mapping[str, float]) -> list[Trial]:
        """Return the trials that are compared.

        Args:
            rates: learning rate of each of ``all_methods``.
        """
        # Seed by seed: a process that goes on with the same seed need not load its base model again.
        return [
            self._trial(method, rates[method], seed)
            for seed in range(self.seeds)
            for method in self.all_methods()
        ]

    def _trial(self, method: str, rate: float, seed: int) -> Trial:
        rounds, steps, batch = self._budget(Method.parse(method))
        every = (self.evaluate_every or self._evaluate_every()) * rounds / self.rounds
        shared = self._batch_size()
        kept = ("workload", "partition", "peers", "latency_s", "bandwidth_mbit", "loss")
        converges = self.until == "converged"
        measured = max(1, round(every))
        return Trial(
            **{name: getattr(self, name) for name in kept},
            method=method,
            settings=" ".join(written_settings(self._settings())),
            learning_rate=rate,
            rounds=rounds * self.rounds_factor if converges else rounds,
            local_steps=steps,
            batch_size=batch,
            seed=seed,
            evaluate_every=rounds if seed >= TUNING_SEED and not converges else measured,
            patience=self.patience if converges else 0,
            step_s=self.step_s * batch / shared,
        )

    def _budget(self, method: Method) -> tuple[int, int, int]:
        """Return rounds, local steps and batch size with which a peer trains on as many sequences as with all methods.

        Central trains in every round on what all peers together train on.

        Raises:
            LocalError: these are no whole number of rounds.
        """
        batch = method.settings.get("batch_size", self._batch_size())
        of_round = self._local_steps() * self._batch_size()
        if method.regime == "central":
            sequences, unit, rounds = self.peers * of_round, batch, self.rounds
            steps = sequences // batch
            says = (
                f"the {sequences} sequences of all peers in a round are no whole number of steps of {batch}"
            )
        else:
            steps = method.settings.get("local_steps", self._local_steps())
            sequences, unit = self.rounds * of_round, steps * batch
            rounds = sequences // unit
            says = (
                f"{sequences} sequences of a peer are no whole number of rounds of {steps} steps of {batch}"
            )
        if sequences % unit:
            raise LocalError(
                f"method {str(method)!r}: {says}; choose rounds, local_steps and batch_size so that all methods can "
                "train on as many"
            )
        return rounds, steps, batch

    def _settings(self) -> dict[str, Any]:
        return read_settings(self.settings, COMMON_FIELDS, "settings")

    def _workload_settings(self) -> dict[str, Any]:
        from scripts.lab.workloads import parse_workload

        return {**parse_workload(self.workload).settings, **self._settings()}

    def _local_steps(self) -> int:
        if self.local_steps:
            return self.local_steps
        return int(self._workload_settings().get("local_steps", PEER_DEFAULTS["local_steps"]))

    def _batch_size(self) -> int:
        return int(self._workload_settings().get("batch_size", PEER_DEFAULTS["batch_size"]))

    def _evaluate_every(self) -> int:
        """Return the rounds after which measuring costs a quarter of training, but so that curves have points.

        A sequence costs 1 to measure and 3 to train on; guessed is that four groups of text are measured.
        """
        settings = self._workload_settings()
        blocks = int(settings.get("eval_blocks_max", PEER_DEFAULTS["eval_blocks_max"]))
        groups = 1 if settings.get("task") == "classification" else 4
        training = 3 * self._local_steps() * self._batch_size()
        return max(1, min(round(4 * groups * blocks / training), self.rounds // POINTS_MIN))

    def command(self, out: Path) -> str:
        """Return the command that makes the same comparison again."""
        words = ["python scripts/compare.py run"]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value == field.default:
                continue
            flag = "--" + OPTION_OF.get(field.name, field.name).replace("_", "-")
            if field.name == "methods":
                words += [f"{flag} {shlex.quote(text)}" for text in value]
            elif isinstance(value, tuple):
                words.append(" ".join([flag, *(text_of(item) for item in value)]))
            else:
                words.append(f"{flag} {shlex.quote(text_of(value))}")
        return " ".join([*words, f"--out {shlex.quote(str(out))}"])


def _place(method: Method) -> int:
    """Return a method's place in tables: baselines first, in the order of their catalogue."""
    return list(BASELINES).index(method.regime) if method.is_baseline else len(BASELINES)


OPTION_OF = {"methods": "method", "settings": "set"}
"""Field -> option of the command, where the names differ."""


def read_comparison(given: Mapping[str, Any], file: Path | None = None) -> Comparison:
    """Return the comparison of a TOML file, what is ``given`` (not None) counting before it.

    Raises:
        LocalError: unreadable, not TOML, an unknown field, or a bad value.
    """
    content = {} if file is None else read_toml(file, "comparison")
    known = [field.name for field in dataclasses.fields(Comparison)]
    for name in content:
        if name not in known:
            hint = did_you_mean(name, known)
            raise LocalError(f"{file}: unknown field {name!r}.{hint} Known: {', '.join(known)}")
    merged = {**content, **{name: value for name, value in given.items() if value is not None}}
    if "workload" not in merged:
        raise LocalError("a comparison needs a workload: --workload languages-tiny, for one")
    for name in ("baselines", "methods", "settings"):
        if name in merged:
            merged[name] = _checked_list(name, merged[name], str, "texts")
    if "learning_rates" in merged:
        rates = _checked_list("learning_rates", merged["learning_rates"], (int, float), "numbers")
        merged["learning_rates"] = tuple(map(float, rates))
    return Comparison(**merged)


def _checked_list(name: str, value: object, kind: type | tuple[type, ...], says: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, kind) for item in value):
        raise LocalError(f"{name} must be a list of {says}, not {value!r}")
    return tuple(value)
