"""What makes a run the same run: its manifest, and the command with which a friend joins it.

Both are read off the declarations of the options (``config.py``); the training process tells the rest.
"""

from __future__ import annotations

import json
from typing import Any

from gossip.manifest import RunManifest
from gossip.methods import products
from gossip.methods.method_set import MethodSet
from peer.config import OPTIONS, PeerConfig
from peer.options import Role, names_with
from peer.training import tasks
from peer.training.frames import Ready


def manifest_of(config: PeerConfig, ready: Ready, methods: MethodSet, mask: str = "none") -> RunManifest:
    """Return the run's manifest: our options and what the training process found; ``mask``: see ``RunManifest``."""
    told, names = ready.manifest, methods.names
    ranks_differ = methods.factor_rule.refactors
    return RunManifest(
        base_model=told["base_digest"],
        dtype=told["base_dtype"],
        tokenizer=told["tokenizer_digest"],
        adapter=_adapter_text(config, told["adapter_frozen"], ranks_differ=ranks_differ),
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
        mask=mask,
    )


def _adapter_text(config: PeerConfig, frozen: str, *, ranks_differ: bool) -> str:
    """Return the canonical text of kind and hyperparameters of the adapter, and of the task that shapes it.

    Args:
        ranks_differ: ranks may differ between peers: then only the scale alpha / r must be the same.
    """
    fields: dict[str, Any] = {
        option.adapter_key: config.option(name) for name, option in OPTIONS.items() if option.adapter_key
    }
    fields["target_modules"] = sorted(fields["target_modules"])
    if ranks_differ:
        fields["scale"] = fields.pop("alpha") / fields.pop("r")
    return json.dumps({**fields, "frozen": frozen, "task": tasks.canonical(config.model)}, sort_keys=True)


def _suits_others(config: PeerConfig) -> bool:
    """Say whether our learning rate is one for those who repeat our run's settings alone: with noise, another optimizer
    or a trainer of our own it is of another size."""
    ours = ("dp_epsilon", "local_optimizer", "trainer")
    return all(config.option(name) == OPTIONS[name].default for name in ours)


def join_line(config: PeerConfig, own_addresses: tuple[str, ...]) -> str:
    """Return the command that a friend pastes to join: our address and every setting that makes the run."""
    learns_from = "--tasks THEIR,TASKS" if config.model.task == "agent" else "--data THEIR_FILE.jsonl"
    words = ["peer run", f"--join {own_addresses[0]}", learns_from]
    for name in names_with(Role.RUN, OPTIONS):
        value, flag = config.option(name), OPTIONS[name].flag
        if value == OPTIONS[name].default or (name == "learning_rate" and not _suits_others(config)):
            continue
        if value is True:
            words.append(flag)
        elif isinstance(value, tuple):
            words += [f"{flag} {item}" for item in value]
        else:
            words.append(f"{flag} {value}")
    return " ".join(words)
