"""How much noise a run's steps need, and leave to take them: what stands between training and the ledger.

The noise is chosen when training begins, such that all rounds still to come, after everything that these data have been
charged for before, keep the promise. A round is charged before its first step, and is on the disk by then. It knows
nothing of gradients.
"""

from __future__ import annotations

from pathlib import Path

from gossip.errors import LocalError
from peer.config import PeerConfig
from peer.privacy.accounting import epsilon, noise_multiplier_for
from peer.privacy.charge import Charge
from peer.privacy.ledger import Ledger
from peer.privacy.ledger_file import ROW, UnitDigests
from peer.privacy.statement import warnings_of
from peer.training.adapter_kinds import ADAPTERS
from peer.training.units import Unit

NOISE_MAX = 50.0
"""With more noise than this over the clip nothing is learned any more, and what was learned is lost: the budget counts
as spent. Source: ours; a step on 64 rows then moves the adapter by its noise alone."""
LEFT_MIN = 1e-3
"""If less than this share of the budget is left, it counts as spent: so much is lost to the precision with which noise
is chosen, and what it affords is noise alone. Source: ours, ten times that precision."""
RATE_FACTOR = 10.0
"""With noise, learning rates do best that are so many times the usual. Source: as before."""
BATCH_SUGGESTED = 64
"""Rows per step that suit noise: its share falls as their number grows. Source: as before."""


class Budget:
    """What one peer may still spend on its data.

    Args:
        config: with a promise in it.
        units: whose data it learns from, at least one.

    Attributes:
        sampling_rate: probability with which each unit takes part in a step.
        noise_multiplier: standard deviation of the noise over the clip, once ``plan`` has been called.

    Raises (every method): ``LedgerError`` where the ledger cannot be trusted or written.
    """

    def __init__(self, config: PeerConfig, units: list[Unit]) -> None:
        if config.run.home is None:
            raise LocalError("differential privacy is counted in the home folder: give --home")
        self._home: Path = config.run.home
        self._config = config
        self._units = units
        self.sampling_rate = min(1.0, config.training.batch_size / len(units))
        self.noise_multiplier = 0.0
        self._rounds_left = 0
        self._spent_before = 0.0

    def plan(self, rounds_done: int) -> None:
        """Choose the noise for the rounds still to come."""
        options, rounds = self._config.privacy, self._config.run.rounds - rounds_done
        with Ledger.open(self._home) as ledger:
            digests = self._digests(ledger)
            spent = ledger.spent(digests)
            ledger.promise(digests, options.dp_epsilon, options.dp_delta)
        self._spent_before = epsilon(spent, options.dp_delta)
        self._rounds_left = 0
        steps = rounds * self._config.training.local_steps
        if rounds <= 0 or (spent and not self._affords(spent, steps)):
            return
        self.noise_multiplier = noise_multiplier_for(
            options.dp_epsilon, options.dp_delta, self.sampling_rate, steps, spent
        )
        self._rounds_left = rounds

    def _affords(self, spent: list[Charge], steps: int) -> bool:
        """Tell whether so many steps after what is spent can be taken with noise that leaves something to learn."""
        options, most = self._config.privacy, Charge(NOISE_MAX, self.sampling_rate, steps)
        if self._spent_before > (1.0 - LEFT_MIN) * options.dp_epsilon:
            return False
        return epsilon([*spent, most], options.dp_delta) <= options.dp_epsilon

    def charge_round(self) -> str:
        """Charge a round's steps; return why none may be taken, empty if they may."""
        options = self._config.privacy
        if not self._rounds_left:
            return (
                f"the privacy budget of these data is spent (epsilon {options.dp_epsilon:g} at delta "
                f"{options.dp_delta:g}): this peer trains no more and goes on mixing what others learn. With other "
                "data it would train again; a larger --dp-epsilon promises less to those whose data these are"
            )
        charge = Charge(self.noise_multiplier, self.sampling_rate, self._config.training.local_steps)
        with Ledger.open(self._home) as ledger:
            ledger.charge(self._digests(ledger), charge, self._run)
        self._rounds_left -= 1
        return ""

    def notes(self) -> tuple[str, ...]:
        """Return what is promised, at what noise, and what would serve it better."""
        return tuple(note for note in (self._promise(), *self._advice()) if note)

    @property
    def _run(self) -> str:
        return f"{self._config.model.model}, seed {self._config.run.seed}"

    @property
    def _unit(self) -> str:
        field = self._config.privacy.dp_unit
        return "row" if field == ROW else f"group of rows with the same {field}"

    def _promise(self) -> str:
        if not self._rounds_left:
            return ""
        options, steps = self._config.privacy, self._rounds_left * self._config.training.local_steps
        before = f", of which {self._spent_before:.3g} was spent before" if self._spent_before else ""
        return (
            f"differential privacy of every {self._unit}: epsilon {options.dp_epsilon:g} at delta "
            f"{options.dp_delta:g} over all runs on these data{before}. That takes noise of "
            f"{self.noise_multiplier:.3g} times the clip in each of {steps} steps, in which each of "
            f"{len(self._units)} takes part with probability {self.sampling_rate:.3g}; "
            "rows held out for measuring are not protected"
        )

    def _advice(self) -> tuple[str, ...]:
        training, few = self._config.training, len(self._units)
        advice = list(warnings_of(self._config.privacy.dp_unit, few, self._config.privacy.dp_delta))
        if training.learning_rate == ADAPTERS[self._config.model.adapter].rate:
            suggested = RATE_FACTOR * training.learning_rate
            advice.append(
                f"with noise, a learning rate about ten times the usual does better: --learning-rate {suggested:g}"
            )
        if training.batch_size < min(BATCH_SUGGESTED, few) / 2:
            advice.append(
                f"the larger the batch, the smaller the noise in its mean: --batch-size {min(BATCH_SUGGESTED, few)}"
            )
        return tuple(advice)

    def _digests(self, ledger: Ledger) -> UnitDigests:
        rows = (row for unit in self._units for row in unit.rows)
        name = ", ".join(path.name for path in self._config.data.data)
        if self._config.privacy.dp_unit == ROW:
            return ledger.digests(rows, name)
        owners = (unit.owner for unit in self._units)
        return ledger.digests(rows, name, self._config.privacy.dp_unit, owners)
