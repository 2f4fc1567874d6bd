"""Models that begin untrained: the same bytes for the same request, only architectures we know, refusals that help."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from gossip.adapter import AdapterSpec
from gossip.errors import LocalError
from gossip.methods.method_set import MethodNames, resolve
from peer.config import PeerConfig
from peer.run_manifest import join_line
from peer.run_plan import plan_run
from peer.training import fresh_models
from peer.training.base_models import model_digest
from peer.training.fresh_models import BYTES, DECODERS, SIZES, FreshModel, PortableNormals
from peer.training.model_making import silent

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
NAMES_OF_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
"""What GPT-2's configuration calls them."""


def small(model_type: str) -> dict[str, object]:
    return {"model_type": model_type, **(NAMES_OF_GPT2 if model_type == "gpt2" else SMALL)}


def test_a_size_is_made_once_and_alike_in_every_cache(cache: Path, tmp_path: Path) -> None:
    source = fresh_models.resolve("nano", BYTES, 0)
    stamp = (source.folder / "model.safetensors").stat().st_mtime_ns
    assert fresh_models.resolve("nano", BYTES, 0).folder == source.folder
    assert (source.folder / "model.safetensors").stat().st_mtime_ns == stamp
    again, other = tmp_path / "again", tmp_path / "other"
    for folder, seed in ((again, 0), (other, 1)):
        folder.mkdir()
        fresh_models.make(FreshModel(SIZES["nano"], BYTES, seed), folder, silent)
    assert model_digest(again) == model_digest(source.folder), (
        "another process, another folder: the same bytes"
    )
    assert model_digest(other) != model_digest(source.folder), "the run's seed decides"
    assert 0.15e6 < sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(again).parameters()) < 0.17e6


@pytest.mark.parametrize("model_type", DECODERS)
def test_each_known_architecture_is_built_and_has_a_gradient_everywhere(
    model_type: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(small(model_type)))
    fresh_models.make(FreshModel(fresh_models.config_of(str(path)), BYTES, 0), tmp_path, silent)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    ids = torch.arange(40, 60).unsqueeze(0)
    model(input_ids=ids, labels=ids).loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    assert sum(float(gradient.abs().sum()) > 0 for gradient in gradients.values()) > len(gradients) / 2


def test_drawn_numbers_are_normal_and_owe_nothing_to_logarithms() -> None:
    torch.manual_seed(0)
    with PortableNormals():
        drawn = torch.empty(100_000).normal_(1.0, 0.5)
    assert drawn.mean().item() == pytest.approx(1.0, abs=0.01)
    assert drawn.std().item() == pytest.approx(0.5, abs=0.01)
    within = ((drawn - 1.0).abs() < 0.5).double().mean().item()
    assert within == pytest.approx(0.683, abs=0.01)
    torch.manual_seed(0)
    sums = sum(torch.rand(100_000) for _ in range(12))
    assert torch.equal(drawn, (sums - 6.0) * 0.5 + 1.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_type": "bert"}', "its model_type is 'bert'; built here are gpt2,"),
        ('{"model_type": "llama", "auto_map": {"AutoModel": "evil.Model"}}', "auto_map cannot be followed"),
        ("[]", "its model_type is None"),
        ("{", "no configuration of a model"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(LocalError, match=message):
        fresh_models.config_of(str(tmp_path / "config.json"))


def test_what_transformers_refuses_and_too_small_a_vocabulary_are_told(tmp_path: Path) -> None:
    for change, message in (
        ({"num_attention_heads": 5}, "transformers cannot build this"),
        ({"vocab_size": 100}, "the configuration has 100 tokens, --tokenizer bytes 258"),
    ):
        with pytest.raises(LocalError, match=message):
            fresh_models.make(FreshModel({**small("llama"), **change}, BYTES, 0), tmp_path, silent)
    with pytest.raises(LocalError, match=r"no size of that name \(nano, micro, mini\), and no file"):
        fresh_models.config_of("pico")
    with pytest.raises(LocalError, match="neither bytes nor a folder"):
        fresh_models.resolve("nano", str(tmp_path / "none"), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapter": "lora"}, "nothing learned that --adapter lora could adapt"),
        ({"model": "tiny"}, "give one of the two"),
        ({"task": "classification", "labels": ("a", "b")}, "learns to continue text"),
        ({"load_in_4bit": True}, "trains in float32"),
        ({"dtype": "bfloat16"}, "trains in float32"),
    ],
)
def test_what_has_no_meaning_from_scratch_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(LocalError, match=message):
        PeerConfig.of(from_scratch="nano", **options)


def test_from_scratch_means_all_weights_and_friends_are_told_so() -> None:
    config = PeerConfig.of(from_scratch="nano", learning_rate=2e-3)
    assert config.model.adapter == "full"
    assert PeerConfig().model.adapter == "lora"
    assert PeerConfig.from_json(config.to_json()) == config
    line = join_line(config, ("ADDRESS",))
    assert "--from-scratch nano" in line
    assert "--adapter" not in line, "it is implied"
    assert "--adapter dora" in join_line(PeerConfig.of(adapter="dora"), ("ADDRESS",))
    with pytest.raises(LocalError, match=r"--tokenizer .* is for a model from scratch"):
        PeerConfig.of(tokenizer="folder")


def test_accumulated_steps_are_refused_where_noise_is_added_to_steps() -> None:
    with pytest.raises(LocalError, match="leave --accumulate out and give a larger --batch-size"):
        plan_run(PeerConfig.of(accumulate=2, dp_epsilon=8.0))


def test_what_travels_is_limited_by_the_bytes_that_travel() -> None:
    smollm2 = AdapterSpec((("weight", (134_515_008,)),))
    with pytest.raises(
        LocalError, match="513 MiB with codec float32; at most 512 MiB do: use --codec bfloat16 or int8"
    ):
        resolve(MethodNames(), smollm2)
    for codec in ("bfloat16", "int8"):
        assert resolve(MethodNames(codec=codec), smollm2).wire_spec == smollm2
    with pytest.raises(LocalError, match="513 MiB"):
        resolve(MethodNames(codec="int4", feedback="replica"), smollm2)  # whose newcomers are sent all of it
