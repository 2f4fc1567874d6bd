"""Golden files: what must not change unless a change says so. ``--rewrite-golden`` writes them anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, Any], None]:
    """Return a function that compares a value (or a text) with a file of this folder, or writes the file."""
    rewrite = request.config.getoption("--rewrite-golden")

    def compare(name: str, value: Any) -> None:
        path = FOLDER / name
        text = value if isinstance(value, str) else json.dumps(value, indent=1, sort_keys=True) + "\n"
        if rewrite:
            path.write_text(text)
        assert text == path.read_text(), f"{path} differs; see CONTRIBUTING.md about golden files"

    return compare
