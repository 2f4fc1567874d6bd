"""From one configuration to what the parts of a peer need: topology, node settings, run manifest, lines for people.

Whatever can be refused before anything slow starts is refused here. Pure, but for looking whether files exist.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gossip.adapter import AdapterSpec
from gossip.errors import LocalError
from gossip.manifest import RunManifest
from gossip.methods import compatibility, products
from gossip.methods.budget import choose_codec
from gossip.methods.catalogue import Entry, find, written
from gossip.methods.codecs import CODECS
from gossip.methods.factors import FACTORS
from gossip.methods.feedback import FEEDBACKS, default_feedback
from gossip.methods.method_set import MERGES, MethodNames, MethodSet, resolve
from gossip.methods.mixing import MIXERS
from gossip.methods.optimizers import OPTIMIZERS
from gossip.settings import NodeSettings
from peer.config import PeerConfig
from peer.network import addresses
from peer.training import tasks
from peer.training.data import DataError
from peer.training.frames import Ready
from topology.errors import TopologyError
from topology.links import Topology, parse_topology

CORE_ADAPTER = "lora-xs"
"""The kind of adapter whose tensors are the cores that ``--factors r-only`` mixes."""
MEMBERS_GUESSED = 4
"""Peers that a topology is judged for where the configuration does not say how many will come. Source: the demo."""
SWEEP_SEEN = 32
"""Rounds of a schedule that are looked at. Source: a whole sweep of every finite-time schedule up to 1,000 peers."""


CATALOGUES: Mapping[str, Mapping[str, Entry[Any]]] = {
    "factors": FACTORS,
    "mixing": MIXERS,
    "optimizer": OPTIMIZERS,
    "codec": CODECS,
    "feedback": FEEDBACKS,
}
"""Option of ``peer run`` -> what it may be."""


def check_config(config: PeerConfig) -> None:
    """Refuse what can be refused before anything is started.

    Raises:
        LocalError: no data; an unknown topology or method (the known ones are named); methods and topology that do
            not go together (a valid alternative is named).
    """
    if not config.data:
        raise LocalError("--data is missing: give a .jsonl, .json, .csv, .parquet or .txt file to learn from")
    for path in (*config.data, *config.eval_data):
        if not path.exists():
            raise DataError(f"there is no data file {path} (seen from {Path.cwd()})")
    for address in config.join:
        addresses.peer_of(address)
    addresses.listen_endpoint(config.listen)
    topology = make_topology(config)
    if config.roster:
        try:
            topology.check(config.roster)
        except TopologyError as error:
            raise LocalError(f"--topology {config.topology} does not fit the roster: {error}") from error
    if find("factor rule", config.factors, FACTORS).core_only != (config.adapter == CORE_ADAPTER):
        raise LocalError(
            f"--factors r-only and --adapter {CORE_ADAPTER} go together: its tensors are the r x r cores; "
            f"this is --factors {config.factors} with --adapter {config.adapter}"
        )
    expected = len(config.roster) or (config.wait_peers + 1 if config.wait_peers else MEMBERS_GUESSED)
    names = written_names(config)
    compatibility.check(names, topology, expected, collect_s=config.collect_s, overlap=config.overlap)


def make_topology(config: PeerConfig) -> Topology:
    """Return the topology of the configuration.

    Raises:
        LocalError: unknown, impossible, or its file cannot be used; the message says what would be valid.
    """
    try:
        return parse_topology(
            config.topology, seed=config.seed, weights=config.weights, roster=config.roster or None
        )
    except TopologyError as error:
        raise LocalError(f"--topology {config.topology}: {error}") from error


def written_names(config: PeerConfig) -> MethodNames:
    """Return the methods of the run in canonical writing, before a byte budget has its say.

    Raises:
        LocalError: an unknown name (the known ones are named) or a bad parameter.
    """
    if config.merge not in MERGES:
        raise LocalError(f"unknown --merge {config.merge!r}; known: {', '.join(MERGES)}")
    feedback = default_feedback(config.codec) if config.feedback == "auto" else config.feedback
    return MethodNames(
        factors=written("factor rule", config.factors, FACTORS),
        mixing=written("mixing rule", config.mixing, MIXERS),
        optimizer=written("optimizer", config.optimizer, OPTIMIZERS),
        codec=written("codec", config.codec, CODECS),
        feedback=written("feedback", feedback, FEEDBACKS),
        gamma=config.gamma,
        merge=config.merge,
    )


def methods_of(config: PeerConfig, spec: AdapterSpec) -> MethodSet:
    """Return the run's methods, fitted to the adapter; a byte budget chooses the codec.

    Raises:
        LocalError: a rule does not fit the adapter, or no codec the budget.
    """
    names = written_names(config)
    if config.private_head:
        names = dataclasses.replace(names, private=tuple(sorted(tasks.head_names(spec))))
    if config.budget_mb:
        plain = resolve(dataclasses.replace(names, codec="float32", feedback="none"), spec)
        codec = choose_codec(round(config.budget_mb * 1e6), plain.wire_spec, reads_per_round(config))
        names = dataclasses.replace(names, codec=codec, feedback=default_feedback(codec))
    return resolve(names, spec)


def reads_per_round(config: PeerConfig) -> int:
    """Return how many neighbors a peer reads in a round at most.

    Raises:
        LocalError: nobody knows: the number of peers is not given.
    """
    topology = make_topology(config)
    if topology.own_sample:
        return topology.own_sample
    peers = len(config.roster) or (config.wait_peers + 1 if config.wait_peers else 0)
    if not peers:
        raise LocalError(
            f"--budget-mb needs to know how many neighbors --topology {config.topology} gives: say --wait-peers or "
            "--roster, or use epidemic:S"
        )
    members = config.roster or peers
    rounds = min(topology.period(peers) or SWEEP_SEEN, SWEEP_SEEN)
    return max(
        int(np.bincount(topology.edges(members, round)[:, 0], minlength=1).max()) for round in range(rounds)
    )


def node_settings(config: PeerConfig, names: MethodNames) -> NodeSettings:
    """Return what the node is run with."""
    return NodeSettings(
        topology=make_topology(config),
        names=names,
        rounds=config.rounds,
        collect_s=config.collect_s,
        norm_cap=config.norm_cap,
        overlap=config.overlap,
    )


def manifest_of(config: PeerConfig, ready: Ready, methods: MethodSet) -> RunManifest:
    """Return the run's manifest: our settings and what the training process found."""
    told, names = ready.manifest, methods.names
    ranks_differ = methods.factor_rule.refactors  # then only the scale alpha / r need be the same
    adapter = {
        "kind": config.adapter,
        **(
            {"scale": config.lora_alpha / config.lora_r}
            if ranks_differ
            else {"r": config.lora_r, "alpha": config.lora_alpha}
        ),
        "target_modules": sorted(config.lora_target_modules),
        "layers": config.lora_layers,
        "virtual_tokens": config.virtual_tokens,
        "oft_block_size": config.oft_block_size,
        "frozen": told["adapter_frozen"],
        "task": tasks.canonical(config),
    }
    return RunManifest(
        base_model=told["base_digest"],
        dtype=told["base_dtype"],
        tokenizer=told["tokenizer_digest"],
        adapter=json.dumps(adapter, sort_keys=True),
        layout=products.with_rank(methods.spec, 1).fingerprint if ranks_differ else told["adapter_spec"],
        seed=config.seed,
        initial="of any rank" if ranks_differ else told["adapter_digest"],
        factors=names.factors,
        mixing=names.mixing,
        optimizer=names.optimizer,
        codec=names.codec,
        feedback=names.feedback,
        gamma=f"{methods.gamma:g}",
        merge=names.merge,
        overlap="yes" if config.overlap else "no",
    )


def ready_fields(config: PeerConfig, ready: Ready) -> dict[str, object]:
    """Return the fields of the event ``ready``."""
    return {
        "model": ready.model_name,
        "dtype": ready.manifest["base_dtype"],
        "device": ready.device,
        "base_parameters": ready.base_parameters,
        "adapter": config.adapter,
        "adapter_values": ready.initial.spec.size,
        "data_report": ready.data_report,
        "rows": ready.rows,
        "rows_held_out": ready.rows_held_out,
        "sequences": ready.sequences,
        "seconds": ready.seconds,
    }


RUN_FLAGS = (
    "model", "dtype", "load_in_4bit", "adapter", "lora_r", "lora_alpha", "lora_target_modules", "lora_layers",
    "virtual_tokens", "oft_block_size", "task", "labels", "private_head", "seed", "factors", "mixing",
    "optimizer", "codec", "feedback", "gamma", "budget_mb", "merge", "overlap", "rounds",
)  # fmt: skip
"""Settings that a friend needs to repeat to be of the same run (and, for rounds, to end with us)."""


def join_line(config: PeerConfig, own_addresses: tuple[str, ...]) -> str:
    """Return the command that a friend pastes to join: our address and every setting that makes the run."""
    defaults = PeerConfig()
    words = ["peer run", f"--join {own_addresses[0]}", "--data THEIR_FILE.jsonl"]
    for name in RUN_FLAGS:
        value = getattr(config, name)
        if value == getattr(defaults, name):
            continue
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif isinstance(value, tuple):
            words += [f"{flag} {item}" for item in value]
        else:
            words.append(f"{flag} {value}")
    return " ".join(words)
