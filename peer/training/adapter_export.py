"""How an adapted model becomes a folder that plain peft, or transformers alone, loads: its files but the tensors.

What of it is written when, ``peer/checkpoints.py`` says.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from peft import PeftConfig, PeftModel

from gossip.adapter import AdapterState
from peer.training.adapter_tensors import frozen_factors
from peer.training.base_models import ModelSource
from peer.training.frames import LABELS_FILE, Export
from peer.training.libraries import BaseModel

COPIED = (".json", ".jinja", ".model", ".txt")
"""Endings of a model folder's files that make its tokenizer. Source: what ``base_models.py`` fetches."""


def export(model: BaseModel, source: ModelSource, labels: Sequence[str] = ()) -> Export:
    """Return how the values of ``model`` become a folder that peft, or transformers alone, loads.

    Args:
        labels: of a classification, in the order of its head's outputs: adapter_config.json has no place for them.
    """
    label_files = {LABELS_FILE: json.dumps(list(labels), ensure_ascii=False)} if labels else {}
    if not isinstance(model, PeftModel):
        files = {"config.json": _model_config(model, source), **label_files}
        return Export("model.safetensors", files, _tokenizer_files(source.folder))
    frozen = frozen_factors(model)
    return Export(
        "adapter_model.safetensors",
        {"adapter_config.json": _adapter_config(model.active_peft_config, source), **label_files},
        frozen=AdapterState.from_tensors(frozen) if frozen else None,
    )


def _tokenizer_files(folder: Path) -> tuple[str, ...]:
    return tuple(
        str(file)
        for file in sorted(folder.iterdir())
        if file.suffix in COPIED and file.name != "config.json" and not file.name.endswith(".index.json")
    )


def _model_config(model: BaseModel, source: ModelSource) -> str:
    """Return config.json of a whole model in float32, and where it came from, so that it can be compared with that."""
    written = model.config.to_diff_dict()
    written.pop("use_cache", None)  # off while training; whoever loads the model wants the default
    written |= {"architectures": [type(model).__name__], "dtype": "float32"}
    return json.dumps({**written, "base_model_name_or_path": source.reference}, indent=2, sort_keys=True)


def _adapter_config(peft_config: PeftConfig, source: ModelSource) -> str:
    """Return adapter_config.json as peft writes it, with lists in a fixed order."""
    peft_config = copy.copy(peft_config)  # the model reads its own, which is being trained
    peft_config.base_model_name_or_path = source.reference
    peft_config.inference_mode = True
    with tempfile.TemporaryDirectory() as folder:
        peft_config.save_pretrained(folder)
        written = json.loads((Path(folder) / "adapter_config.json").read_text())
    for modules in ("target_modules", "feedforward_modules", "modules_to_save"):
        if isinstance(written.get(modules), list):
            written[modules].sort()
    return json.dumps(written, indent=2, sort_keys=True)
