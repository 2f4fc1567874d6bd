"""The scripts of a checkout start, whatever the folder, and say how they were called; missing extras are one line."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import peer.cli
from gossip.errors import LocalError
from peer import installed_commands
from scripts.lab import checkout
from scripts.lab.convergence import command as convergence

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py") if path.stem != "__init__")


def start(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("PEER_", "PYTHONPATH"))
    }
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True, check=False)


def test_every_script_is_known_here() -> None:
    assert SCRIPTS == ["bench", "compare", "convergence", "testnet"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_says_how_to_call_it(name: str, tmp_path: Path) -> None:
    answer = start(tmp_path, str(ROOT / "scripts" / f"{name}.py"), "--help")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith(f"Usage: python scripts/{name}.py ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["peer.cli", *(f"scripts.{name}" for name in SCRIPTS)])
def test_help_imports_nothing_heavy(name: str) -> None:
    """Neither does the list of commands of ``peer``, which reads a line of each without running it."""
    code = (
        f"import sys\nsys.argv = ['command', '--help']\nfrom {name} import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'libp2p', 'transformers', 'trio', 'datasets', 'matplotlib', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    answer = start(ROOT, "-c", code)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize(
    ("room", "called", "words", "package", "extra"),
    [
        ("testnet", "peer testnet", ["--model", "tiny"], "matplotlib", "demo"),
        ("testnet", None, ["--model", "tiny"], "matplotlib", "demo"),
        ("convergence", "peer convergence", ["report", "x"], "pyarrow", "research"),
        ("comparison", "peer compare", ["report", "--out", "x"], "pyarrow", "research"),
    ],
)
def test_a_missing_extra_is_one_line_before_anything_happens(
    room: str, called: str | None, words: list[str], package: str, extra: str, tmp_path: Path
) -> None:
    code = (
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        f"sys.modules[{package!r}] = None  # as if it were not installed\n"
        f"from scripts.lab.{room}.command import main\nsys.exit(main({words!r}, {called!r}))"
    )
    answer = start(tmp_path, "-c", code)
    name = called or "python scripts/testnet.py"
    said = f"error: {name} needs the package {package}: pip install 'gossip-peer[{extra}]'\n"
    assert (answer.returncode, answer.stderr) == (2, said)
    assert not list(tmp_path.iterdir())


def test_a_missing_file_of_our_own_is_not_taken_for_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scripts.lab.convergence.record", None)
    with pytest.raises(ModuleNotFoundError):
        convergence.main(["show", "ring", "--peers", "8"], "peer convergence")


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed distribution declares commands; one has the name of a command of ours."""
    entries = [
        EntryPoint(name, "tests.scripts.none:main", installed_commands.GROUP) for name in ("other", "methods")
    ]

    def entry_points(*, group: str, name: str | None = None) -> list[EntryPoint]:
        assert group == installed_commands.GROUP
        return [entry for entry in entries if name in (None, entry.name)]

    monkeypatch.setattr(installed_commands, "entry_points", entry_points)


@pytest.mark.usefixtures("declared")
def test_no_installed_command_replaces_one_of_ours() -> None:
    assert installed_commands.find_installed_command(["methods"], peer.cli.OWN_COMMANDS) is None
    assert installed_commands.find_installed_command(["--help"], peer.cli.OWN_COMMANDS) is None
    assert installed_commands.find_installed_command(["nothing"], peer.cli.OWN_COMMANDS) is None
    with pytest.raises(ModuleNotFoundError):  # it was found, and its module is not there
        installed_commands.find_installed_command(["other"], peer.cli.OWN_COMMANDS)


def test_outside_of_a_checkout_there_is_no_commit_and_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scripts.lab.convergence.gallery import targets

    assert checkout.checkout() == ROOT
    assert targets(None, None)[0] == ROOT / "docs" / "images"
    monkeypatch.setattr(checkout, "_ROOT", tmp_path)
    assert checkout.checkout() is None
    assert checkout.commit() is None
    assert targets(tmp_path, tmp_path / "a.json") == (tmp_path, tmp_path / "a.json")
    with pytest.raises(LocalError, match="give --out FOLDER and --record FILE"):
        targets(tmp_path, None)
