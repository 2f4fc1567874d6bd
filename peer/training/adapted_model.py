"""A frozen base model with one adapter on it: loaded once, and lent to as many peers as one process plays.

The adapter's values come and go as one flat vector, so that many peers can train on one base in memory. What is a
peer's own (data, optimizer, generators) is ``local_trainer.py``'s; which tensors an adapter has is
``adapter_kinds.py``'s.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor

from gossip.adapter import AdapterSpec, AdapterState
from gossip.errors import LocalError
from peer.config import OPTIONS, PeerConfig
from peer.learning_options import ModelOptions
from peer.options import Role, names_with
from peer.training import (
    adapter_export,
    adapter_kinds,
    adapter_tensors,
    base_models,
    fresh_models,
    libraries,
    tasks,
)
from peer.training.frames import Export, Progress
from peer.training.libraries import BaseModel, Tokenizer

SHAPING = names_with(Role.MODEL, OPTIONS)
"""Options that a model is built from: peers that share one must agree on them. (max_length is one, because a prompt
takes its positions from what is left of it.)"""


class AdaptedModel:
    """A base model, its tokenizer and an adapter; whoever computes with it puts its own values in first.

    Attributes:
        config: the settings it was built from.
        source: where the base model lies.
        device: "cpu", "cuda" or "mps".
        tokenizer, module: of transformers and peft.
        parameters: the trained parameters by the names that files and peers use, in wire order.
        spec: layout of the adapter.
        initial: the seeded adapter all peers of the run start from.
        generators: states of torch's generators after the adapter was drawn: where each peer's own begin.
        base_parameters: parameters of the base.
        export: how the adapter becomes a folder that peft or transformers loads.
        manifest: what must be equal among peers (see ``frames.Ready``).

    Raises:
        LocalError: the model, a target module, a layer or the device does not exist.
    """

    def __init__(self, config: PeerConfig, progress: Progress | None = None):
        self.config = config
        libraries.silence()
        torch.set_num_threads(config.model.threads or os.cpu_count() or 1)
        self.device = _device(config.model)
        self.source = _source(config, progress)
        if progress is not None:
            progress("load", None)
        self.tokenizer = _load_tokenizer(self.source)
        base = _load_base(self.source, config, self.device, self.tokenizer.pad_token_id or 0)
        self.base_parameters: int = base.num_parameters()
        torch.manual_seed(config.run.seed)  # right here: every peer then draws the same lora_A, on the CPU
        self.module = self._adapted(base)
        if not config.model.load_in_4bit:  # which bitsandbytes has put onto its device already
            self.module.to(self.device)
        self.generators = generators(self.device)
        parameters = adapter_tensors.trained_parameters(self.module)
        self.parameters = {name: parameters[name] for name in sorted(parameters)}
        self.spec = AdapterSpec.of(self.parameters)
        self.initial = self.state()
        self.export: Export = adapter_export.export(self.module, self.source, config.model.labels)
        stored = str(next(base.parameters()).dtype).removeprefix("torch.")
        self.manifest: Mapping[str, str] = {
            "base_digest": base_models.model_digest(self.source.folder),
            "base_dtype": "nf4" if config.model.load_in_4bit else stored,
            "tokenizer_digest": base_models.tokenizer_digest(self.tokenizer),
            "adapter_digest": self.initial.digest(),
            "adapter_spec": self.spec.fingerprint,
            "adapter_frozen": adapter_tensors.frozen_digest(self.module),
        }

    def _adapted(self, base: BaseModel) -> BaseModel:
        """Return the base with the adapter on it."""
        try:
            return adapter_kinds.attach(self.config, base)
        except ValueError as error:
            raise LocalError(
                f"adapter {self.config.model.adapter} does not fit {self.source.name}: {error}. The kind that fits "
                "most models is lora."
            ) from error

    def check(self, config: PeerConfig) -> None:
        """Refuse to be lent to a peer whose settings want another model.

        Raises:
            LocalError: the first setting that differs.
        """
        for name in SHAPING:
            ours, theirs = self.config.option(name), config.option(name)
            if ours != theirs:
                raise LocalError(
                    f"{name} is {theirs!r}, but the model in memory was built with {ours!r}: peers that share one "
                    "must agree. Give this peer the same setting, or a model of its own."
                )

    def state(self) -> AdapterState:
        """Return a copy of the adapter as it is now."""
        return AdapterState.from_tensors(self.parameters)

    @torch.no_grad()
    def put(self, state: AdapterState) -> None:
        """Copy values into the parameters; replacing them would leave optimizers with the old ones.

        Raises:
            LocalError: ``state`` is of another layout (our bug).
        """
        if state.spec != self.spec:
            raise LocalError("the adapter given has another layout than the one trained here")
        for name, view in state.tensors():
            self.parameters[name].copy_(view)


def generators(device: str) -> dict[str, Tensor]:
    """Return the states of torch's default generators that a step on ``device`` draws from, by device."""
    states = {"cpu": torch.get_rng_state()}
    if device in ("cuda", "mps"):
        states[device] = getattr(torch, device).get_rng_state()
    return states


def set_generators(states: Mapping[str, Tensor]) -> None:
    """Inverse of ``generators``."""
    for device, state in states.items():
        (torch if device == "cpu" else getattr(torch, device)).set_rng_state(state)


def _device(model: ModelOptions) -> str:
    """Return the device to use; the one asked for must exist."""
    exists = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    device = model.device
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if exists[name])
    if not exists[device]:
        raise LocalError(f"no device {device!r} on this machine; use device cpu or auto")
    if model.load_in_4bit:
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


def _source(config: PeerConfig, progress: Progress | None) -> base_models.ModelSource:
    """Return where the model to begin with lies: an untrained one, or one by its name."""
    model = config.model
    if model.from_scratch:
        return fresh_models.resolve(model.from_scratch, model.tokenizer, config.run.seed, progress)
    return base_models.resolve(model.model, progress)


def _load_tokenizer(source: base_models.ModelSource) -> Tokenizer:
    try:
        return libraries.load_tokenizer(source.folder)
    except (OSError, ValueError, KeyError) as error:
        raise LocalError(
            f"cannot load the tokenizer of {source.name} from {source.folder}: {error}"
        ) from error


def _load_base(source: base_models.ModelSource, config: PeerConfig, device: str, pad: int) -> BaseModel:
    """Load the frozen base: with its dtype on disk, its weights stay a mapping of the file, shared by peers."""
    task = tasks.TASKS[config.model.task]
    try:
        base, loading = getattr(transformers, task.loader).from_pretrained(
            source.folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **_loading_options(config.model, device),
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise LocalError(
            f"cannot load {source.name} from {source.folder} for {config.model.task}: {error}"
        ) from error
    task.check_base(config, base, loading["missing_keys"])
    task.prepare_base(base, loading["missing_keys"], pad, config.run.seed)
    base.config.use_cache = False  # a cache of keys is of no use in training
    return base


def _loading_options(model: ModelOptions, device: str) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` that our options decide."""
    options: dict[str, Any] = {"dtype": model.dtype if model.dtype == "auto" else getattr(torch, model.dtype)}
    if model.load_in_4bit:
        options["quantization_config"] = transformers.BitsAndBytesConfig(  # type: ignore[no-untyped-call]  # untyped there
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        options["device_map"] = {"": device}
    return {**options, **label_options(model.labels)}


def label_options(labels: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` that name a head's outputs; none without labels."""
    if not labels:
        return {}
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }
