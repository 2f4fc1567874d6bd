"""What a stranger has after ``pip install gossip-peer``: every command, from any folder, without the repository.

The wheel is built from a copy of the sources and installed into an environment of its own. That environment sees the
dependencies of the running one (no network is needed), but not the editable install of this project.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("topology", "gossip", "peer", "scripts")
Peer = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel; built from a copy, because a build leaves folders behind, and takes along those that it finds."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(built)]
    if _setuptools_will_do():
        command += ["--no-build-isolation", "--no-index"]
    subprocess.run([*command, str(source)], check=True)
    (path,) = built.glob("*.whl")
    return path


def _setuptools_will_do() -> bool:
    """Return whether the running environment can build; a fresh one may have no setuptools, or an old one."""
    code = "import setuptools; assert int(setuptools.__version__.split('.')[0]) >= 77"
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def peer(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Peer:
    """``peer`` of the fresh environment: called with a folder to stand in and the words."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    # As in many projects, the environment lies in a repository, whose history says nothing about our code.
    subprocess.run(["git", "init", "--quiet"], cwd=environment, check=True)
    author = ("-c", "user.name=Somebody", "-c", "user.email=")
    commit = ["git", *author, "commit", "--quiet", "--allow-empty", "--message=theirs"]
    subprocess.run(commit, cwd=environment, check=True)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", str(python)]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True)
    paths = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    )
    # A folder named by a .pth file comes after the environment's own; .pth files in it (the editable install) do not
    # count.
    dependencies = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (Path(paths.strip()) / "dependencies.pth").write_text("\n".join(dependencies) + "\n")
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("PEER_", "PYTHON", "COV"))
    }

    def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
        command = [str(environment / "bin" / "peer"), *words]
        return subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True, check=False)

    where = "import json, gossip, peer, scripts, topology\n" + (
        "print(json.dumps([package.__file__ for package in (gossip, peer, scripts, topology)]))"
    )
    found = subprocess.check_output([python, "-c", where], cwd=environment, env=clean, text=True)
    assert all(Path(file).is_relative_to(environment) for file in json.loads(found)), found
    return run


def test_the_wheel_holds_every_file_of_the_four_packages_and_nothing_else(wheel: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    sources = {name for name in listed if (ROOT / name).exists()}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == sources


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--help", "testnet  convergence  compare  run  A local network of peers"),
        ("testnet --help", "Usage: peer testnet  --compare  peer testnet --model tiny"),
        ("convergence --help", "Usage: peer convergence  peer convergence report"),
        ("convergence show --help", "Usage: peer convergence show"),
        ("convergence show ring --peers 8", "spectral gap  0.195262"),
        ("compare --help", "Usage: peer compare  peer compare report"),
        ("compare run --help", "Usage: peer compare run"),
        ("methods", "--optimizer  noloco"),
    ],
)
def test_every_command_answers_from_an_empty_folder(
    peer: Peer, tmp_path: Path, words: str, said: str
) -> None:
    answer = peer(tmp_path, *words.split())
    assert answer.returncode == 0, answer.stderr
    for part in said.split("  "):
        assert part in answer.stdout
    assert "python scripts/" not in answer.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("testnet --peers 99", 2, "error: --peers must be 1 to 64 on one machine, not 99"),
        ("testnet --pers 2", 2, "Did you mean --peers?"),
        ("convergence show rng --peers 8", 2, "error: "),
        ("convergence gallery", 2, "error: this installed copy has no docs folder"),
        ("compare report --out nothing", 2, "error: "),
    ],
)
def test_refusals_and_their_exit_codes_pass_through(
    peer: Peer, tmp_path: Path, words: str, code: int, said: str
) -> None:
    answer = peer(tmp_path, *words.split())
    assert (answer.returncode, said in answer.stderr, answer.stderr.count("error: ") <= 1) == (
        code,
        True,
        True,
    )
    assert "Traceback" not in answer.stderr


def test_results_of_an_installed_copy_name_no_commit(peer: Peer, tmp_path: Path) -> None:
    words = "convergence consensus ring --peers 4 --rounds 20 --workers 1 --out results"
    answer = peer(tmp_path, *words.split())
    assert answer.returncode == 0, answer.stderr
    assert "peer convergence report results" in answer.stderr
    manifest = json.loads((tmp_path / "results" / "manifest.json").read_text())
    assert "commit" in manifest
    assert manifest["commit"] is None


@pytest.mark.timeout(300)
def test_a_testnet_of_real_processes_runs_from_an_empty_folder(peer: Peer, tmp_path: Path) -> None:
    answer = peer(
        tmp_path, *["testnet", "--model", "tiny", "--peers", "2", "--rounds", "1", "--compare", "none"]
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    (out,) = (tmp_path / "runs").iterdir()
    assert (out / "curves.png").stat().st_size > 1000
    summary = json.loads((out / "summary.json").read_text())
    assert summary["gossip_loss_mean"] < summary["base_loss"]
    assert summary["consensus_distance"] < 1e-9  # the final merge
    for told in summary["peers"]:
        assert told["fetches_ok"] == 2
        assert f"{told['name']:12} in " in answer.stdout
        assert (Path(told["adapter"]) / "adapter_config.json").exists()
