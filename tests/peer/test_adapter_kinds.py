"""Every kind of adapter keeps the same promises: one start for all peers, what travels is what trains, plain peft
reads it."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from gossip.adapter import AdapterState
from gossip.errors import LocalError
from peer.cli import main
from peer.config import PeerConfig
from peer.learning_options import ADAPTER_KINDS, UNMIXABLE
from peer.run_manifest import manifest_of
from peer.run_plan import plan_run
from peer.training import base_models
from peer.training.adapter_kinds import ADAPTERS
from peer.training.frames import Ready
from peer.training.inference import load_adapter, measure
from peer.training.local_trainer import LocalTrainer
from peer.training.lora_xs import export_tensors

Quick = Callable[..., PeerConfig]

RATES = {"ia3": 2e-2, "vera": 2e-2, "prompt-tuning": 5e-2, "prefix-tuning": 0.5, "layernorm": 2e-2}
"""Learning rates of kinds with few values, which want more than matrices do."""


def of_kind(quick: Quick, kind: str, **settings: object) -> PeerConfig:
    return quick(adapter=kind, **{"learning_rate": RATES.get(kind, 5e-3), **settings})


def export(trainer: LocalTrainer, state: AdapterState, folder: Path) -> Path:
    made = trainer.model.export
    folder.mkdir()
    for name, text in made.files.items():
        (folder / name).write_text(text)
    for path in made.copies:
        shutil.copy(path, folder)
    save_file(export_tensors(state, made.frozen), folder / made.weights, {"format": "pt"})
    return folder


def plain_loss(folder: Path, batch: dict[str, torch.Tensor]) -> float:
    torch.manual_seed(12345)  # whoever loads it has another generator
    if (folder / "adapter_config.json").exists():
        written = json.loads((folder / "adapter_config.json").read_text())
        source = base_models.resolve(written["base_model_name_or_path"]).folder
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(source), folder)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder)
    model.eval()
    with torch.no_grad():
        return float(model(**batch).loss)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_peers_start_alike_learn_mix_export_and_resume(
    quick: Quick, languages: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    first = LocalTrainer(of_kind(quick, kind))
    torch.manual_seed(99)  # whatever happened to the generator before
    second = LocalTrainer(of_kind(quick, kind, data=(languages["french"],), batch_size=4))
    assert torch.equal(first.initial.flat, second.initial.flat)
    assert first.manifest == second.manifest

    before = first.evaluate(first.initial).own
    own = first.train(first.train(first.initial).state).state
    other = second.train(second.initial).state
    assert all(
        not torch.equal(new, old)
        for (_, new), (_, old) in zip(own.tensors(), first.initial.tensors(), strict=True)
    ), "each tensor that travels is trained"
    assert first.evaluate(own).own < before - 0.02

    mixed = AdapterState(first.spec, (own.flat + other.flat) / 2)
    found = first.evaluate(mixed).own
    assert math.isfinite(found)
    assert first.evaluate(own).own != found != before
    assert torch.equal(first.model.state().flat, own.flat), "what is given is written into the model"
    first.evaluate(mixed)
    batch, _ = first._batch(first.shard.train[:4])
    with torch.no_grad():
        ours = float(first.model.module(**batch).loss)
    assert plain_loss(export(first, mixed, tmp_path / "adapter"), batch) == pytest.approx(ours, abs=1e-4)

    first.save(tmp_path / "trainer.safetensors")
    expected = first.train(mixed).state
    resumed = LocalTrainer(first.config)
    resumed.load(tmp_path / "trainer.safetensors")
    assert torch.equal(resumed.train(mixed).state.flat, expected.flat)
    assert not torch.equal(second.train(mixed).state.flat, expected.flat)


@pytest.mark.parametrize("kind", ["ia3", "loha", "vera", "oft", "layernorm"])
def test_layers_and_modules_can_be_chosen(quick: Quick, tmp_path: Path, kind: str) -> None:
    targets = ("k_proj", "v_proj", "down_proj")
    trainer = LocalTrainer(of_kind(quick, kind, lora_target_modules=targets, lora_layers="1"))
    names = [name for name, _ in trainer.spec.entries]
    assert names
    assert all(".layers.1." in name for name in names)
    assert kind == "layernorm" or all(any(target in name for target in targets) for name in names)
    state = trainer.train(trainer.initial).state
    batch, _ = trainer._batch(trainer.shard.train[:4])
    trainer.evaluate(state)
    with torch.no_grad():
        ours = float(trainer.model.module(**batch).loss)
    assert plain_loss(export(trainer, state, tmp_path / "adapter"), batch) == pytest.approx(ours, abs=1e-4)


@pytest.mark.parametrize("kind", sorted(set(ADAPTERS) - {"layernorm", "full"}))
def test_a_base_in_bfloat16_trains_float32_adapters(quick: Quick, kind: str) -> None:
    trainer = LocalTrainer(of_kind(quick, kind, dtype="bfloat16", local_steps=1))
    assert {tensor.dtype for tensor in trainer.model.parameters.values()} == {torch.float32}
    trained = trainer.train(trainer.initial)
    assert math.isfinite(trained.loss)
    assert not torch.equal(trained.state.flat, trainer.initial.flat)


@pytest.mark.parametrize("kind", ["prompt-tuning", "prefix-tuning", "vera", "lora-xs", "full"])
def test_the_exported_folder_can_be_measured_and_talked_to(
    quick: Quick, languages: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    trainer = LocalTrainer(of_kind(quick, kind))
    state = trainer.train(trainer.train(trainer.initial).state).state
    folder = export(trainer, state, tmp_path / "adapter")
    files = [languages["german"]]
    (learned,) = measure(folder, files, 64)
    (untrained,) = measure(export(trainer, trainer.initial, tmp_path / "initial"), files, 64)
    assert learned.base == untrained.base
    assert learned.loss < untrained.loss - 0.005
    model, tokenizer = load_adapter(folder)
    ids = tokenizer("the old sailor", return_tensors="pt")["input_ids"]
    said = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=4
    )
    for _ in range(4):  # the same without a cache of keys
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    assert said.tolist() == ids.tolist()


def test_a_prompt_is_measured_on_the_same_tokens_as_other_kinds(quick: Quick) -> None:
    """The token mean over real targets, computed by hand from the logits behind the learned prompt."""
    trainer = LocalTrainer(of_kind(quick, "prompt-tuning", virtual_tokens=5))
    found = trainer.evaluate(trainer.initial).own
    total, tokens = 0.0, 0
    for one in next(iter(trainer.shard.held_out.values())):
        ids = torch.tensor([one.ids])
        with torch.no_grad():
            logits = trainer.model.module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 5:-1]
        total += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        tokens += len(one.ids) - 1
    assert found == pytest.approx(total / tokens, rel=1e-5)


def test_veras_projections_do_not_travel_but_must_be_equal(quick: Quick) -> None:
    trainer = LocalTrainer(of_kind(quick, "vera"))
    assert not any("vera_A" in name or "vera_B" in name for name, _ in trainer.spec.entries)
    other = LocalTrainer(of_kind(quick, "vera", seed=1))
    assert trainer.initial.digest() == other.initial.digest(), "only the projections tell these two apart"
    assert trainer.manifest["adapter_frozen"] != other.manifest["adapter_frozen"]
    assert LocalTrainer(quick()).manifest["adapter_frozen"] == ""


def test_a_whole_model_trains_in_float32_counts_tied_weights_once(quick: Quick, tmp_path: Path) -> None:
    source = base_models.resolve("tiny").folder
    half = AutoModelForCausalLM.from_pretrained(source).to(torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    for file in source.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "half")
    trainer = LocalTrainer(of_kind(quick, "full", model=str(tmp_path / "half")))
    assert trainer.manifest["base_dtype"] == "float32"
    assert trainer.spec.size == sum(parameter.numel() for parameter in half.parameters())
    assert "lm_head.weight" not in dict(trainer.spec.entries)
    named = half.state_dict()
    for name, view in trainer.initial.tensors():
        assert torch.equal(view, named[name].float()), "it begins as the model it was given"
    trained = trainer.train(trainer.initial).state
    again = LocalTrainer(trainer.config)
    assert torch.equal(again.initial.flat, trainer.initial.flat), (
        "training must not write into the model's file"
    )
    folder = export(trainer, trained, tmp_path / "whole")
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    loaded, tokenizer = load_adapter(folder)
    assert loaded.dtype == torch.float32
    assert loaded.config.use_cache
    assert tokenizer("moon")["input_ids"] == trainer.model.tokenizer("moon")["input_ids"]


def test_the_manifest_tells_apart_what_differs(quick: Quick) -> None:
    trainer = LocalTrainer(quick())
    ready = Ready(trainer.initial, trainer.manifest, "tiny", "cpu", "", 1, 1, 1, 1, 0.0, trainer.model.export)
    configs = [quick(), quick(adapter="oft"), quick(virtual_tokens=4), quick(oft_block_size=8)]
    plans = [plan_run(config) for config in configs]
    told = {manifest_of(plan, ready, plan.methods(trainer.spec)).fingerprint for plan in plans}
    frozen = dataclasses.replace(ready, manifest={**ready.manifest, "adapter_frozen": "other"})
    told.add(manifest_of(plans[0], frozen, plans[0].methods(trainer.spec)).fingerprint)
    assert len(told) == len(plans) + 1


@pytest.mark.parametrize(
    ("kind", "settings", "complaint"),
    [
        ("ia3", {"lora_target_modules": ("query",)}, "it has down_proj, gate_proj, k_proj"),
        ("ia3", {"lora_dropout": 0.1}, "leave lora_dropout at 0"),
        ("oft", {"oft_block_size": 48}, "does not divide the 64 inputs"),
        ("layernorm", {"dtype": "bfloat16"}, "--dtype float32"),
        ("layernorm", {"lora_layers": "5"}, "layers 0 to 1"),
        ("prompt-tuning", {"lora_layers": "1"}, "leave lora_layers empty"),
        ("prefix-tuning", {"virtual_tokens": 500}, "512 positions"),
        ("full", {"dtype": "bfloat16"}, "trains in float32"),
        ("full", {"lora_layers": "1"}, "leave lora_layers empty"),
        ("full", {"lora_dropout": 0.1}, "leave lora_dropout at 0"),
    ],
)
def test_what_cannot_work_is_explained(
    quick: Quick, kind: str, settings: dict[str, object], complaint: str
) -> None:
    with pytest.raises(LocalError, match=complaint):
        LocalTrainer(of_kind(quick, kind, **settings))


@pytest.mark.parametrize("name", [*UNMIXABLE, "lorra"])
def test_unknown_kinds_are_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(LocalError, match="prefix-tuning, layernorm, full") as raised:
        PeerConfig.of(adapter=name)
    assert UNMIXABLE.get(name, "") in str(raised.value)
    assert ("cannot be mixed" in str(raised.value)) == (name in UNMIXABLE)


def test_help_and_catalogue_name_the_same_kinds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tuple(ADAPTERS) == ADAPTER_KINDS
    monkeypatch.setenv("COLUMNS", "250")
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    line = next(line for line in capsys.readouterr().out.splitlines() if "Kind of PEFT adapter" in line)
    assert all(kind in line for kind in ADAPTERS)


def test_the_command_line_says_why_a_kind_cannot_be_mixed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--data", "x.jsonl", "--adapter", "adalora"])
    printed = capsys.readouterr()
    assert "ranks" in printed.err + printed.out
