"""The catalogue of tasks: what can be learned. What a task is, ``task.py`` says."""

from __future__ import annotations

import dataclasses
import json

from peer.learning_options import ModelOptions
from peer.training.causal_lm import CAUSAL_LM
from peer.training.classification import CLASSIFICATION
from peer.training.task import Task


def canonical(model: ModelOptions) -> str:
    """Return what two peers must have in common of their task, as canonical JSON; the order of labels counts.

    A private head does, too: a peer that keeps it sends fewer tensors.
    """
    if not model.labels:
        return json.dumps({"task": model.task})
    return json.dumps({"labels": model.labels, "private_head": model.private_head, "task": model.task})


TASKS: dict[str, Task] = {
    "causal-lm": CAUSAL_LM,
    "classification": CLASSIFICATION,
    "agent": dataclasses.replace(CAUSAL_LM, doc="answer questions of environments, by trial"),
}
"""Tasks by name. To add one: a file with a ``Task``, a line here, and its name in ``TaskName`` of
``learning_options.py``."""
