"""Names that others know us by: frames, run fingerprints, and the names under which results are stored."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gossip import wire
from gossip.adapter import AdapterSpec, AdapterState
from gossip.messages import Claim, Evidence, Hello, Message, Offer, Ping, Presence, Pull, Refusal
from peer.config import PeerConfig
from peer.run_manifest import join_line, manifest_of
from peer.run_plan import plan_run
from peer.training.frames import Export, Ready
from scripts.lab.comparison.design import read_comparison
from scripts.lab.convergence.cell import Cell
from scripts.lab.convergence.run import run_cell

COMPARISONS = Path(__file__).parents[2] / "docs" / "comparisons"
LORA = AdapterSpec.of(
    {
        "layers.0.q_proj.lora_A.weight": torch.zeros(4, 8),
        "layers.0.q_proj.lora_B.weight": torch.zeros(8, 4),
    }
)
CONFIGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "another rank": {"lora_r": 4, "lora_alpha": 8},
    "products": {"factors": "tsvd", "merge": "product"},
    "lossy": {"codec": "topk:0.05", "feedback": "replica", "gamma": 0.25},
    "budget": {"budget_mb": 0.0005, "topology": "epidemic:2"},
    "optimizer": {"optimizer": "noloco:0.5:0.7", "topology": "random-matching", "merge": "none"},
    "overlap": {"overlap": True, "merge": "average"},
    "push-sum": {"mixing": "push-sum", "topology": "exponential"},
    "layers": {"lora_layers": "18-29", "lora_target_modules": ("q_proj",), "adapter": "dora"},
    "classification": {"task": "classification", "labels": ("good", "bad"), "seed": 7},
    "prompt": {"adapter": "prompt-tuning", "virtual_tokens": 5},
    "rollouts": {"share": "rollouts", "model": "tiny"},
    "weights and rollouts": {"share": "both"},
}
CLAIM = Claim("12D3KooWx", 5, 3, "round", bytes(8), bytes(range(32)), bytes(range(64)))
PROOF = Evidence(CLAIM, dataclasses.replace(CLAIM, digest=bytes(32)))
ADDRESSES = ("/ip4/1.2.3.4/tcp/5/p2p/x",)
MESSAGES: dict[str, Message] = {
    "hello": Hello(
        {"protocol": 3, "codec": "int8"},
        "anna",
        3,
        ADDRESSES,
        ("/ip4/1.2.3.4/tcp/6/p2p/y",),
        None,
        5,
        (PROOF,),
    ),
    "refusal": Refusal("manifest", "codec differs"),
    "ping": Ping(7),
    "pull": Pull(bytes(range(16)), None, 4, 1.5, 10, bytes(32), bytes(8), "merge"),
    "offer": Offer(3, 8, "int8", 100, bytes(range(32)), 10, bytes(8), "round", 5, bytes(range(64))),
    "presence": Presence(bytes(range(16)), "anna", 3, ADDRESSES, True, 5, 7, (CLAIM,)),
    "evidence": PROOF,
}


def ready() -> Ready:
    found = {
        "base_digest": "base", "base_dtype": "bfloat16", "tokenizer_digest": "tokenizer",
        "adapter_spec": LORA.fingerprint, "adapter_digest": "initial", "adapter_frozen": "none",
    }  # fmt: skip
    export = Export("adapter_model.safetensors", {}, (), None)
    initial = AdapterState(LORA, torch.zeros(LORA.size))
    return Ready(initial, found, "tiny", "cpu", "none", 2, 1, 1, 0, 0.0, export)


def test_frames_are_unchanged(golden: Callable[[str, Any], None]) -> None:
    for message in MESSAGES.values():
        assert wire.decode(wire.encode(message)) == message
    golden("frames.json", {name: wire.framed(message).hex() for name, message in MESSAGES.items()})


def test_run_manifests_are_unchanged(golden: Callable[[str, Any], None]) -> None:
    made = {}
    for name, options in CONFIGS.items():
        config = PeerConfig.of(**options)
        manifest = manifest_of(plan_run(config), ready(), plan_run(config).methods(LORA))
        made[name] = {"fields": manifest.fields(), "fingerprint": manifest.fingerprint.hex()}
        made[name]["join"] = join_line(config, ("/ip4/1.2.3.4/tcp/5/p2p/x",))
    golden("manifests.json", made)


def test_names_of_published_trials_are_unchanged(golden: Callable[[str, Any], None]) -> None:
    names = {}
    for file in sorted(COMPARISONS.glob("*.toml")):
        comparison = read_comparison(tomllib.loads(file.read_text()), file)
        rates = dict.fromkeys(comparison.all_methods(), 0.01)
        names[file.stem] = {trial.title(): trial.name() for trial in comparison.evaluation(rates)}
    golden("trials.json", names)


@pytest.mark.parametrize("kind", ["consensus", "quadratic"])
def test_results_of_a_cell_are_unchanged(kind: str, golden: Callable[[str, Any], None]) -> None:
    cell = Cell(kind=kind, topology="epidemic:3", peers=12, rounds=12, seed=3, loss=0.1, churn=0.1)
    outcome = run_cell(cell).outcome
    rounded = {name: f"{value:.5g}" if isinstance(value, float) else value for name, value in outcome.items()}
    rounded.pop("log_hash", None)  # in simulations.json
    golden(f"{kind}_cell.json", {"name": cell.name(), "outcome": rounded})
