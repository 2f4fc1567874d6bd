"""Who learns from which file: the demo's texts, or a folder of the user's; parts of files where peers are more."""

from __future__ import annotations

from pathlib import Path

from gossip.errors import LocalError
from peer.training import base_models
from peer.training.model_making import silent
from scripts.lab.testnet.config import TestnetConfig


def prepare_shards(config: TestnetConfig) -> dict[str, Path]:
    """Return peer name -> data file; files are cut into parts where there are more peers than files.

    Raises:
        LocalError: no data files, or such as cannot be cut.
    """
    files = _files(config)
    if config.peers <= len(files):
        return {path.stem: path for path in files[: config.peers]}
    shards = {}
    for index in range(config.peers):
        path = files[index % len(files)]
        parts = len(range(index % len(files), config.peers, len(files)))
        part = index // len(files)
        name = f"{path.stem}-{part + 1}" if parts > 1 else path.stem
        shards[name] = _part_of(path, part, parts, config.out / "data" / f"{name}.jsonl")
    return shards


def _files(config: TestnetConfig) -> list[Path]:
    if config.data == "demo":
        from scripts.lab import corpus

        if config.from_scratch:
            cache = base_models.cache_folder()
            parts = corpus.write_passages(config.out / "data", config.peers, config.seed, cache, silent)
            return list(parts.values())
        return list(corpus.write(config.out / "data", seed=config.seed).values())
    folder = Path(config.data)
    files = sorted(path for path in folder.glob("*") if path.is_file() and not path.name.startswith("."))
    if not files:
        raise LocalError(f"--data {folder}: a folder with one data file per peer, or demo, is needed")
    return files


def _part_of(path: Path, part: int, parts: int, target: Path) -> Path:
    """Write every ``parts``-th line of a line-wise file, from ``part`` on."""
    if parts == 1:
        return path
    if path.suffix not in (".jsonl", ".txt"):
        raise LocalError(f"{path}: only .jsonl and .txt files can be shared out to more peers than files")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[part::parts]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(lines), encoding="utf-8")
    return target
