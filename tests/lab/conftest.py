"""The experiment tool as a function: its main, called here, with what it printed; and a cache with the tiny model."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "convergence.py"


class Said(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for models, which experiments share: the tiny one is made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def tiny_cache(tiny_folder: Path) -> Iterator[None]:
    """Models are made in the shared folder, and none is fetched."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOSSIP_PEER_CACHE", str(tiny_folder))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture
def convergence(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Return the command: words -> exit code and what was printed."""
    script = importlib.util.spec_from_file_location("convergence", SCRIPT)
    assert script is not None
    assert script.loader is not None
    module = importlib.util.module_from_spec(script)
    script.loader.exec_module(module)

    def run(*words: object) -> Said:
        capsys.readouterr()
        try:
            code = module.main([str(word) for word in words])
        except SystemExit as exit:  # the parser's own refusals
            code = int(exit.code or 0)
        return Said(code, *capsys.readouterr())

    return run
