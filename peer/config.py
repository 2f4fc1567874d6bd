"""One frozen configuration of a peer. Flags, environment and TOML file all fill this class; nothing else does.

Options stand in sections (``learning_options.py``, ``group_options.py``); what an option's marks mean is said in
``options.py``, and every list of options in this project is read off these declarations. This file imports nothing
heavy: ``--help`` reads it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter

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


def _titled(title: str, place: int) -> Parameter:
    """Return how a section is shown in ``--help``: flags, environment variables and keys of a file are the options' own
    names, without their section's."""
    return Parameter(name="*", group=Group(title, sort_key=place))


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerConfig:
    """All settings of one peer. Checked once, in ``__post_init__``; immutable afterwards.

    Raises:
        LocalError: a value out of range; the message names the option, the value and what would be valid.
    """

    data: Annotated[DataOptions, _titled("Your text", 1)] = DataOptions()
    model: Annotated[ModelOptions, _titled("Model and adapter", 4)] = ModelOptions()
    run: Annotated[RunOptions, _titled("The run", 2)] = RunOptions()
    training: Annotated[TrainingOptions, _titled("Training", 5)] = TrainingOptions()
    agent: Annotated[AgentOptions, _titled("Agents", 6)] = AgentOptions()
    mixing: Annotated[MixingOptions, _titled("Mixing", 7)] = MixingOptions()
    privacy: Annotated[PrivacyOptions, _titled("Privacy", 8)] = PrivacyOptions()
    network: Annotated[NetworkOptions, _titled("Others", 3)] = NetworkOptions()

    def __post_init__(self) -> None:
        if self.model.adapter == OPTIONS["adapter"].default:
            # From here on every reader finds a kind; the class is frozen for all others.
            model = dataclasses.replace(self.model, adapter=usual_adapter(self.model))
            object.__setattr__(self, "model", model)
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
        _check_fresh(self.model)

    @staticmethod
    def of(**options: Any) -> PeerConfig:
        """Return the configuration with these options, by their names alone; all others have their defaults."""
        sections = {section.name: section.default for section in dataclasses.fields(PeerConfig)}
        return PeerConfig(**_changed(sections, options))

    def with_options(self, **options: Any) -> PeerConfig:
        """Return this configuration with some options changed, by their names alone.

        Raises:
            LocalError: a value out of range.
            TypeError: there is no such option (our bug).
        """
        sections = {section.name: getattr(self, section.name) for section in dataclasses.fields(self)}
        return PeerConfig(**_changed(sections, options))

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


def usual_adapter(model: ModelOptions) -> str:
    """Return the kind of adapter where the user names none."""
    return "full" if model.from_scratch else "lora"


def _changed(sections: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return sections with some options changed, by their names alone.

    Raises:
        TypeError: there is no such option (our bug).
    """
    values: dict[str, dict[str, Any]] = {name: {} for name in sections}
    for name, value in options.items():
        if name not in OPTIONS:
            raise TypeError(f"there is no option {name!r}")
        values[OPTIONS[name].section][name] = value
    return {name: dataclasses.replace(section, **values[name]) for name, section in sections.items()}


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


def _check_fresh(model: ModelOptions) -> None:
    """Refuse what has no meaning for a model that begins untrained, and what only such a one has."""
    if not model.from_scratch:
        if model.tokenizer != OPTIONS["tokenizer"].default:
            raise LocalError(
                f"--tokenizer {model.tokenizer} is for a model from scratch; others bring their own: leave it out, or "
                "give --from-scratch nano"
            )
        return
    scratch = f"--from-scratch {model.from_scratch}"
    if model.adapter != "full":
        raise LocalError(
            f"{scratch} trains all weights: there is nothing learned that --adapter {model.adapter} could adapt. Leave "
            "--adapter out, or use --model instead"
        )
    if model.model != OPTIONS["model"].default:
        raise LocalError(f"{scratch} makes a model and --model {model.model} loads one: give one of the two")
    if model.task != "causal-lm":
        raise LocalError(
            f"{scratch} learns to continue text: leave --task {model.task} out, or use --model minilm"
        )
    if model.load_in_4bit or model.dtype not in ("auto", "float32"):
        raise LocalError(
            f"{scratch} trains in float32: leave --load-in-4bit and --dtype out (--codec bfloat16 halves what travels)"
        )
