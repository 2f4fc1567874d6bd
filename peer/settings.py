"""From one configuration to what the parts of a peer need: topology, node settings, run manifest, lines for people.

Whatever can be refused before anything slow starts is refused here. Pure, but for looking whether files exist.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path

from gossip.codecs import CODECS
from gossip.errors import LocalError
from gossip.manifest import RunManifest
from gossip.mixing import MIXERS
from gossip.node import NodeSettings
from peer import addresses
from peer.config import PeerConfig
from peer.data import DataError
from peer.frames import Ready
from peer.store import ADAPTER_CONFIG
from topology.errors import TopologyError
from topology.links import Topology, parse_topology


def check_config(config: PeerConfig) -> None:
    """Refuse what can be refused before anything is started.

    Raises:
        LocalError: no data; unknown topology, codec or mixing rule (the known ones are named).
    """
    if not config.data:
        raise LocalError("--data is missing: give a .jsonl, .json, .csv, .parquet or .txt file to learn from")
    for path in (*config.data, *config.eval_data):
        if not path.exists():
            raise DataError(f"there is no data file {path} (seen from {Path.cwd()})")
    for address in config.join:
        addresses.peer_of(address)
    addresses.listen_endpoint(config.listen)
    for option, catalogue in (("codec", CODECS), ("mixing", MIXERS)):
        name = getattr(config, option)
        if name not in catalogue:
            close = difflib.get_close_matches(name, catalogue, 1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise LocalError(f"unknown --{option} {name!r}; known: {', '.join(catalogue)}.{hint}")
    topology = make_topology(config)
    if config.roster:
        try:
            topology.check(config.roster)
        except TopologyError as error:
            raise LocalError(f"--topology {config.topology} does not fit the roster: {error}") from error


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


def node_settings(config: PeerConfig) -> NodeSettings:
    """Return what the node is run with."""
    return NodeSettings(
        topology=make_topology(config),
        mixing=config.mixing,
        codec=config.codec,
        rounds=config.rounds,
        collect_s=config.collect_s,
        norm_cap=config.norm_cap,
    )


def manifest_of(config: PeerConfig, ready: Ready) -> RunManifest:
    """Return the run's manifest: our settings and what the training process found."""
    told = ready.manifest
    adapter = {
        "kind": config.adapter,
        "r": config.lora_r,
        "alpha": config.lora_alpha,
        "target_modules": sorted(config.lora_target_modules),
        "layers": config.lora_layers,
        "virtual_tokens": config.virtual_tokens,
        "oft_block_size": config.oft_block_size,
        "frozen": told["adapter_frozen"],
    }
    return RunManifest(
        base_model=told["base_digest"],
        dtype=told["base_dtype"],
        tokenizer=told["tokenizer_digest"],
        adapter=json.dumps(adapter, sort_keys=True),
        layout=told["adapter_spec"],
        seed=config.seed,
        initial=told["adapter_digest"],
        mixing=config.mixing,
        codec=config.codec,
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
    "virtual_tokens", "oft_block_size", "seed", "mixing", "codec", "rounds",
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


def load_line_of(adapter: Path) -> str:
    """Return one line of Python that loads an exported adapter folder in plain peft."""
    base = json.loads((adapter / ADAPTER_CONFIG).read_text())["base_model_name_or_path"]
    return (
        "model = peft.PeftModel.from_pretrained("
        f"transformers.AutoModelForCausalLM.from_pretrained({base!r}), {str(adapter.resolve())!r})"
    )
