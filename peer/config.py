"""One frozen configuration of a peer. Flags, environment and TOML file all fill this class; nothing else does.

Options stand in sections (``learning_options.py``, ``group_options.py``); what an option's marks mean is said in
``options.py``, and every list of options in this project is read off these declarations. This file imports nothing
heavy: ``--help`` reads it.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from gossip.errors import LocalError
from peer.group_options import MixingOptions, NetworkOptions, PrivacyOptions, RunOptions
from peer.learning_options import (
    ADAPTER_KINDS,
    LOCAL_OPTIMIZERS,
    MOMENTS_RULES,
    SCHEDULES,
    TASKS,
    UNMIXABLE,
    AgentOptions,
    DataOptions,
    ModelOptions,
    TrainingOptions,
)
from peer.options import Option, declared_options

FLAT = Parameter(name="*")
"""Flags, environment variables and keys of a file are the options' own names, without their section's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerConfig:
    """All settings of one peer. Checked once, in ``__post_init__``; immutable afterwards.

    Raises:
        LocalError: a value out of range; the message names the option, the value and what would be valid.
    """

    data: Annotated[DataOptions, FLAT] = DataOptions()
    model: Annotated[ModelOptions, FLAT] = ModelOptions()
    run: Annotated[RunOptions, FLAT] = RunOptions()
    training: Annotated[TrainingOptions, FLAT] = TrainingOptions()
    agent: Annotated[AgentOptions, FLAT] = AgentOptions()
    mixing: Annotated[MixingOptions, FLAT] = MixingOptions()
    privacy: Annotated[PrivacyOptions, FLAT] = PrivacyOptions()
    network: Annotated[NetworkOptions, FLAT] = NetworkOptions()

    def __post_init__(self) -> None:
        for name, option in OPTIONS.items():
            option.check(self.option(name))
        adapter, training = self.model.adapter, self.training
        if adapter not in ADAPTER_KINDS:
            reason = f" {adapter} cannot be mixed: {UNMIXABLE[adapter]}." if adapter in UNMIXABLE else ""
            raise LocalError(f"unknown --adapter {adapter!r}; known: {', '.join(ADAPTER_KINDS)}.{reason}")
        _check_known("local-optimizer", training.local_optimizer, LOCAL_OPTIMIZERS)
        _check_known("moments", training.moments, MOMENTS_RULES)
        _check_known("schedule", training.schedule, SCHEDULES)
        _check_task(self.model)

    @staticmethod
    def of(**options: Any) -> PeerConfig:
        """Return the configuration with these options, by their names alone; all others have their defaults."""
        return PeerConfig().with_options(**options)

    def with_options(self, **options: Any) -> PeerConfig:
        """Return this configuration with some options changed, by their names alone.

        Raises:
            LocalError: a value out of range.
            TypeError: there is no such option (our bug).
        """
        sections: dict[str, dict[str, Any]] = {}
        for name, value in options.items():
            if name not in OPTIONS:
                raise TypeError(f"there is no option {name!r}")
            sections.setdefault(OPTIONS[name].section, {})[name] = value
        changed = {
            section: dataclasses.replace(getattr(self, section), **values)
            for section, values in sections.items()
        }
        return dataclasses.replace(self, **changed)

    def option(self, name: str) -> Any:
        """Return the value of an option by its name alone."""
        return getattr(getattr(self, OPTIONS[name].section), name)

    def to_json(self) -> str:
        """Return all options as one JSON object (paths as text): what the training process is started with."""
        return json.dumps({name: self.option(name) for name in OPTIONS}, default=str)

    @staticmethod
    def from_json(text: str) -> PeerConfig:
        """Inverse of ``to_json``."""
        options: dict[str, Any] = json.loads(text)
        for name, option in OPTIONS.items():
            if isinstance(option.default, tuple):
                options[name] = tuple(options[name])
        for name in ("data", "eval_data"):
            options[name] = tuple(Path(path) for path in options[name])
        options["home"] = Path(options["home"]) if options["home"] else None
        return PeerConfig.of(**options)


OPTIONS: dict[str, Option] = declared_options(PeerConfig)
"""Every option of a peer by its name."""


def _check_known(option: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise LocalError(f"unknown --{option} {name!r}; known: {', '.join(known)}")


def _check_task(model: ModelOptions) -> None:
    _check_known("task", model.task, TASKS)
    labels = model.labels
    if model.task != "classification":
        if labels or model.private_head:
            raise LocalError(
                "labels and private_head are for --task classification only: give that task, or neither"
            )
        return
    if (
        len(labels) < 2
        or len(set(labels)) < len(labels)
        or not all(label.strip() == label != "" for label in labels)
    ):
        raise LocalError(
            f"--task classification needs at least 2 different labels, not {', '.join(labels) or 'none'}: give each "
            "class that any peer has with --labels, in the same order everywhere"
        )
