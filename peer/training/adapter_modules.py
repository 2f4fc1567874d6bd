"""Which modules of a base model get an adapter: from the user's names and layers to what peft is told.

It meets torch modules, but neither peft nor an optimizer.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import torch

from gossip.errors import LocalError
from peer.config import OPTIONS
from peer.learning_options import ModelOptions
from peer.training import tasks
from peer.training.libraries import BaseModel

ATTENTION = {
    "bert": ("query", "key", "value"),
    "roberta": ("query", "key", "value"),
    "xlm-roberta": ("query", "key", "value"),
    "electra": ("query", "key", "value"),
    "mpnet": ("q", "k", "v", "o"),
    "distilbert": ("q_lin", "k_lin", "v_lin", "out_lin"),
    "deberta-v2": ("query_proj", "key_proj", "value_proj"),
    "modernbert": ("Wqkv", "Wo"),
    "gpt_neox": ("query_key_value", "dense"),
}
"""Attention's matrices by model type, where they are not called as the default of ``lora_target_modules`` says. Source:
transformers' module names; BERT's output is left out, because "dense" also names other layers there."""

ALL_LINEAR = ("all-linear",)
"""Stands for every linear module but the heads."""


def target_modules(model: ModelOptions, base: BaseModel) -> tuple[str, ...]:
    """Return the modules to adapt: as given, or attention's as this model calls them where the default was left."""
    given = model.lora_target_modules
    if given != OPTIONS["lora_target_modules"].default:
        return given
    return ATTENTION.get(base.config.model_type, given)


def layers(model: ModelOptions, base: BaseModel) -> list[int] | None:
    """Return the layers to adapt, numbered from 0, in order; None for all of them.

    Raises:
        LocalError: ``lora_layers`` is not like "18-29" or "0,5,7-9", or the model has no such layer.
    """
    text = model.lora_layers
    if not text:
        return None
    count = base.config.get_text_config().num_hidden_layers
    numbers: list[int] = []
    try:
        for span in text.split(","):
            first, _, last = span.partition("-")
            numbers += range(int(first), int(last or first) + 1)
    except ValueError:
        raise LocalError(f'lora_layers must look like "18-29" or "0,5,7", not {text!r}') from None
    if not numbers or max(numbers) >= count:
        raise LocalError(f"lora_layers {text!r}: the model has layers 0 to {count - 1}")
    return sorted(set(numbers))


def linear_modules(model: ModelOptions, base: BaseModel) -> dict[str, torch.nn.Linear]:
    """Return the linear modules meant by ``lora_target_modules``, by full name; never an output head.

    Raises:
        LocalError: the model has no linear module of a name given.
    """
    linear = {name: module for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)}
    targets = target_modules(model, base)
    if targets == ALL_LINEAR:
        output_head, heads = base.get_output_embeddings(), tasks.TASKS[model.task].head_modules(base)
        return {
            name: module
            for name, module in linear.items()
            if module is not output_head and name.partition(".")[0] not in heads
        }
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            raise LocalError(
                f"lora_target_modules: the model has no linear module {target!r}; it has "
                f"{', '.join(sorted({name.rpartition('.')[2] for name in linear}))}. Use some of these, or all-linear."
            )
    endings = tuple(f".{target}" for target in targets)
    return {name: module for name, module in linear.items() if f".{name}".endswith(endings)}


def module_options(model: ModelOptions, base: BaseModel) -> dict[str, Any]:
    """Return the arguments of peft that choose modules, for the kinds that know of layers.

    Raises:
        LocalError: the model has no such module or layer.
    """
    linear_modules(model, base)  # refuses names that the model does not have
    targets = target_modules(model, base)
    return {
        "task_type": "CAUSAL_LM",
        "target_modules": "all-linear" if targets == ALL_LINEAR else list(targets),
        "layers_to_transform": layers(model, base),
    }


def in_layers(names: Collection[str], numbers: list[int] | None) -> list[str] | str:
    """Return module names, or the pattern that keeps them to some layers, for kinds of adapter that know of none."""
    if numbers is None or not names:
        return sorted(names)
    layer, endings = "|".join(map(str, numbers)), "|".join(map(re.escape, sorted(names)))
    return rf".*\.(?:{layer})\.(?:.*\.)?(?:{endings})"
