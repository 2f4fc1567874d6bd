"""Local training: a peer's own rows, optimizer steps on the adapter of a frozen base, held-out losses.

The adapter comes and goes as one flat vector; the base may be shared with other peers of this process
(``adapted_model.py``). Optimizer, generators and sampler are the peer's own and are saved as safetensors with JSON
beside the tensors. It runs in a process of its own (``worker.py``), because it needs transformers and
peft. It knows nothing of peers, rounds or mixing. What can take the steps stands in a catalogue at the foot.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes

from gossip.adapter import AdapterState
from gossip.errors import LocalError
from gossip.events import TrainableFactors
from peer.config import PeerConfig
from peer.durable import write_atomically
from peer.training import data, tasks
from peer.training.adapted_model import AdaptedModel, generators, set_generators
from peer.training.data import BatchSampler, DataError, Tokens
from peer.training.frames import Evaluated, OnStep, Progress, Step, Trained

NON_FINITE_MAX = 3
"""So many steps in a row without a finite loss or gradient end the run. Source: guess; one can be a bad
batch."""


MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of a parameter, as torch calls it."""


class Diverged(LocalError):
    """The loss is not a number any more; more steps would not bring it back."""

    exit_code = 9


class LocalTrainer:
    """One peer's data, sampler, optimizer and generators, on a model of its own or one lent to several peers.

    Peers that share a model get to the bit what they would get with one each; they must take turns.

    Args:
        config: settings of the peer.
        model: the model to train on; without one, its own is built from ``config``.
        progress: told of stages while a model is built.
        cache: where models are made; default ``models.cache_folder()``.
        draw: gives the sequences of each step (``draw_batch`` of other trainers, say), in place of our own; ``save``
            then keeps nothing of where it is.

    Attributes:
        model: the model with the adapter.
        spec, initial, manifest: of the model.
        report: what was read, as text for a human.
        rows, rows_held_out, sequences: sizes.

    Raises:
        LocalError: the model, a target module, a layer or the device does not exist, or the model lent was built
            with other settings.
        DataError: the data cannot be used.
    """

    def __init__(
        self,
        config: PeerConfig,
        model: AdaptedModel | None = None,
        progress: Progress | None = None,
        cache: Path | None = None,
        draw: Callable[[], list[Tokens]] | None = None,
    ):
        self.config = config
        if not config.data:
            raise DataError("no data to train on: give at least one file")
        self._task = tasks.TASKS[config.task]
        loaded = data.load(config.data, bad_rows=config.bad_rows, labels=config.labels)
        if model is not None:
            model.check(config)
        self.model = model or AdaptedModel(config, progress, cache)
        self.spec, self.initial = self.model.spec, self.model.initial
        self.manifest: Mapping[str, str] = self.model.manifest
        self._tokenizer, self._model = self.model.tokenizer, self.model.module
        self._parameters = self.model.parameters
        self._tokenize(loaded)
        self._optimizer = OPTIMIZERS[config.local_optimizer](list(self._parameters.values()), config)
        self._generators = dict(self.model.generators)
        self._pad = self._tokenizer.pad_token_id or 0
        self._sampler = BatchSampler(self.sequences, config.batch_size, config.seed)
        self._draw = draw or self.draw_batch
        self._non_finite = 0

    def _tokenize(self, loaded: data.Loaded) -> None:
        """Tokenize the shard; held-out rows of it and of ``eval_data`` become ``_shards``."""
        config, tokenizer = self.config, self._tokenizer
        train, held = data.split(loaded.rows, config.held_out, config.seed)
        self._train, bad = self._task.tokenize(train, tokenizer, config)
        bad = [*loaded.bad, *bad]
        if not self._train:
            raise DataError("\n".join(["no training sequence is left after tokenizing", *map(str, bad[:10])]))
        self._shards: dict[Path, list[Tokens]] = {}
        for file in config.data:
            self._shards[file.resolve()] = self._held_out([row for row in held if row.file == file])
        if not any(self._shards.values()):
            raise DataError(
                "no held-out sequence is left after tokenizing: give more rows, or raise held_out"
            )
        for file in config.eval_data:
            if file.resolve() not in self._shards:
                others = data.load([file], bad_rows=config.bad_rows, labels=config.labels).rows
                sequences = self._held_out(data.split(others, config.held_out, config.seed)[1])
                if not sequences:
                    raise DataError(f"eval_data {file}: no held-out sequence is left after tokenizing")
                self._shards[file.resolve()] = sequences
        self.rows, self.rows_held_out, self.sequences = len(train), len(held), len(self._train)
        self.report = data.Loaded(loaded.rows, tuple(bad)).report(data.render(train[0], tokenizer))

    def _held_out(self, rows: Sequence[data.Row]) -> list[Tokens]:
        sequences, _ = self._task.tokenize(rows, self._tokenizer, self.config)
        return sequences[: self.config.eval_blocks_max]

    def draw_batch(self) -> list[Tokens]:
        """Return ``batch_size`` of our own training sequences, the next in order, and move on."""
        return [self._train[index] for index in self._sampler.draw()]

    def train(
        self,
        state: AdapterState,
        trainable: TrainableFactors = "all",
        correction: torch.Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Trained:
        """Take ``local_steps`` steps from ``state``; the optimizer's moments go on from the last call.

        Args:
            state: the adapter to start from.
            trainable: which of its tensors are trained (see ``gossip.events``); the others keep values and moments.
            correction: float32[P] in the layout of ``state``, added to the trained tensors after every step; gradient
                tracking and momentum across rounds want it. None = nothing.
            on_step: told of each step.

        Raises:
            Diverged: ``NON_FINITE_MAX`` steps in a row had no finite loss or gradient (each was left out).
            LocalError: the adapter has nothing of that part.
        """
        self.model.put(state)
        self._model.train()
        start = time.monotonic()
        loss_sum, tokens, sequences = 0.0, 0, 0
        with self._own_generators(), self._only(trainable) as trained:
            shift = _Shift(trained, state, correction, self.config.proximal)
            for step in range(1, self.config.local_steps + 1):
                batch, targets = self._batch(self._draw())
                value, taken = self._step(batch, shift)
                if taken:
                    loss_sum, tokens = loss_sum + value * targets, tokens + targets
                    sequences += len(batch["labels"])
                if on_step is not None:
                    on_step(Step(step, self.config.local_steps, value, targets))
        mean = loss_sum / tokens if tokens else math.nan
        seconds = time.monotonic() - start
        return Trained(self.model.state(), mean, self.config.local_steps, sequences, tokens, seconds)

    def _step(self, batch: dict[str, torch.Tensor], shift: _Shift) -> tuple[float, bool]:
        """Take one step; return its loss, and whether it was taken (else loss or gradient were not finite)."""
        loss = self._model(**batch).loss
        loss.backward()
        shift.pull_back()
        norm = torch.nn.utils.clip_grad_norm_(shift.trained.values(), self.config.max_grad_norm).item()
        value = loss.item()
        taken = math.isfinite(value) and math.isfinite(norm)
        if taken:
            self._optimizer.step()
            shift.add_correction()
            self._non_finite = 0
        else:
            self._non_finite += 1
        self._optimizer.zero_grad(set_to_none=True)
        if self._non_finite == NON_FINITE_MAX:
            raise Diverged(
                f"loss {value}, gradient norm {norm}: not finite for {NON_FINITE_MAX} steps in a row. Lower "
                f"learning_rate (now {self.config.learning_rate:g}), or train in float32."
            )
        return value, taken

    @contextmanager
    def _own_generators(self) -> Iterator[None]:
        """Draw from this peer's generators, and leave those of the process as they were found."""
        outside = generators(self.model.device)
        set_generators(self._generators)
        try:
            yield
            self._generators = generators(self.model.device)
        finally:
            set_generators(outside)

    @contextmanager
    def _only(self, trainable: TrainableFactors) -> Iterator[dict[str, torch.nn.Parameter]]:
        """Yield the trainable parameters; the others need no gradient meanwhile, so that AdamW passes them by."""
        chosen = {name: one for name, one in self._parameters.items() if _belongs(name, trainable)}
        if not chosen:
            raise LocalError(
                f"adapter {self.config.adapter} has no tensors of the part {trainable!r}: train all of it, or use lora"
            )
        try:
            for name, parameter in self._parameters.items():
                parameter.requires_grad_(name in chosen)
            yield chosen
        finally:
            for parameter in self._parameters.values():
                parameter.requires_grad_(True)

    @torch.no_grad()
    def evaluate(self, state: AdapterState) -> Evaluated:
        """Return held-out losses of ``state``; the shards are files, our own and those of ``eval_data``."""
        self.model.put(state)
        self._model.eval()
        sums = {
            file: tasks.measure(self._task, self._model, sequences, self.config.batch_size, self._pad)
            for file, sequences in self._shards.items()
            if sequences
        }
        own, everywhere, per_file = self._means(sums, "loss")
        if self.config.task != "classification":
            return Evaluated(own, everywhere, per_file)
        return Evaluated(own, everywhere, per_file, *self._means(sums, "correct"))

    def _means(
        self, sums: Mapping[Path, tasks.Measured], field: str
    ) -> tuple[float, float | None, dict[str, float]]:
        """Return the mean of ``field`` over our own targets, over the means of all shards, and that of each file."""
        own = [sums[file.resolve()] for file in self.config.data if file.resolve() in sums]
        means = {file: getattr(one, field) / one.targets for file, one in sums.items()}
        per_file = {
            str(file): means[file.resolve()] for file in self.config.eval_data if file.resolve() in means
        }
        return (
            sum(getattr(one, field) for one in own) / sum(one.targets for one in own),
            sum(means.values()) / len(means) if self.config.eval_data else None,
            per_file,
        )

    def save(self, path: Path) -> None:
        """Write optimizer, generators and sampler to the file ``path``, whole or not at all.

        Raises:
            LocalError: the disk is full, or the folder cannot be written.
        """
        tensors = {f"generator.{device}": state for device, state in self._generators.items()}
        for name, parameter in self._parameters.items():
            for moment, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{moment}.{name}"] = value.detach().cpu().contiguous()
        written = {
            "adapter_spec": self.spec.fingerprint,
            "sampler": self._sampler.state(),
            "non_finite": self._non_finite,
        }
        try:
            write_atomically(path, safetensors_bytes(tensors, {"trainer": json.dumps(written)}))
        except OSError as error:
            raise LocalError(f"cannot write the training state {path}: {error.strerror or error}") from error

    def load(self, path: Path) -> None:
        """Continue where ``save`` was called; on a CPU the next steps are then the same to the bit.

        Raises:
            LocalError: no such file, not ours, made with another adapter or other data, or by an earlier version.
        """
        try:
            with safe_open(path, framework="pt") as opened:
                written = json.loads(opened.metadata()["trainer"])
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
            raise LocalError(
                f"cannot resume from {path}: {error}. Start anew, or restore the file."
            ) from error
        if written["adapter_spec"] != self.spec.fingerprint:
            raise LocalError(
                f"cannot resume from {path}: its adapter has other tensors (rank, modules, layers)"
            )
        self._check_moments(path, tensors)
        self._sampler.restore(written["sampler"])
        self._non_finite = written["non_finite"]
        for device in self._generators:
            self._generators[device] = tensors.get(f"generator.{device}", self._generators[device])
        for name, parameter in self._parameters.items():
            if self.config.local_optimizer == "adamw" and f"optimizer.step.{name}" in tensors:
                self._optimizer.state[parameter] = {
                    "step": tensors[f"optimizer.step.{name}"],
                    "exp_avg": tensors[f"optimizer.exp_avg.{name}"].to(parameter.device),
                    "exp_avg_sq": tensors[f"optimizer.exp_avg_sq.{name}"].to(parameter.device),
                }

    def _check_moments(self, path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        """Refuse moments of no parameter of ours: left out silently, training would go on as if it had just begun."""
        known = {f"optimizer.{moment}.{name}" for moment in MOMENTS for name in self._parameters}
        strange = sorted(name for name in tensors if name.startswith("optimizer.") and name not in known)
        if strange:
            raise LocalError(
                f"cannot resume from {path}: made by an earlier version ({len(strange)} tensors such as {strange[0]} "
                "belong to no tensor of the adapter). Start anew with another --home, or go on with that version."
            )

    def _batch(self, sequences: Sequence[Tokens]) -> tuple[dict[str, torch.Tensor], int]:
        """Return model inputs on the device, and how many targets are predicted."""
        batch, targets = self._task.collate(sequences, self._pad)
        return {name: tensor.to(self.model.device) for name, tensor in batch.items()}, targets


class _Shift:
    """What is added to a round's steps besides the gradient of the loss.

    Args:
        trained: the parameters that are trained.
        state: where the round began.
        correction: float32[P] or None, see ``LocalTrainer.train``.
        proximal: strength of the pull toward ``state``, at least 0.
    """

    def __init__(
        self,
        trained: dict[str, torch.nn.Parameter],
        state: AdapterState,
        correction: torch.Tensor | None,
        proximal: float,
    ):
        self.trained = trained
        self._proximal = proximal
        self._origin = self._views(state) if proximal else {}
        self._correction = self._views(AdapterState(state.spec, correction)) if correction is not None else {}

    def _views(self, state: AdapterState) -> dict[str, torch.Tensor]:
        trained = self.trained
        return {name: view.to(trained[name].device) for name, view in state.tensors() if name in trained}

    @torch.no_grad()
    def pull_back(self) -> None:
        """Add the gradient of proximal / 2 * |x - x_start|^2 (FedProx, arXiv 1812.06127)."""
        for name, origin in self._origin.items():
            gradient = self.trained[name].grad
            assert gradient is not None
            gradient.add_(self.trained[name] - origin, alpha=self._proximal)

    @torch.no_grad()
    def add_correction(self) -> None:
        for name, correction in self._correction.items():
            self.trained[name].add_(correction)


def _belongs(name: str, trainable: TrainableFactors) -> bool:
    return trainable == "all" or ("lora_A" in name) == (trainable == "a")


def _adamw(parameters: list[torch.nn.Parameter], config: PeerConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)


def _sgd(parameters: list[torch.nn.Parameter], config: PeerConfig) -> torch.optim.Optimizer:
    """No momentum: methods that need it bring their own across rounds."""
    return torch.optim.SGD(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)


OPTIMIZERS: dict[str, Callable[[list[torch.nn.Parameter], PeerConfig], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "sgd": _sgd,
}
"""What takes local steps. A new one stands in ``LOCAL_OPTIMIZERS`` of ``config.py`` too, and its moments in ``save``
and ``load``."""
