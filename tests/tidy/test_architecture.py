"""What the design promises about the source itself: directions of imports, banned calls, sizes, the README's tree."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ("topology", "gossip", "peer", "scripts")
SOURCES = sorted(path for layer in LAYERS for path in (ROOT / layer).glob("*.py"))
HEAVY = {
    "libp2p": re.compile(r"peer/libp2p_\w+\.py|scripts/bench_transport\.py"),
    "multiaddr": re.compile(r"peer/libp2p_\w+\.py|scripts/bench_transport\.py"),
    "transformers": re.compile(r"peer/(adapted_model|training_process|models|tiny|data|inference|experiment\w*)\.py"),
    "peft": re.compile(r"peer/(adapter_kinds|inference|experiment\w*)\.py"),
    "torch": re.compile(r"(gossip|peer|scripts)/.*"),
}
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 500


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    layer = LAYERS.index(path.parent.name)
    assert not imports_of(path) & {*LAYERS[layer + 1 :], "tests"} - {path.parent.name}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_heavy_libraries_stay_where_they_belong(path: Path) -> None:
    for library, allowed in HEAVY.items():
        assert library not in imports_of(path) or allowed.fullmatch(name_of(path)), library


def test_the_pure_side_has_no_clock_thread_or_network() -> None:
    banned = {"time", "datetime", "threading", "socket", "subprocess", "asyncio", "trio", "requests"}
    for path in SOURCES:
        if path.parent.name in ("topology", "gossip"):
            assert not imports_of(path) & banned, name_of(path)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_is_unpickled_evaluated_or_trusted(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "torch.load", "yaml.load", "time.sleep", "np.load"} or (
                called == "yaml.load" and "SafeLoader" in path.read_text()
            ), f"{name_of(path)}:{node.lineno} calls {called}"
            for keyword in node.keywords:
                assert not (keyword.arg == "trust_remote_code" and ast.unparse(keyword.value) != "False")
    assert not imports_of(path) & {"pickle", "dill", "shelve", "marshal"}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_and_functions_stay_readable(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= FILE_LINES_MAX
    tree = ast.parse(text)
    assert path.name == "__init__.py" or ast.get_docstring(tree), "a file says what it is"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < FUNCTION_LINES_MAX, node.name


def test_the_readme_shows_the_tree_as_it_is() -> None:
    readme = (ROOT / "README.md").read_text()
    for path in SOURCES:
        if path.name not in ("__init__.py", "__main__.py"):
            assert re.search(rf"^  {re.escape(path.name)}\s+\S", readme, flags=re.MULTILINE), name_of(path)
    shown = set(re.findall(r"^  (\w+\.py)\s", readme, flags=re.MULTILINE))
    assert shown <= {path.name for path in SOURCES}


def test_the_readme_names_every_entry_of_the_catalogues() -> None:
    from gossip.codecs import CODECS
    from gossip.mixing import MIXERS
    from topology.links import catalogue

    readme = (ROOT / "README.md").read_text()
    for name in [*CODECS, *MIXERS, *(entry.split(":")[0].split("[")[0] for entry in catalogue())]:
        assert f"`{name}" in readme, name


def test_no_machine_s_path_stands_in_the_project() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in files:
        if name.endswith((".py", ".md", ".toml", ".txt", ".yml")) and name != "tests/tidy/test_architecture.py":
            assert not re.search(r"/(work|root|home/\w+)/", (ROOT / name).read_text()), name
