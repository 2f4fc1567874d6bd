"""Local training: a frozen base, one adapter on it, AdamW steps on this peer's own rows, held-out losses.

The adapter comes and goes as one flat vector; optimizer, generators and sampler stay here and are saved as
safetensors with JSON beside the tensors. It runs in a process of its own (``training_process.py``), because
it imports transformers and peft; nothing else but ``models.py`` and ``data.py`` meets them. It knows
nothing of peers, rounds or mixing.
"""

from __future__ import annotations

import copy
import json
import math
import os
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from gossip.adapter import AdapterSpec, AdapterState
from gossip.errors import LocalError
from peer import adapter_kinds, data, models
from peer.config import PeerConfig
from peer.data import IGNORED, BatchSampler, DataError, Tokens
from peer.durable import write_atomically
from peer.frames import Evaluated, OnStep, Progress, Step, Trained

NON_FINITE_MAX = 3
"""So many steps in a row without a finite loss or gradient end the run. Source: guess; one can be a bad
batch."""


class Diverged(LocalError):
    """The loss is not a number any more; more steps would not bring it back."""

    exit_code = 9


class LocalTrainer:
    """One peer's base model, adapter, data and optimizer.

    Attributes:
        spec: layout of the adapter.
        initial: the seeded adapter all peers of the run start from.
        adapter_config_json: what goes beside exported weights as adapter_config.json.
        manifest: what must be equal among peers (see ``frames.Ready``).
        source: where the base model lies.
        device: "cpu", "cuda" or "mps".
        report: what was read, as text for a human.
        rows, rows_held_out, sequences, base_parameters: sizes.

    Raises:
        LocalError: the model, a target module, a layer or the device does not exist.
        DataError: the data cannot be used.
    """

    def __init__(self, config: PeerConfig, progress: Progress | None = None, cache: Path | None = None):
        self.config = config
        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()
        # transformers warns of its own deprecated attribute, which peft reads: nothing a user can act on
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        adapter_kinds.ignore_remarks()
        torch.set_num_threads(config.threads or os.cpu_count() or 1)
        self.device = _device(config)
        self.source = models.resolve(config.model, cache, progress)
        if progress is not None:
            progress("load", None)
        self._tokenizer = _load_tokenizer(self.source)
        self._read_data()
        base = _load_base(self.source, config, self.device)
        self.base_parameters = base.num_parameters()
        self._build_adapter(base)
        self._pad = self._tokenizer.pad_token_id or 0
        self._sampler = BatchSampler(self.sequences, config.batch_size, config.seed)
        self._non_finite = 0

    def _read_data(self) -> None:
        """Read and tokenize the shard; held-out rows of it and of ``eval_data`` become ``_shards``."""
        config, tokenizer = self.config, self._tokenizer
        if not config.data:
            raise DataError("no data to train on: give at least one file")
        loaded = data.load(config.data, bad_rows=config.bad_rows)
        train, held = data.split(loaded.rows, config.held_out, config.seed)
        self._train, bad = data.tokenize(train, tokenizer, config.max_length)
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
                others = data.load([file], bad_rows=config.bad_rows).rows
                sequences = self._held_out(data.split(others, config.held_out, config.seed)[1])
                if not sequences:
                    raise DataError(f"eval_data {file}: no held-out sequence is left after tokenizing")
                self._shards[file.resolve()] = sequences
        self.rows, self.rows_held_out, self.sequences = len(train), len(held), len(self._train)
        self.report = data.Loaded(loaded.rows, tuple(bad)).report(data.render(train[0], tokenizer))

    def _held_out(self, rows: Sequence[data.Row]) -> list[Tokens]:
        sequences, _ = data.tokenize(rows, self._tokenizer, self.config.max_length)
        return sequences[: self.config.eval_blocks_max]

    def _build_adapter(self, base: Any) -> None:
        config = self.config
        peft_config = adapter_kinds.ADAPTERS[config.adapter](config, base)
        torch.manual_seed(config.seed)  # right here: every peer then draws the same lora_A, on the CPU
        try:
            self._model = get_peft_model(base, peft_config)
        except ValueError as error:
            raise LocalError(
                f"adapter {config.adapter} does not fit {self.source.name}: {error}. The kind that fits most models "
                "is lora."
            ) from error
        adapter_kinds.settle(self._model)
        if not config.load_in_4bit:  # which bitsandbytes has put onto its device already
            self._model.to(self.device)
        self._parameters = {
            name: parameter for name, parameter in self._model.named_parameters() if parameter.requires_grad
        }
        # These tensors share memory with the parameters, under the names that files and peers use.
        self._tensors = adapter_kinds.trained_tensors(self._model)
        self.spec = AdapterSpec.of(self._tensors)
        self.initial = self.adapter_state()
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.adapter_config_json = _adapter_config_json(peft_config, self.source)
        stored = str(next(base.parameters()).dtype).removeprefix("torch.")
        self.manifest: Mapping[str, str] = {
            "base_digest": models.model_digest(self.source.folder),
            "base_dtype": "nf4" if config.load_in_4bit else stored,
            "tokenizer_digest": models.tokenizer_digest(self._tokenizer),
            "adapter_digest": self.initial.digest(),
            "adapter_spec": self.spec.fingerprint,
            "adapter_frozen": adapter_kinds.frozen_digest(self._model),
        }

    def adapter_state(self) -> AdapterState:
        """Return a copy of the adapter as it is now."""
        return AdapterState.from_tensors(self._tensors)

    def train(self, state: AdapterState, on_step: OnStep | None = None) -> Trained:
        """Take ``local_steps`` AdamW steps from ``state``; the optimizer's moments go on from the last call.

        Raises:
            Diverged: ``NON_FINITE_MAX`` steps in a row had no finite loss or gradient (each was left out).
        """
        self._put(state)
        self._model.train()
        start = time.monotonic()
        loss_sum, tokens, sequences = 0.0, 0, 0
        for step in range(1, self.config.local_steps + 1):
            batch, targets = self._batch([self._train[index] for index in self._sampler.draw()])
            loss = self._model(**batch).loss
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), self.config.max_grad_norm)
            value = loss.item()
            if math.isfinite(value) and math.isfinite(norm.item()):
                self._optimizer.step()
                self._non_finite = 0
                loss_sum, tokens, sequences = (
                    loss_sum + value * targets,
                    tokens + targets,
                    sequences + len(batch["labels"]),
                )
            else:
                self._non_finite += 1
                if self._non_finite == NON_FINITE_MAX:
                    raise Diverged(
                        f"loss {value}, gradient norm {norm.item()}: not finite for {NON_FINITE_MAX} steps in a "
                        f"row. Lower learning_rate (now {self.config.learning_rate:g}), or train in float32."
                    )
            self._optimizer.zero_grad(set_to_none=True)
            if on_step is not None:
                on_step(Step(step, self.config.local_steps, value, targets))
        mean = loss_sum / tokens if tokens else math.nan
        seconds = time.monotonic() - start
        return Trained(self.adapter_state(), mean, self.config.local_steps, sequences, tokens, seconds)

    @torch.no_grad()
    def evaluate(self, state: AdapterState) -> Evaluated:
        """Return held-out losses of ``state``; the shards are files, our own and those of ``eval_data``."""
        self._put(state)
        self._model.eval()
        sums = {file: self._loss_sum(sequences) for file, sequences in self._shards.items() if sequences}
        own = [sums[file.resolve()] for file in self.config.data if file.resolve() in sums]
        means = {file: loss / tokens for file, (loss, tokens) in sums.items()}
        per_file = {
            str(file): means[file.resolve()] for file in self.config.eval_data if file.resolve() in means
        }
        return Evaluated(
            own=sum(loss for loss, _ in own) / sum(tokens for _, tokens in own),
            all=sum(means.values()) / len(means) if self.config.eval_data else None,
            per_file=per_file,
        )

    def save(self, path: Path) -> None:
        """Write optimizer, generators and sampler to the file ``path``, whole or not at all.

        Raises:
            LocalError: the disk is full, or the folder cannot be written.
        """
        tensors = {"generator.cpu": torch.get_rng_state()}
        if self.device == "cuda":
            tensors["generator.cuda"] = torch.cuda.get_rng_state()
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
            LocalError: no such file, not one of ours, or made with another adapter or other data.
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
        self._sampler.restore(written["sampler"])
        self._non_finite = written["non_finite"]
        torch.set_rng_state(tensors["generator.cpu"])
        if self.device == "cuda" and "generator.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["generator.cuda"])
        for name, parameter in self._parameters.items():
            if f"optimizer.step.{name}" in tensors:
                self._optimizer.state[parameter] = {
                    "step": tensors[f"optimizer.step.{name}"],
                    "exp_avg": tensors[f"optimizer.exp_avg.{name}"].to(parameter.device),
                    "exp_avg_sq": tensors[f"optimizer.exp_avg_sq.{name}"].to(parameter.device),
                }

    @torch.no_grad()
    def _put(self, state: AdapterState) -> None:
        """Copy values into the parameters; replacing them would leave the optimizer with the old ones."""
        if state.spec != self.spec:
            raise LocalError("the adapter given has another layout than the one trained here")
        for name, view in state.tensors():
            self._tensors[name].copy_(view)

    def _batch(self, sequences: Sequence[Tokens]) -> tuple[dict[str, torch.Tensor], int]:
        """Return model inputs on the device, and how many tokens are predicted (the first of a row never
        is)."""
        batch = data.collate(sequences, self._pad)
        targets = int((batch["labels"][:, 1:] != IGNORED).sum())
        return {name: tensor.to(self.device) for name, tensor in batch.items()}, targets

    def _loss_sum(self, sequences: Sequence[Tokens]) -> tuple[float, int]:
        loss, tokens = 0.0, 0
        for start in range(0, len(sequences), self.config.batch_size):
            batch, targets = self._batch(sequences[start : start + self.config.batch_size])
            loss += self._model(**batch).loss.item() * targets
            tokens += targets
        return loss, tokens


def _device(config: PeerConfig) -> str:
    """Return the device to use; the one asked for must exist."""
    exists = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    device = config.device
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if exists[name])
    if not exists[device]:
        raise LocalError(f"no device {device!r} on this machine; use device cpu or auto")
    if config.load_in_4bit:
        if device != "cuda":
            raise LocalError(
                f"load_in_4bit needs a CUDA device; this run would use {device!r}. Leave it off."
            )
        try:
            import bitsandbytes as _quantizer  # noqa: F401
        except ImportError as error:
            raise LocalError(
                "load_in_4bit needs the package bitsandbytes: pip install 'gossip-peer[quantized]'"
            ) from error
    return device


def _load_tokenizer(source: models.ModelSource) -> Any:
    try:
        return AutoTokenizer.from_pretrained(source.folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise LocalError(
            f"cannot load the tokenizer of {source.name} from {source.folder}: {error}"
        ) from error


def _load_base(source: models.ModelSource, config: PeerConfig, device: str) -> Any:
    """Load the frozen base: with its dtype on disk, its weights stay a mapping of the file, shared by
    peers."""
    options: dict[str, Any] = {
        "dtype": config.dtype if config.dtype == "auto" else getattr(torch, config.dtype)
    }
    if config.load_in_4bit:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        options["device_map"] = {"": device}
    try:
        base = AutoModelForCausalLM.from_pretrained(
            source.folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, **options
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise LocalError(f"cannot load {source.name} from {source.folder} as a causal LM: {error}") from error
    base.config.use_cache = False  # a cache of keys is of no use in training
    return base


def _adapter_config_json(peft_config: PeftConfig, source: models.ModelSource) -> str:
    """Return adapter_config.json as peft writes it, with lists in a fixed order."""
    peft_config = copy.copy(peft_config)  # the model reads its own, which is being trained
    peft_config.base_model_name_or_path = source.reference
    peft_config.inference_mode = True
    with tempfile.TemporaryDirectory() as folder:
        peft_config.save_pretrained(folder)
        written = json.loads((Path(folder) / "adapter_config.json").read_text())
    for modules in ("target_modules", "feedforward_modules"):
        if isinstance(written.get(modules), list):
            written[modules].sort()
    return json.dumps(written, indent=2, sort_keys=True)
