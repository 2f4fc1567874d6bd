"""Child processes of our own: the same Python, finding the same packages, from whatever folder it is started."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The folder that holds our packages: a checkout, or site-packages."""


def python_module(name: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of ours, such as ``"peer.training.worker"``."""
    return [sys.executable, "-m", name, *arguments]


def child_environment(**more: str) -> dict[str, str]:
    """Return our environment and ``more``, in which a child imports our packages from where we did."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **more}
