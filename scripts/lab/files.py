"""Files that a user names: refused in one line if they cannot be read, and written whole or not at all."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Any

from gossip.errors import LocalError


def file_digest(path: Path, called: str) -> str:
    """Return the SHA-256 of a file's content, hex.

    Args:
        called: how the error calls the file.

    Raises:
        LocalError: it cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise LocalError(f"cannot read {called}: {error.strerror}") from error


def read_toml(file: Path, called: str) -> dict[str, Any]:
    """Return the content of a TOML file.

    Args:
        called: what the file holds, for the error.

    Raises:
        LocalError: unreadable, or not TOML.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise LocalError(f"cannot read the {called} {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LocalError(f"{file}: not TOML: {error}") from error


def write_file(target: Path, content: bytes) -> None:
    """Write a file that others may read, whole or not at all, making its folder.

    Raises:
        LocalError: it cannot be written.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(target)
    except OSError as error:
        raise LocalError(f"cannot write {target}: {error.strerror or error}") from error
