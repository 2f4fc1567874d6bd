"""What makes a run the same run: its manifest, and the command with which a friend joins it.

Both are read off the declarations of the options (``config.py``); the training process tells the rest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from pathlib import Path
from typing import Any

from gossip.manifest import OWN, RATE, RunManifest
from gossip.methods import products
from gossip.methods.method_set import MethodSet
from peer.config import OPTIONS, PeerConfig, usual_adapter
from peer.options import Role, names_with
from peer.run_plan import RunPlan
from peer.training import tasks
from peer.training.frames import Ready

ANY = "any"
"""What the manifest says of model, adapter and tokenizer where peers share rollouts alone: they may differ."""
OF_EACH = ("model", "training")
"""Sections whose options are each peer's own there."""


def manifest_of(plan: RunPlan, ready: Ready, methods: MethodSet) -> RunManifest:
    """Return the run's manifest: our options and what the training process found."""
    config, told, names = plan.config, ready.manifest, methods.names
    ranks_differ = methods.factor_rule.refactors
    manifest = RunManifest(
        base_model=told["base_digest"],
        dtype=told["base_dtype"],
        tokenizer=told["tokenizer_digest"],
        task=tasks.canonical(config.model),
        settings=_settings(plan, ranks_differ=ranks_differ),
        frozen=told["adapter_frozen"],
        layout=products.with_rank(methods.spec, 1).fingerprint if ranks_differ else told["adapter_spec"],
        seed=config.run.seed,
        initial="of any rank" if ranks_differ else told["adapter_digest"],
        factors=names.factors,
        mixing=names.mixing,
        optimizer=names.optimizer,
        codec=names.codec,
        feedback=names.feedback,
        gamma=f"{methods.gamma:g}",
        rounds=config.run.rounds,
        merge=names.merge,
        overlap="yes" if config.mixing.overlap else "no",
        private="yes" if names.private else "no",
        mask=plan.mask,
    )
    if config.mixing.share != "rollouts":
        return manifest
    return dataclasses.replace(
        manifest, base_model=ANY, dtype=ANY, tokenizer=ANY, task=ANY, frozen=ANY, layout=ANY, initial=ANY
    )


GIVEN = re.compile(r"\b(matrix|graph):([^+]+)")
"""Part of a topology's name: a file that holds it."""
SAID_ELSEWHERE = frozenset(
    {"task", "labels", "private_head", "model", "from_scratch", "tokenizer", "dtype", "seed", "rounds", "factors",
     "mixing", "optimizer", "codec", "feedback", "gamma", "budget_mb", "merge", "overlap", "mask", "open", "secret"}
)  # fmt: skip
"""Options of the run that the manifest has in other fields, or (the last two) that are settled before a hello."""


def _settings(plan: RunPlan, *, ranks_differ: bool) -> dict[str, str]:
    """Return the options that all peers of the run have alike, by name, as text.

    Args:
        ranks_differ: ranks may differ between peers: then only the scale alpha / r must be the same.
    """
    config = plan.config
    names = [name for name in names_with(Role.RUN, OPTIONS) if name not in SAID_ELSEWHERE]
    settings = {name: _as_text(config.option(name)) for name in names}
    settings["lora_target_modules"] = " ".join(sorted(config.model.lora_target_modules))
    settings["topology"] = GIVEN.sub(_content, plan.topology.name)
    settings["roster"] = (
        _digest("\n".join(sorted(config.mixing.roster)).encode()) if config.mixing.roster else ""
    )
    if not _suits_others(config):
        settings[RATE] = OWN
    if ranks_differ:
        del settings["lora_r"], settings["lora_alpha"]
        settings["lora_scale"] = f"{config.model.lora_alpha / config.model.lora_r:g}"
    if config.mixing.share == "rollouts":
        return {name: text for name, text in settings.items() if OPTIONS[name].section not in OF_EACH}
    return settings


def _as_text(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case tuple():
            return " ".join(map(str, value))
        case _:
            return str(value)


def _content(given: re.Match[str]) -> str:
    """Return a file's digest in place of its path, which is another at each peer."""
    return f"{given[1]}:{_digest(Path(given[2]).read_bytes())}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _suits_others(config: PeerConfig) -> bool:
    """Say whether our learning rate is one for those who repeat our run's settings alone: with noise, another optimizer
    or a trainer of our own it is of another size."""
    ours = ("dp_epsilon", "local_optimizer", "trainer")
    return all(config.option(name) == OPTIONS[name].default for name in ours)


def _implied(config: PeerConfig, name: str) -> Any:
    """Return what an option is for who repeats the others and leaves this one out."""
    return usual_adapter(config.model) if name == "adapter" else OPTIONS[name].default


def join_line(config: PeerConfig, own_addresses: tuple[str, ...]) -> str:
    """Return the command that a friend pastes to join: our address and every setting that makes the run."""
    learns_from = "--tasks THEIR,TASKS" if config.model.task == "agent" else "--data THEIR_FILE.jsonl"
    words = ["peer run", f"--join {own_addresses[0]}", learns_from]
    for name in names_with(Role.RUN, OPTIONS):
        value, flag = config.option(name), OPTIONS[name].flag
        if value == _implied(config, name) or (name == "learning_rate" and not _suits_others(config)):
            continue
        if value is True:
            words.append(flag)
        elif isinstance(value, tuple):
            words += [f"{flag} {item}" for item in value]
        else:
            words.append(f"{flag} {value}")
    return " ".join(words)
