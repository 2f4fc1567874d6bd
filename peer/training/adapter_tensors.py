"""Which tensors of an adapted model are trained and travel, which all peers hold alike, and under which names.

Every kind trains the very tensors that it saves, so that the mean of peers' files is the mean of what they learned.
This file meets peft and torch modules; it knows nothing of optimizers, data or peers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from torch import Tensor

from gossip.errors import LocalError
from peer.training import lora_xs
from peer.training.libraries import BaseModel

EMBEDDINGS = "prompt_embeddings"
"""The one name under which peft saves a learned prompt or prefix."""


LoraModule: TypeAlias = Any
"""A ``LoraLayer`` of peft: what its dictionaries of modules hold has no types."""


def lora_layers(model: BaseModel) -> Iterator[tuple[str, LoraModule]]:
    """Yield the layers that LoRA has put in place of others, with their full names."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))


def _has_cores(model: BaseModel) -> bool:
    return any(isinstance(module, lora_xs.CoreFactor) for module in model.modules())


def trained_parameters(model: BaseModel) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that are trained, under the names of files.

    Raises:
        LocalError: the kind saves other tensors than it trains.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not isinstance(model, PeftModel):
        return trained
    saved = _saved_tensors(model)
    parameters = {parameter.data_ptr(): parameter for parameter in trained.values()}
    # peft saves a copy of a prompt. Without an encoder in between, it is a copy of the one trained tensor.
    if set(saved) == {EMBEDDINGS} and len(parameters) == 1:
        (parameter,) = parameters.values()
        if torch.equal(saved[EMBEDDINGS].cpu(), parameter.detach().cpu()):
            return {EMBEDDINGS: parameter}
    places = {tensor.data_ptr() for tensor in saved.values()}
    if places != set(parameters) or len(places) != len(saved):
        raise LocalError("this kind of adapter trains other tensors than it saves: it cannot be mixed")
    return {name: parameters[tensor.data_ptr()] for name, tensor in saved.items()}


def _saved_tensors(model: PeftModel) -> dict[str, Tensor]:
    """Return what peft saves of a model; of lora-xs its cores alone, under names of ours."""
    tensors: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    if not _has_cores(model):
        return tensors
    return {
        name.replace(".lora_B.core", lora_xs.CORE): tensor
        for name, tensor in tensors.items()
        if not name.endswith(lora_xs.DOWN)
    }


def frozen_factors(model: BaseModel) -> dict[str, Tensor]:
    """Return A0 and B0 of every core, under the names that LoRA's pair has in files; empty without cores."""
    if not _has_cores(model):
        return {}
    factors = {}
    for name, layer in lora_layers(model):
        factors[name + lora_xs.DOWN] = layer.lora_A[model.active_adapter].weight.detach()
        factors[name + lora_xs.UP] = layer.lora_B[model.active_adapter].basis
    return factors


def frozen_digest(model: BaseModel) -> str:
    """Return SHA-256 (hex) of what peers derive or draw alike and never send; "" without any.

    That is VeRA's random projections, and the outer factors of lora-xs.
    """
    frozen = {name: buffer for name, buffer in model.named_buffers() if ".vera_" in name}
    frozen |= frozen_factors(model)
    digest = hashlib.sha256()
    for name in sorted(frozen):
        digest.update(f"{name} {tuple(frozen[name].shape)}".encode())
        digest.update(frozen[name].cpu().float().contiguous().numpy().astype("<f4", copy=False).data)
    return digest.hexdigest() if frozen else ""
