"""The checkout that this code runs from, if it runs from one: only its pages and its history are ever asked for.

An installed copy has neither, and must not mistake somebody else's repository around it for its own.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
"""The folder that holds our packages: a checkout, or site-packages."""


def checkout() -> Path | None:
    """Return the folder of the checkout that this code runs from; None: it is an installed copy."""
    return _ROOT if (_ROOT / "pyproject.toml").is_file() else None


def commit() -> str | None:
    """Return the commit of the checkout, with ``-dirty`` where files differ from it; None without a history."""
    if checkout() is None or not (_ROOT / ".git").exists():
        return None
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        cwd=_ROOT,
        check=False,
    )
    return described.stdout.strip() or None
