"""Using a finished adapter: measure it on files, or talk to it. The exported folder is all that is needed.

The adapter is loaded as anyone would, with plain peft (a whole model with transformers alone); no network, no training
process.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from peft import PeftModel
from safetensors import SafetensorError

from gossip.errors import LocalError
from peer.config import PeerConfig
from peer.training import base_models, data, libraries, tasks
from peer.training.adapted_model import label_options
from peer.training.export import load_line_of
from peer.training.frames import LABELS_FILE
from peer.training.libraries import BaseModel, Tokenizer
from peer.training.readers import DataError
from peer.training.sequences import Tokens
from peer.training.task import Task
from peer.training.task import measure as measure_sequences

BATCH = 8
"""Sequences measured at a time. Source: guess; memory stays under 1 GB with the default model."""
TEMPERATURE = 0.8
"""Of drawn continuations. Source: guess; at 1 small models misspell, and greedily they repeat themselves."""


def load_adapter(folder: Path) -> tuple[BaseModel, Tokenizer]:
    """Return ``(model, tokenizer)`` of an exported folder: an adapter on its base, or a whole model.

    A classification's head says the labels' names (``config.id2label``).

    Raises:
        LocalError: not an export, or its base model cannot be found.
    """
    libraries.silence()
    labels = labels_of(folder)
    if _is_whole(folder):
        return load_model(folder, labels)
    source = base_models.resolve(base_name(folder))
    base, tokenizer = load_model(source.folder, labels)
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


def base_name(folder: Path) -> str:
    """Return what an exported folder calls its base model.

    Raises:
        LocalError: not an export.
    """
    name = "config.json" if _is_whole(folder) else "adapter_config.json"
    try:
        return str(_read(folder, name)["base_model_name_or_path"])
    except KeyError:
        raise LocalError(f"{folder}/{name} does not name the base model (base_model_name_or_path)") from None


def load_model(folder: Path, labels: tuple[str, ...]) -> tuple[BaseModel, Tokenizer]:
    """Return ``(model, tokenizer)`` of a folder with a whole model; ``labels``: what it gives to texts, () if nothing.

    Raises:
        LocalError: it cannot be loaded.
    """
    task = _task(labels)
    try:
        model: BaseModel = getattr(transformers, task.loader).from_pretrained(
            folder, dtype="auto", local_files_only=True, **label_options(labels)
        )
        tokenizer = libraries.load_tokenizer(folder)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise LocalError(f"cannot load a model from {folder}: {error}") from error
    task.prepare_base(
        model, (), tokenizer.pad_token_id or 0, 0
    )  # as in training; nothing is drawn from the seed
    model.eval()
    return model, tokenizer


class Measurement(NamedTuple):
    """What one file says of an adapter, over all of its rows.

    Attributes:
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

    Args:
        max_length: tokens per sequence, at least 1.

    Raises:
        LocalError: the adapter or a file cannot be used.
    """
    labels = labels_of(adapter)
    config, task = config_of(labels, max_length=max_length), _task(labels)
    loaded = [(file, data.load([file], labels=labels).rows) for file in files]
    model, tokenizer = load_adapter(adapter)
    task.check_base(config, model, ())
    base = base_of(adapter)
    pad = tokenizer.pad_token_id or 0
    for file, rows in loaded:
        sequences, bad = task.tokenize(rows, tokenizer, config)
        if not sequences:
            reason = bad[0] if bad else "all of its rows are too short"
            raise DataError(f"{file} has nothing to measure: {reason}")
        if labels:
            yield _measured_labels(file, task, model, sequences, pad)
        else:
            yield _measured_text(file, task, model, base, sequences, pad)


def base_of(adapter: Path) -> BaseModel | None:
    """Return the base model that a folder with a whole model began as; None of an adapter, which can be switched
    off."""
    if not _is_whole(adapter) or labels_of(adapter):
        return None
    return load_model(base_models.resolve(base_name(adapter)).folder, ())[0]


@contextmanager
def without_adapter(model: BaseModel, base: BaseModel | None) -> Iterator[BaseModel]:
    """Yield the base model alone: ``base``, or without it ``model`` with its adapter switched off."""
    if base is not None:
        yield base
        return
    with model.disable_adapter():
        yield model


def _measured_labels(
    file: Path, task: Task, model: BaseModel, sequences: Sequence[Tokens], pad: int
) -> Measurement:
    sums = measure_sequences(task, model, sequences, BATCH, pad)
    commonest = max(Counter(text.label for text in sequences).values())
    return Measurement(
        file, sums.loss / sums.targets, None, sums.correct / sums.targets, commonest / sums.targets
    )


def _measured_text(
    file: Path, task: Task, model: BaseModel, base: BaseModel | None, sequences: Sequence[Tokens], pad: int
) -> Measurement:
    """Measure the model, and the base alone (see ``without_adapter``)."""
    sums = measure_sequences(task, model, sequences, BATCH, pad)
    with without_adapter(model, base) as alone:
        before = measure_sequences(task, alone, sequences, BATCH, pad)
    return Measurement(file, sums.loss / sums.targets, before.loss / before.targets)


def config_of(labels: tuple[str, ...], **options: Any) -> PeerConfig:
    """Return the settings with which an adapter that gives these labels, or none, is measured."""
    return PeerConfig.of(task="classification" if labels else "causal-lm", labels=labels, **options)


def _task(labels: tuple[str, ...]) -> Task:
    return tasks.TASKS[config_of(labels).model.task]


@torch.no_grad()
def continued(folder: Path, start: str, tokens: int, seed: int) -> str:
    """Return how a model goes on with a text, drawn at ``TEMPERATURE``: the same for the same seed.

    Args:
        folder: an exported adapter or whole model, or a base model.
        start: the text's beginning, at least one token.
        tokens: how many at most.

    Raises:
        LocalError: the model cannot be loaded.
    """
    model, tokenizer = load_adapter(folder)
    inputs = tokenizer(start, add_special_tokens=False, return_tensors="pt")
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        output = model.generate(
            **inputs,
            max_new_tokens=tokens,
            do_sample=True,
            temperature=TEMPERATURE,
            pad_token_id=tokenizer.pad_token_id,
        )
    return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


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
                f"    {load_line_of(adapter, config_of(labels).model)}"
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
        answer = output[0, inputs["input_ids"].shape[1] :]
        words = self._tokenizer.decode(answer, skip_special_tokens=True).strip()
        self._messages.append({"role": "assistant", "content": words})
        return words
