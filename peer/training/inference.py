"""Using a finished adapter: measure it on files, or talk to it. The exported folder is all that is needed.

The adapter is loaded as anyone would, with plain peft (a whole model with transformers alone); no network, no training
process.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from gossip.errors import LocalError
from peer.config import PeerConfig
from peer.training import adapter_kinds, base_models, data, tasks
from peer.training.adapted_model import AUTO_CLASSES
from peer.training.export import load_line_of
from peer.training.frames import LABELS_FILE

BATCH = 8
"""Sequences measured at a time. Source: guess; memory stays under 1 GB with the default model."""


def load_adapter(folder: Path) -> tuple[Any, Any]:
    """Return ``(model, tokenizer)`` of an exported folder: an adapter on its base, or a whole model.

    A classification's head says the labels' names (``config.id2label``).

    Raises:
        LocalError: not an export, or its base model cannot be found.
    """
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    # transformers warns of its own deprecated attribute, which its own code reads; nothing a user can act on
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    adapter_kinds.ignore_remarks()
    labels = labels_of(folder)
    if _is_whole(folder):
        return _load_model(folder, labels)
    source = base_models.resolve(_base_name(folder, "adapter_config.json"))
    base, tokenizer = _load_model(source.folder, labels)
    try:
        model = PeftModel.from_pretrained(base, folder)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise LocalError(f"cannot load the adapter {folder} onto {source.name}: {error}") from error
    model.eval()
    return model, tokenizer


def labels_of(folder: Path) -> tuple[str, ...]:
    """Return the labels that an exported folder gives to texts, in the order of its head's outputs; () if it has none.

    Raises:
        LocalError: not an export, or a classification that does not say its labels.
    """
    if _is_whole(folder):
        written = _read(folder, "config.json")
        classifies = any("SequenceClassification" in name for name in written.get("architectures") or ())
    else:
        classifies = _read(folder, "adapter_config.json").get("task_type") == "SEQ_CLS"
    if not classifies:
        return ()
    path = folder / LABELS_FILE
    try:
        labels = json.loads(path.read_text())
    except FileNotFoundError:
        raise LocalError(
            f"{folder} gives labels to texts, but has no {LABELS_FILE} to name them: write one, a list of them in "
            'the order of the run\'s --labels, e.g. ["no", "yes"]'
        ) from None
    except (OSError, ValueError) as error:
        raise LocalError(f"{path} cannot be read: {error}") from error
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise LocalError(f'{path} is no list of labels, such as ["no", "yes"]')
    return tuple(labels)


def _is_whole(folder: Path) -> bool:
    """Say whether the folder holds a model (adapter ``full``) and not an adapter."""
    return (folder / "config.json").is_file() and not (folder / "adapter_config.json").exists()


def _read(folder: Path, name: str) -> dict[str, Any]:
    """Return what the file ``name`` of an export says."""
    try:
        written = json.loads((folder / name).read_text())
    except FileNotFoundError:
        raise LocalError(f"{folder} is not an adapter: it has no {name}") from None
    except (OSError, ValueError) as error:
        raise LocalError(f"{folder}/{name} cannot be read: {error}") from error
    if not isinstance(written, dict):
        raise LocalError(f"{folder}/{name} cannot be read: it holds no object")
    return written


def _base_name(folder: Path, name: str) -> str:
    try:
        return str(_read(folder, name)["base_model_name_or_path"])
    except KeyError:
        raise LocalError(f"{folder}/{name} does not name the base model (base_model_name_or_path)") from None


def _load_model(folder: Path, labels: tuple[str, ...]) -> tuple[Any, Any]:
    options: dict[str, Any] = {}
    if labels:
        options["id2label"] = dict(enumerate(labels))
        options["label2id"] = {label: index for index, label in enumerate(labels)}
    kind = AUTO_CLASSES["classification" if labels else "causal-lm"]
    try:
        model = kind.from_pretrained(folder, dtype="auto", local_files_only=True, **options)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise LocalError(f"cannot load a model from {folder}: {error}") from error
    if labels:  # as in training: the head computes in float32, and knows padding
        tasks.draw_head(_config_of(labels), model, (), tokenizer.pad_token_id or 0)
    model.eval()
    return model, tokenizer


class Measurement(NamedTuple):
    """What one file says of an adapter, over all of its rows.

    Args:
        file: the file.
        loss: nats per token; of a classification nats per text.
        base: the same of the base model alone; None of a classification, since the base has no head.
        accuracy: share of texts given the right label, 0 to 1; None but for a classification.
        commonest: share of texts with the file's commonest label: what always naming that one would get right; None
            likewise.
    """

    file: Path
    loss: float
    base: float | None = None
    accuracy: float | None = None
    commonest: float | None = None


def measure(adapter: Path, files: Sequence[Path], max_length: int) -> Iterator[Measurement]:
    """Yield what each file says of the exported folder ``adapter``.

    Raises:
        LocalError: the adapter or a file cannot be used.
    """
    labels = labels_of(adapter)
    config = _config_of(labels, max_length=max_length)
    task = tasks.TASKS[config.model.task]
    loaded = [(file, data.load([file], labels=labels).rows) for file in files]
    model, tokenizer = load_adapter(adapter)
    if labels:
        tasks.check_base(config, model, ())
    base = None
    if _is_whole(adapter) and not labels:
        base, _ = _load_model(base_models.resolve(_base_name(adapter, "config.json")).folder, ())
    for file, rows in loaded:
        sequences, bad = task.tokenize(rows, tokenizer, config)
        if not sequences:
            raise data.DataError(
                f"{file} has nothing to measure: {bad[0] if bad else 'all of its rows are too short'}"
            )
        pad = tokenizer.pad_token_id or 0
        found = tasks.measure(task, model, sequences, BATCH, pad)
        loss = found.loss / found.targets
        if labels:
            commonest = max(Counter(one.label for one in sequences).values())
            yield Measurement(file, loss, None, found.correct / found.targets, commonest / found.targets)
            continue
        with model.disable_adapter() if base is None else nullcontext():
            before = tasks.measure(task, base or model, sequences, BATCH, pad)
        yield Measurement(file, loss, before.loss / before.targets)


def _config_of(labels: tuple[str, ...], **settings: Any) -> PeerConfig:
    return PeerConfig.of(task="classification" if labels else "causal-lm", labels=labels, **settings)


class Conversation:
    """A chat with a model and an adapter, remembering what was said.

    Args:
        adapter: exported adapter folder.
        max_new_tokens: longest answer, tokens.

    Raises:
        LocalError: not an export, its base model cannot be found, or it gives labels and no answers.
    """

    def __init__(self, adapter: Path, max_new_tokens: int) -> None:
        if labels := labels_of(adapter):
            raise LocalError(
                f"{adapter} gives texts a label ({', '.join(labels)}) and cannot chat. Measure it with peer eval "
                f"--adapter {adapter} --data FILE, or load it in Python with\n"
                f"    {load_line_of(adapter, _config_of(labels))}"
            )
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
        words = self._tokenizer.decode(
            output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        ).strip()
        self._messages.append({"role": "assistant", "content": words})
        return words
