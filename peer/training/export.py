"""What a finished run leaves for plain peft and transformers, and the line that loads it there."""

from __future__ import annotations

import json
from pathlib import Path

from peer.learning_options import ModelOptions
from peer.training.tasks import TASKS

ADAPTER_CONFIG = "adapter_config.json"
"""What peft reads first in a folder with an adapter; absent from one with a whole model."""


def load_line_of(adapter: Path, model: ModelOptions) -> str:
    """Return one line of Python that loads an exported folder in plain peft, or a whole model in plain transformers.

    Args:
        adapter: the folder, as ``HOME/adapter``.
        model: what was trained.
    """
    loader, labels = TASKS[model.task].loader, f", num_labels={len(model.labels)}" if model.labels else ""
    path = str(adapter.resolve())
    if not (adapter / ADAPTER_CONFIG).exists():
        return f"model = transformers.{loader}.from_pretrained({path!r})"
    base = json.loads((adapter / ADAPTER_CONFIG).read_text())["base_model_name_or_path"]
    return f"model = peft.PeftModel.from_pretrained(transformers.{loader}.from_pretrained({base!r}{labels}), {path!r})"
