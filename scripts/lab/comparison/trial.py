"""What a comparison is: methods on one workload, each run a trial of which all that comes out is a pure function.

Trials are named like cells (``cell.py``): equal specs share one result. All methods of a comparison take the
same number of optimizer steps on batches of the same size, begin with the same adapter, and have the same text. It
imports nothing heavy and runs nothing; ``run.py`` does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from gossip.errors import LocalError
from peer.config import PeerConfig
from scripts.lab.comparison.method import (
    BASELINES,
    COMMON_FIELDS,
    PEER_DEFAULTS,
    Method,
    read_settings,
    text_of,
    written_settings,
)

FORMAT = 1
"""Raised when the same trial begins to mean something else, so that old results are not taken for new ones."""

TUNING_SEED = 1000
"""Learning rates are tuned with the seeds from here on, which are never compared with. Source: ours."""

LEARNING_RATES = (2e-3, 5e-3, 1e-2, 2e-2)
"""The grid if nothing else is said. Source: ours; around what short runs of LoRA with AdamW want, factors of 2."""

POINTS_MIN = 10
"""Points of a curve if there are so many rounds. Source: guess; enough to see where methods part."""

COLUMNS = (
    "round", "merging", "steps", "bytes_per_peer", "seconds", "train_loss", "consensus_distance", "cross_term", "loss",
    "loss_worst", "loss_best", "loss_mean_adapter", "accuracy", "accuracy_mean_adapter",
)  # fmt: skip
"""Columns of the table of rounds, row 0 before the first; NaN where not measured.

``steps``, ``bytes_per_peer`` (read; with fedavg also sent) and ``seconds`` (virtual) count from the start.
``consensus_distance`` is the root mean square distance of the adapters to their mean, over that of the mean from the
initial adapter. ``loss`` is the mean over peers of the held-out loss: token means in nats, averaged over the measured
files. ``accuracy`` is a share of their rows, for classifications.
"""

PEER_COLUMNS = ("round", "peer", "loss", "loss_own", "accuracy")
"""Columns of the table of peers, before and after the final merge; ``loss_own`` is on held-out rows of its own file."""

OUTCOMES = (
    "start_loss", "unmerged_loss", "unmerged_worst", "unmerged_own", "unmerged_accuracy", "final_loss", "final_worst",
    "final_own", "final_mean_adapter", "final_accuracy", "bytes_per_peer", "seconds", "tokens_per_peer",
    "consensus_distance", "cross_term", "diverged", "total_variation", "jensen_shannon", "rows_least", "rows_most",
    "events", "log_hash",
)  # fmt: skip
"""Fields of the record of a trial; ``unmerged`` is after the last round of training, ``final`` after the merge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run of one method: one learning rate, one seed.

    Args:
        workload: as ``scripts/lab/workloads.py`` reads it.
        partition: as ``scripts/lab/partition.py`` reads it; empty = the workload's own.
        peers: n >= 2.
        method: in canonical writing.
        settings: of all methods, in canonical writing.
        learning_rate: constant.
        rounds: before the final merge.
        local_steps: optimizer steps of a round.
        seed: of split, initial adapter, order of batches, topology and network.
        evaluate_every: rounds between evaluations; the last ones are always evaluated.
        latency_s, bandwidth_mbit, loss: of the simulated links.
        step_s: virtual seconds of one optimizer step of one peer.
    """

    workload: str
    partition: str = ""
    peers: int = 8
    method: str = "ring"
    settings: str = ""
    learning_rate: float = 5e-3
    rounds: int = 20
    local_steps: int = 2
    seed: int = 0
    evaluate_every: int = 1
    latency_s: float = 0.05
    bandwidth_mbit: float = 20.0
    loss: float = 0.0
    step_s: float = 0.1

    def fields(self) -> dict[str, Any]:
        """Return name -> value, in the order of the class."""
        return dataclasses.asdict(self)

    def name(self) -> str:
        """Return 16 hex digits: SHA-256 over the canonical JSON of the spec, with the content of files it names.

        Raises:
            LocalError: such a file cannot be read.
        """
        named = {"format": FORMAT, "files": _file_digests(self), **self.fields()}
        canonical = json.dumps(named, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def title(self) -> str:
        """Return what tells it from the others of its comparison."""
        return f"{self.method} rate={self.learning_rate:g} seed={self.seed}"

    @property
    def what(self) -> Method:
        """The method."""
        return Method.parse(self.method)

    def overrides(self) -> dict[str, Any]:
        """Return options of a peer that the trial sets, above those of its workload."""
        return {
            **read_settings(self.settings.split(), COMMON_FIELDS, "settings"),
            **self.what.settings,
            "learning_rate": self.learning_rate,
            "rounds": self.rounds,
            "local_steps": self.local_steps,
            **({} if self.what.regime in BASELINES else {"topology": self.what.regime}),
        }

    def check(self) -> None:
        """Refuse what cannot run, before anything slow starts.

        Raises:
            LocalError: an unknown name, methods that do not go together, or a graph that does not exist for so many.
        """
        from scripts.lab.partition import parse_partitioner
        from scripts.lab.workloads import parse_workload

        workload = parse_workload(self.workload)
        parse_partitioner(self.partition or workload.partition)
        given = dict(workload.settings)
        if given.get("task") == "classification":
            given["labels"] = ("one", "other")  # which there are is known when the rows have been read
        config = PeerConfig.of(seed=self.seed, **{**given, **self.overrides()})
        if self.what.regime in BASELINES:
            return
        from peer.run_plan import plan_run

        try:
            plan_run(config, peers=self.peers)
        except LocalError as error:
            raise LocalError(f"method {self.method!r}: {error}") from error


def _file_digests(trial: Trial) -> list[str]:
    """Return SHA-256 (hex) of the files that workload and topology refer to: an edited file is another trial."""
    digests = []
    for text in (trial.workload, trial.what.regime):
        kind, _, rest = text.partition(":")
        if kind in ("file", "labeled", "graph", "matrix"):
            path = Path(rest) if Path(rest).exists() else Path(rest.rpartition(":")[0])
            try:
                digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
            except OSError as error:
                raise LocalError(
                    f"cannot read the file {str(path)!r} of {text!r}: {error.strerror}"
                ) from error
    return digests


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What a user asks for.

    Args:
        methods: as written; baselines are added to them.
        local_steps: of a round where a method does not say; 0 = the workload's own.
        rounds: of such methods; one with other ``local_steps`` gets rounds so that the steps are as many.
        seeds, tune_seeds: how many to compare with, how many to tune with.
        learning_rates: the grid, the same for all.
        evaluate_every: 0 = so that measuring costs about a quarter of training.
        settings: ``KEY=VALUE`` words for all methods.

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
    methods: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    evaluate_every: int = 0
    latency_s: float = 0.05
    bandwidth_mbit: float = 20.0
    loss: float = 0.0
    step_s: float = 0.1

    def __post_init__(self) -> None:
        least = {"peers": 2, "rounds": 1, "seeds": 1, "tune_seeds": 1, "local_steps": 0, "evaluate_every": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if type(value) is not int or value < low:
                raise LocalError(f"{name} must be a whole number of at least {low}, not {value!r}")
        if self.seeds > TUNING_SEED:
            raise LocalError(f"seeds must be at most {TUNING_SEED}: from there on they are for tuning")
        if not self.learning_rates or not all(rate > 0 for rate in self.learning_rates):
            raise LocalError(f"learning_rates must be numbers above 0, not {self.learning_rates!r}")
        if not 0 <= self.loss < 1:
            raise LocalError(f"loss must be a probability from 0 to below 1, not {self.loss!r}")
        for name in ("bandwidth_mbit", "step_s"):
            if not getattr(self, name) > 0:
                raise LocalError(f"{name} must be greater than 0, not {getattr(self, name)!r}")
        if not self.latency_s >= 0:
            raise LocalError(f"latency_s must be at least 0, not {self.latency_s!r}")

    def all_methods(self) -> tuple[str, ...]:
        """Return baselines and methods in canonical writing, each once."""
        return tuple(dict.fromkeys(str(Method.parse(text)) for text in (*BASELINES, *self.methods)))

    def tuning(self) -> list[Trial]:
        """Return the trials that choose learning rates; none if there is nothing to choose."""
        if len(set(self.learning_rates)) == 1:
            return []
        return [
            self._trial(method, rate, TUNING_SEED + index, last_only=True)
            for index in range(self.tune_seeds)
            for method in self.all_methods()
            for rate in sorted(set(self.learning_rates))
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

    def _trial(self, method: str, rate: float, seed: int, *, last_only: bool = False) -> Trial:
        steps = self._local_steps()
        own = Method.parse(method).settings.get("local_steps", steps)
        if self.rounds * steps % own:
            raise LocalError(
                f"method {method!r}: {self.rounds} rounds of {steps} steps are no whole number of rounds of {own} "
                "steps; choose rounds so that all methods can take as many steps"
            )
        rounds = self.rounds * steps // own
        every = (
            rounds
            if last_only
            else max(1, round((self.evaluate_every or self._evaluate_every()) * steps / own))
        )
        kept = ("workload", "partition", "peers", "latency_s", "bandwidth_mbit", "loss", "step_s")
        return Trial(
            **{name: getattr(self, name) for name in kept},
            method=method,
            settings=" ".join(written_settings(self._settings())),
            learning_rate=rate,
            rounds=rounds,
            local_steps=own,
            seed=seed,
            evaluate_every=every,
        )

    def _settings(self) -> dict[str, Any]:
        return read_settings(self.settings, COMMON_FIELDS, "settings")

    def _workload_settings(self) -> dict[str, Any]:
        from scripts.lab.workloads import parse_workload

        return {**parse_workload(self.workload).settings, **self._settings()}

    def _local_steps(self) -> int:
        return self.local_steps or self._workload_settings().get("local_steps", PEER_DEFAULTS["local_steps"])

    def _evaluate_every(self) -> int:
        """Return the rounds after which measuring costs a quarter of training, but so that curves have points.

        A sequence costs 1 to measure and 3 to train on; guessed is that four groups of text are measured.
        """
        given = self._workload_settings()
        blocks = given.get("eval_blocks_max", PEER_DEFAULTS["eval_blocks_max"])
        groups = 1 if given.get("task") == "classification" else 4
        training = 3 * self._local_steps() * given.get("batch_size", PEER_DEFAULTS["batch_size"])
        return max(1, min(round(4 * groups * blocks / training), self.rounds // POINTS_MIN))

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, for the manifest."""
        return dataclasses.asdict(self)

    def command(self, out: Path) -> str:
        """Return the command that makes the same comparison again."""
        words = ["python scripts/compare.py run"]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value == field.default:
                continue
            flag = "--" + {"methods": "method", "settings": "set"}.get(field.name, field.name).replace(
                "_", "-"
            )
            if field.name == "methods":
                words += [f"{flag} {shlex.quote(text)}" for text in value]
            elif isinstance(value, tuple):
                words.append(" ".join([flag, *(text_of(item) for item in value)]))
            else:
                words.append(f"{flag} {shlex.quote(text_of(value))}")
        return " ".join([*words, f"--out {shlex.quote(str(out))}"])


def read_comparison(given: Mapping[str, Any], file: Path | None = None) -> Comparison:
    """Return the comparison of a TOML file, what is ``given`` (not None) counting before it.

    Raises:
        LocalError: unreadable, not TOML, an unknown field, or a bad value.
    """
    content: dict[str, Any] = {}
    if file is not None:
        try:
            content = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise LocalError(f"cannot read the comparison {file}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise LocalError(f"{file}: not TOML: {error}") from error
    known = [field.name for field in dataclasses.fields(Comparison)]
    for name in content:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise LocalError(f"{file}: unknown field {name!r}.{hint} Known: {', '.join(known)}")
    merged = {**content, **{name: value for name, value in given.items() if value is not None}}
    if "workload" not in merged:
        raise LocalError("a comparison needs a workload: --workload languages-tiny, for one")
    for name, kind in (("methods", str), ("settings", str), ("learning_rates", (int, float))):
        if name in merged:
            value = merged[name]
            if not isinstance(value, list | tuple) or not all(isinstance(item, kind) for item in value):
                raise LocalError(
                    f"{name} must be a list of {'numbers' if kind is not str else 'texts'}, not {value!r}"
                )
            merged[name] = tuple(float(item) for item in value) if kind is not str else tuple(value)
    return Comparison(**merged)
