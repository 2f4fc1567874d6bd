"""Fixtures of the training side: one model cache per test session, a small corpus, a quick configuration."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from peer.config import PeerConfig
from peer.training.agent import novice
from scripts.lab import corpus


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "real_model: fetches and runs SmolLM2 (93 MB); ask for it: -m real_model"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "real_model" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("real_model"):
                item.add_marker(
                    pytest.mark.skip(reason="needs 93 MB from a package index: run with -m real_model")
                )


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder that this session alone uses; children inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("GOSSIP_PEER_CACHE", str(folder))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.delenv("PYTHONWARNINGS", raising=False)
        yield folder
    assert "GOSSIP_PEER_CACHE" not in os.environ or os.environ["GOSSIP_PEER_CACHE"] != str(folder)


@pytest.fixture(scope="session")
def half_taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that counts letters right now and then; the test of whatever learns by trial begins with it."""
    folder = tmp_path_factory.mktemp("half-taught")
    novice.teach(folder, lambda stage, done: None, ("count",), steps=80)
    return folder


@pytest.fixture(scope="session")
def languages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo's four files."""
    return corpus.write(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def quick(cache: Path, languages: dict[str, Path]) -> Callable[..., PeerConfig]:
    """Return a configuration of the tiny model on one language; keyword arguments override it."""

    def make(**settings: object) -> PeerConfig:
        quickly = {
            "data": (languages["german"],),
            "model": "tiny",
            "device": "cpu",
            "threads": 1,
            "lora_target_modules": ("all-linear",),
            "lora_layers": "",
            "learning_rate": 5e-3,
            "local_steps": 3,
            "batch_size": 8,
            "max_length": 64,
        }
        return PeerConfig.of(**{**quickly, **settings})

    return make
