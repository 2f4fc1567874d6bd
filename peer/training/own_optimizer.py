"""A peer's own optimizer and generators on a model that may be lent to several, and the file in which they rest.

What all our trainers have in common besides the model: what is trained, at which rate, and exact resumption. Files are
safetensors, with JSON beside the tensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from gossip.errors import LocalError
from gossip.events import TrainableFactors
from peer.config import PeerConfig
from peer.durable import told, write_atomically
from peer.tensor_file import tensor_pieces
from peer.training.adapted_model import AdaptedModel, generators, set_generators
from peer.training.local_steps import OPTIMIZERS, Parameters
from peer.training.schedules import Position
from peer.training.trainers import selects

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of a parameter, as torch calls it."""


class OwnOptimizer:
    """See the module.

    Args:
        config: settings of the peer.
        model: the model that is trained.

    Attributes:
        torch: the optimizer.
        generators: states of torch's generators, of this peer alone.
    """

    def __init__(self, config: PeerConfig, model: AdaptedModel):
        self._config, self._model = config, model
        self._parameters: Parameters = model.parameters
        self.torch = OPTIMIZERS[config.training.local_optimizer](
            list(self._parameters.values()), config.training
        )
        self.generators = dict(model.generators)

    def selected(self, trainable: TrainableFactors) -> Parameters:
        """Return the parameters of ``trainable``, at least one.

        Raises:
            LocalError: the adapter has none of that part.
        """
        selected = {
            name: parameter for name, parameter in self._parameters.items() if selects(trainable, name)
        }
        if not selected:
            raise LocalError(
                f"adapter {self._config.model.adapter} has no tensors of the part {trainable!r}: train all of it, or "
                "use lora"
            )
        return selected

    def begin_round(self) -> None:
        """Forget the moments where the user wants that."""
        if self._config.training.moments == "reset":
            self.torch.state.clear()

    def set_rate(self, rate: float, position: Position, step: int) -> None:
        """Give the optimizer the share of ``rate`` that a round's step, from 0, is taken with."""
        training = self._config.training
        factor = position.factor(training.schedule, training.warmup_steps, step, training.local_steps)
        for group in self.torch.param_groups:
            group["lr"] = rate * factor

    @contextmanager
    def own_generators(self) -> Iterator[None]:
        """Draw from this peer's generators, and leave those of the process as they were found."""
        outside = generators(self._model.device)
        set_generators(self.generators)
        try:
            yield
            self.generators = generators(self._model.device)
        finally:
            set_generators(outside)

    def save(self, path: Path, written: Mapping[str, Any], more: Mapping[str, Tensor]) -> None:
        """Write optimizer and generators to the file ``path``, whole or not at all.

        Args:
            written: what else is kept, JSON-able.
            more: tensors that are kept, too; their names begin with neither ``generator.`` nor ``optimizer.``.

        Raises:
            LocalError: the disk is full, or the folder cannot be written.
        """
        tensors = {f"generator.{device}": state for device, state in self.generators.items()} | dict(more)
        for name, parameter in self._parameters.items():
            for moment, value in self.torch.state.get(parameter, {}).items():
                tensors[f"optimizer.{moment}.{name}"] = value
        kept = {"adapter_spec": self._model.spec.fingerprint, **written}
        try:
            write_atomically(path, tensor_pieces(tensors, {"trainer": json.dumps(kept)}))
        except OSError as error:
            raise LocalError(f"cannot write the training state {path}: {told(error)}") from error

    def read(self, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what ``save`` was given, and all tensors; nothing of ours changes (see ``restore``).

        Raises:
            LocalError: no such file, not ours, made with another adapter, or by an earlier version.
        """
        try:
            with safe_open(path, framework="pt") as opened:
                written: dict[str, Any] = json.loads(opened.metadata()["trainer"])
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
            raise LocalError(
                f"cannot resume from {path}: {error}. Start anew, or restore the file."
            ) from error
        if written["adapter_spec"] != self._model.spec.fingerprint:
            raise LocalError(
                f"cannot resume from {path}: its adapter has other tensors (rank, modules, layers)"
            )
        self._check_moments(path, tensors)
        return written, tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue with the optimizer and the generators that were read; on a CPU to the bit."""
        for device in self.generators:
            self.generators[device] = tensors.get(f"generator.{device}", self.generators[device])
        for name, parameter in self._parameters.items():
            if self._config.training.local_optimizer == "adamw" and f"optimizer.step.{name}" in tensors:
                self.torch.state[parameter] = {
                    "step": tensors[f"optimizer.step.{name}"],
                    "exp_avg": tensors[f"optimizer.exp_avg.{name}"].to(parameter.device),
                    "exp_avg_sq": tensors[f"optimizer.exp_avg_sq.{name}"].to(parameter.device),
                }

    def _check_moments(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Refuse moments of no parameter of ours: left out silently, training would go on as if it had just begun."""
        known = {f"optimizer.{moment}.{name}" for moment in MOMENTS for name in self._parameters}
        strange = sorted(name for name in tensors if name.startswith("optimizer.") and name not in known)
        if strange:
            raise LocalError(
                f"cannot resume from {path}: made by an earlier version ({len(strange)} tensors such as {strange[0]} "
                "belong to no tensor of the adapter). Start anew with another --home, or go on with that version."
            )
