"""Using a finished adapter: measure it on files, or talk to it. The exported folder is all that is needed.

The adapter is loaded as anyone would, with plain peft (a whole model with transformers alone); no network, no training
process.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from gossip.errors import LocalError
from peer import adapter_kinds, data, models

BATCH = 8
"""Sequences measured at a time. Source: guess; memory stays under 1 GB with the default model."""


def load_adapter(folder: Path) -> tuple[Any, Any]:
    """Return ``(model, tokenizer)`` of an exported folder: an adapter on its base, or a whole model.

    Raises:
        LocalError: not an export, or its base model cannot be found.
    """
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    # transformers warns of its own deprecated attribute, which its own code reads; nothing a user can act on
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    adapter_kinds.ignore_remarks()
    if _is_whole(folder):
        return _load_model(folder)
    source = models.resolve(_base_name(folder, "adapter_config.json"))
    base, tokenizer = _load_model(source.folder)
    try:
        model = PeftModel.from_pretrained(base, folder)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise LocalError(f"cannot load the adapter {folder} onto {source.name}: {error}") from error
    model.eval()
    return model, tokenizer


def _is_whole(folder: Path) -> bool:
    """Say whether the folder holds a model (adapter ``full``) and not an adapter."""
    return (folder / "config.json").is_file() and not (folder / "adapter_config.json").exists()


def _base_name(folder: Path, name: str) -> str:
    try:
        return str(json.loads((folder / name).read_text())["base_model_name_or_path"])
    except FileNotFoundError:
        raise LocalError(f"{folder} is not an adapter: it has no {name}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LocalError(f"{folder}/{name} cannot be read: {error}") from error


def _load_model(folder: Path) -> tuple[Any, Any]:
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise LocalError(f"cannot load a model from {folder}: {error}") from error
    model.eval()
    return model, tokenizer


def losses(adapter: Path, files: Sequence[Path], max_length: int) -> Iterator[tuple[Path, float, float]]:
    """Yield ``(file, base loss, adapter loss)``: token means over all rows of each file, nats.

    Raises:
        LocalError: the adapter or a file cannot be used.
    """
    loaded = [(file, data.load([file]).rows) for file in files]
    model, tokenizer = load_adapter(adapter)
    base = None
    if _is_whole(adapter):
        base, _ = _load_model(models.resolve(_base_name(adapter, "config.json")).folder)
    for file, rows in loaded:
        sequences, bad = data.tokenize(rows, tokenizer, max_length)
        if not sequences:
            raise data.DataError(f"{file} has nothing to measure: {bad[0] if bad else 'all of its rows are too short'}")
        with model.disable_adapter() if base is None else nullcontext():
            before = _token_mean(base or model, tokenizer, sequences)
        yield file, before, _token_mean(model, tokenizer, sequences)


@torch.no_grad()
def _token_mean(model: Any, tokenizer: Any, sequences: Sequence[data.Tokens]) -> float:
    total, tokens = 0.0, 0
    for start in range(0, len(sequences), BATCH):
        batch = data.collate(sequences[start : start + BATCH], tokenizer.pad_token_id or 0)
        targets = int((batch["labels"][:, 1:] != data.IGNORED).sum())
        total += model(**batch).loss.item() * targets
        tokens += targets
    return total / tokens if tokens else math.nan


class Conversation:
    """A chat with a model and an adapter, remembering what was said.

    Args:
        adapter: exported adapter folder.
        max_new_tokens: longest answer, tokens.
    """

    def __init__(self, adapter: Path, max_new_tokens: int) -> None:
        self._model, self._tokenizer = load_adapter(adapter)
        self._max_new_tokens = max_new_tokens
        self._messages: list[dict[str, str]] = []

    @torch.no_grad()
    def answer(self, text: str) -> str:
        """Return the model's answer to ``text``, decoded greedily so that equal questions get equal answers."""
        self._messages.append({"role": "user", "content": text})
        if self._tokenizer.chat_template:
            inputs = self._tokenizer.apply_chat_template(
                self._messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        else:
            lines = "\n".join(message["content"] for message in self._messages)
            inputs = self._tokenizer(lines + "\n", return_tensors="pt")
        output = self._model.generate(
            **inputs,
            max_new_tokens=self._max_new_tokens,
            do_sample=False,
            pad_token_id=self._tokenizer.pad_token_id,
        )
        words = self._tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        self._messages.append({"role": "assistant", "content": words})
        return words
