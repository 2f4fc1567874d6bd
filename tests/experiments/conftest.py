"""The experiment tool as a function: its main, called here, with what it printed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "convergence.py"


class Said(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


@pytest.fixture
def convergence(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Return the command: words -> exit code and what was printed."""
    found = importlib.util.spec_from_file_location("convergence", SCRIPT)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)

    def run(*words: object) -> Said:
        capsys.readouterr()
        try:
            code = module.main([str(word) for word in words])
        except SystemExit as exit:  # the parser's own refusals
            code = int(exit.code or 0)
        return Said(code, *capsys.readouterr())

    return run
