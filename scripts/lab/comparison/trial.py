"""What is compared: a trial, one run of one method, a frozen spec of which all that comes out is a pure function.

It imports nothing heavy and runs nothing; ``run.py`` does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gossip.errors import LocalError
from peer.config import PeerConfig
from scripts.lab.comparison.method import BASELINES, COMMON_FIELDS, Method, read_settings
from scripts.lab.files import file_digest
from scripts.lab.spec import LATER, hashed_name

FORMAT = 2
"""Raised when the same trial begins to mean something else, so that old results are not taken for new ones."""

TUNING_SEED = 1000
"""Learning rates are tuned with the seeds from here on, which are never compared with. Source: ours."""

COLUMNS = (
    "round", "merging", "tokens_per_peer", "bytes_per_peer", "seconds", "train_loss", "consensus_distance",
    "cross_term", "loss", "loss_worst", "loss_best", "loss_mean_adapter", "accuracy", "accuracy_mean_adapter",
)  # fmt: skip
"""Columns of the table of rounds, row 0 before the first; NaN where not measured.

``tokens_per_peer`` (targets of all peers together, over their number), ``bytes_per_peer`` (read; with a server also
sent) and ``seconds`` (virtual) count from the start. ``consensus_distance`` is the root mean square distance of the
adapters to their mean, over that of the mean from the initial adapter. ``loss`` is the mean over peers of the loss on
test rows: token means in nats, averaged over the measured files. ``accuracy`` is a share of these rows, for
classifications.
"""

PEER_COLUMNS = ("round", "peer", "loss", "loss_own", "accuracy")
"""Columns of the table of peers, before and after the final merge; ``loss_own`` is on held-out rows of its own file."""

OUTCOMES = (
    "start_loss", "unmerged_loss", "unmerged_worst", "unmerged_own", "unmerged_accuracy", "final_loss", "final_worst",
    "final_own", "final_mean_adapter", "final_accuracy", "validation_loss", "bytes_per_peer", "seconds",
    "tokens_per_peer", "consensus_distance", "cross_term", "diverged", "total_variation", "jensen_shannon",
    "rows_least", "rows_most", "best_round", "last_round", "events", "log_hash",
)  # fmt: skip
"""Fields of the record of a trial; ``unmerged`` is after the last round of training, ``final`` after the merge.

``validation_loss`` is ``final_loss`` on validation rows, with which learning rates are tuned; all else is on test rows.
Where training goes on until it has converged, ``unmerged`` is at the best evaluation, ``best_round``: the one at which
the mean over peers of the loss on validation rows was least, each with its own adapter after mixing; and ``final`` is
the mean of these adapters, which the final merge comes near to. There ``validation_loss`` is that least mean,
``last_round`` the one after which patience ended, and bytes, seconds and tokens are those until ``best_round``.
"""


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
        local_steps: optimizer steps of a round; of central, all that it takes while peers take their round's.
        batch_size: sequences of a step; of central-large, of each peer; 0 = the settings' or the workload's own.
        seed: of split, initial adapter, order of batches, topology and network; from ``TUNING_SEED`` on, nothing but
            ``validation_loss`` is measured.
        evaluate_every: rounds between evaluations; the last ones are always evaluated.
        latency_s, bandwidth_mbit, loss: of the simulated links.
        step_s: virtual seconds of one optimizer step of one peer, or of central.
        patience: so many evaluations in a row without a better validation loss end the training; 0 = all rounds are
            taken.
    """

    workload: str
    partition: str = ""
    peers: int = 8
    method: str = "ring"
    settings: str = ""
    learning_rate: float = 5e-3
    rounds: int = 20
    local_steps: int = 2
    batch_size: int = 0
    seed: int = 0
    evaluate_every: int = 1
    latency_s: float = 0.05
    bandwidth_mbit: float = 20.0
    loss: float = 0.0
    step_s: float = 0.1
    patience: int = field(default=0, metadata={LATER: True})

    def name(self) -> str:
        """Return 16 hex digits that stand for the spec and the content of the files it names.

        Raises:
            LocalError: such a file cannot be read.
        """
        return hashed_name(self, FORMAT, _file_digests(self))

    def title(self) -> str:
        """Return what tells it from the others of its comparison."""
        return f"{self.method} rate={self.learning_rate:g} seed={self.seed}"

    @property
    def tunes(self) -> bool:
        """It is one of those that choose a learning rate."""
        return self.seed >= TUNING_SEED

    @property
    def what(self) -> Method:
        """The method."""
        return Method.parse(self.method)

    def overrides(self) -> dict[str, Any]:
        """Return options of a peer that the trial sets, above those of its workload."""
        what = self.what
        baseline = BASELINES.get(what.regime)
        own = what.settings if baseline is None else {**what.settings, "optimizer": "none"}
        return {
            **read_settings(self.settings.split(), COMMON_FIELDS, "settings"),
            **own,
            "learning_rate": self.learning_rate,
            "rounds": self.rounds,
            "local_steps": self.local_steps,
            **({"batch_size": self.batch_size} if self.batch_size else {}),
            **({"topology": what.regime} if baseline is None else {}),
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
        options = dict(workload.settings)
        if options.get("task") == "classification":
            options["labels"] = ("yes", "no")  # which there are is known when the rows have been read
        config = PeerConfig.of(seed=self.seed, **{**options, **self.overrides()})
        try:
            self._check_method(config)
        except LocalError as error:
            raise LocalError(f"method {self.method!r}: {error}") from error

    def _check_method(self, config: PeerConfig) -> None:
        from peer.run_plan import plan_run
        from scripts.lab.comparison.server import check_server

        if self.patience and config.training.schedule != "constant":
            raise LocalError(
                f"schedule={config.training.schedule} falls towards an end that is not known before training has "
                "converged: take schedule=constant, or leave out --until converged and compare several --rounds"
            )
        if not self.what.is_baseline:
            plan_run(config, peers=self.peers)
        elif "optimizer" in self.what.all_settings:
            check_server(self.what.all_settings["optimizer"])


def _file_digests(trial: Trial) -> list[str]:
    """Return SHA-256 (hex) of the files that workload and topology refer to: an edited file is another trial."""
    digests = []
    for text in (trial.workload, trial.what.regime):
        kind, _, rest = text.partition(":")
        if kind in ("file", "labeled", "graph", "matrix"):
            path = Path(rest) if Path(rest).exists() else Path(rest.rpartition(":")[0])
            digests.append(file_digest(path, f"the file {str(path)!r} of {text!r}"))
    return digests
