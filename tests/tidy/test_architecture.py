"""What the design promises about the source itself: directions of imports, banned calls, sizes, the tree of rooms."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from peer import limits_page

ROOT = Path(__file__).parents[2]
LAYERS = ("topology", "gossip", "peer", "scripts")
SOURCES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
FILES = {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path for path in SOURCES}
"""Dotted name -> file, of every file at every level; a package's ``__init__`` is called ``PACKAGE.__init__``."""

GROUND = r"peer\.(config|options|learning_options|group_options|durable|tensor_file|child_python|__init__)"
"""What every room of ``peer`` may use: declarations, and files and processes as such."""
MAY_NOT_IMPORT = {
    # whoever matches the left may not import what matches the right
    r"topology\..*": r"(gossip|peer|scripts)\..*",
    r"gossip\..*": r"(peer|scripts)\..*",
    r"peer\..*": r"scripts\..*",
    r"gossip\.(adapter|errors|messages|wire|manifest|events|deadline|published)": (
        r"gossip\.(methods\..*|node|settings|simulation|quadratic)"
    ),
    r"gossip\.(member\w*|introduction|joining|dials|searching|strikes|notices|told_addresses|token_bucket)": (
        r"gossip\.(methods\..*|node|settings|simulat\w*|quadratic)"
    ),
    r"gossip\.methods\..*": r"gossip\.(node|settings|simulation|quadratic|final_merge)",
    GROUND: r"peer\.(?!config$|options$|learning_options$|group_options$|durable$|child_python$).*",
    r"peer\.network\..*": rf"(?!{GROUND}$)peer\.(?!network\.).*",
    r"peer\.training\..*": rf"(?!{GROUND}$)peer\.(?!training\.|privacy\.).*",
    r"peer\.privacy\..*": rf"(?!{GROUND}$)peer\.(?!privacy\.).*|gossip\.(?!errors$).*",
    r"scripts\.lab\..*": r"scripts\.benchmarks\..*",
    r"scripts\.lab\.(?!convergence\.|comparison\.|robustness\.).*": (
        r"scripts\.lab\.(convergence|comparison|robustness)\..*"
    ),
    r"scripts\.lab\.convergence\..*": r"scripts\.lab\.comparison\..*",
    r"scripts\.lab\.comparison\..*": r"scripts\.lab\.(convergence\..*|robustness\.(?!command$).*)",
    r"scripts\.lab\.robustness\..*": r"scripts\.lab\.convergence\..*",
}
"""Who lives above whom."""
HEAVY = {
    "libp2p": re.compile(r"peer/network/libp2p\w*\.py|scripts/benchmarks/transport\.py"),
    "multiaddr": re.compile(r"peer/network/libp2p\w*\.py|scripts/benchmarks/transport\.py"),
    "transformers": re.compile(r"peer/training/\w+\.py"),
    "peft": re.compile(r"peer/training/\w+\.py"),
    "torch": re.compile(r"(gossip|peer|scripts)/.*"),
}
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 45
FUNCTION_LINES_MEDIAN_MAX = 6
PUBLIC_METHODS_MAX = 15


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports_of(path: Path) -> set[str]:
    """Return the top-level packages that a file imports."""
    return {name.partition(".")[0] for name in modules_of(path)}


@cache
def modules_of(path: Path) -> frozenset[str]:
    """Return the dotted names that a file imports, anywhere in it; of our own packages, always those of files."""
    return frozenset(_modules_of(tree_of(path)))


def _modules_of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                yield inside if inside in FILES else _file_of(node.module)


def _file_of(module: str) -> str:
    return f"{module}.__init__" if f"{module}.__init__" in FILES else module


def test_every_folder_of_source_is_a_package_and_is_looked_at() -> None:
    folders = {path.parent for path in SOURCES}
    assert {
        ROOT / "gossip" / "methods",
        ROOT / "peer" / "network",
        ROOT / "scripts" / "lab" / "comparison",
    } <= folders
    for folder in folders:
        assert (folder / "__init__.py").exists(), name_of(folder)
        assert ast.get_docstring(tree_of(folder / "__init__.py")), f"{name_of(folder)} has no map"


@pytest.mark.parametrize("name", FILES)
def test_imports_go_one_way(name: str) -> None:
    for who, whom in MAY_NOT_IMPORT.items():
        if re.fullmatch(who, name):
            for module in modules_of(FILES[name]):
                assert not re.fullmatch(whom, module), f"{name} imports {module}"
    assert "tests" not in imports_of(FILES[name])


def test_files_do_not_import_in_a_circle() -> None:
    # a file that is run with -m may import itself under its own name: that is a circle of one
    left = {name: modules_of(path) & FILES.keys() - {name} for name, path in FILES.items()}
    while free := [name for name, modules in left.items() if not modules & left.keys()]:
        for name in free:
            del left[name]
    assert not left, {name: sorted(modules & left.keys()) for name, modules in left.items()}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_heavy_libraries_stay_where_they_belong(path: Path) -> None:
    for library, allowed in HEAVY.items():
        assert library not in imports_of(path) or allowed.fullmatch(name_of(path)), library


def test_the_pure_side_has_no_clock_thread_or_network() -> None:
    banned = {"time", "datetime", "threading", "socket", "subprocess", "asyncio", "trio", "requests"}
    for path in SOURCES:
        if name_of(path).startswith(("topology/", "gossip/")):
            assert not imports_of(path) & banned, name_of(path)


def test_no_deadline_is_on_a_clock_that_may_jump() -> None:
    """Setting a machine's time by a day ends no wait and begins none: only what is told has the time of day."""
    readers = set()
    for path in SOURCES:
        if name_of(path).startswith("peer/"):
            calls = {ast.unparse(node) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute)}
            names = {f"{module}.{name}" for module, name in names_from(path)}
            if (calls | names) & {"time.time", "time.time_ns", "time.localtime", "time.gmtime", "time.ctime"}:
                readers.add(name_of(path))
            assert "datetime" not in imports_of(path), name_of(path)
    # the others only begin to count there, so that a restart does not count anew: lives, messages
    allowed = {
        "peer/journal.py",
        "peer/incarnation.py",
        "peer/network/libp2p_announcements.py",
        "peer/doctor.py",
    }
    assert readers <= allowed


def test_what_a_peer_keeps_is_written_in_one_place() -> None:
    """Only there do tests see that a crash or a full disk at any call loses nothing; caches may be made anew."""
    writes = {
        "write_text",
        "write_bytes",
        "rename",
        "unlink",
        "mkdir",
        "touch",
        "rmtree",
        "fsync",
        "symlink_to",
    }
    made_anew = ("base_models", "model_making", "packages", "token_files")
    caches = {f"peer/training/{name}.py" for name in made_anew}
    for path in SOURCES:
        if name_of(path).startswith("peer/") and name_of(path) not in {"peer/durable.py", *caches}:
            for node in ast.walk(tree_of(path)):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    said = f"{name_of(path)}:{node.lineno} {ast.unparse(node)}"
                    assert node.func.attr not in writes, said
                    modes = [word.value for word in node.args if isinstance(word, ast.Constant)]
                    assert node.func.attr != "open" or not set(str(modes[:1])) & set("wax+"), said


def names_from(path: Path) -> set[tuple[str, str]]:
    """Return what a file imports from modules by name."""
    found = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.ImportFrom)]
    return {(node.module or "", alias.name) for node in found for alias in node.names}


RUNS_DATA = frozenset(
    {"eval", "exec", "compile", "__import__", "torch.load", "yaml.load", "time.sleep", "np.load"}
)
"""What may run whatever it is given (and what blocks a loop): no answer of a peer may come near it."""


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_is_unpickled_evaluated_or_trusted(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in RUNS_DATA or (called == "yaml.load" and "SafeLoader" in path.read_text()), (
                f"{name_of(path)}:{node.lineno} calls {called}"
            )
            for keyword in node.keywords:
                assert not (keyword.arg == "trust_remote_code" and ast.unparse(keyword.value) != "False")
    assert not imports_of(path) & {"pickle", "dill", "shelve", "marshal"}


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function, its decorators and docstring left out."""
    documented = ast.get_docstring(function) is not None
    docstring = (function.body[0].end_lineno or 0) - function.body[0].lineno + 1 if documented else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def functions_of(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [
        node for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_functions_and_classes_stay_readable(path: Path) -> None:
    assert path.read_text().count("\n") <= FILE_LINES_MAX
    assert ast.get_docstring(tree_of(path)), "a file says what it is"
    for function in functions_of(path):
        assert lines_of(function) <= FUNCTION_LINES_MAX, function.name
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ClassDef):
            methods = [part for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)]
            public = [method.name for method in methods if not method.name.startswith("_")]
            assert len(public) <= PUBLIC_METHODS_MAX, node.name


def test_most_functions_are_short() -> None:
    assert (
        statistics.median(lines_of(function) for path in SOURCES for function in functions_of(path))
        <= FUNCTION_LINES_MEDIAN_MAX
    )


def test_the_guide_for_contributors_shows_every_room() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    rooms = {name_of(path.parent) for path in SOURCES}
    shown = set(re.findall(r"^((?:topology|gossip|peer|scripts)[\w/]*)/ +\S", guide, flags=re.MULTILINE))
    assert shown == rooms


def test_the_pages_name_every_entry_of_the_catalogues() -> None:
    from gossip.methods.codecs import CODECS
    from gossip.methods.mixing import MIXERS
    from topology.links import catalogue

    pages = "".join((ROOT / "docs" / page).read_text() for page in ("methods.md", "topology.md"))
    for name in [*CODECS, *MIXERS, *(entry.split(":")[0].split("[")[0] for entry in catalogue())]:
        assert f"`{name}" in pages, name


def test_no_machine_s_path_stands_in_the_project() -> None:
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    for name in files:
        if (
            name.endswith((".py", ".md", ".toml", ".txt", ".yml"))
            and name != "tests/tidy/test_architecture.py"
        ):
            assert not re.search(r"/(work|root|home/\w+)/", (ROOT / name).read_text()), name


def test_the_page_of_limits_is_what_the_declarations_say() -> None:
    """If it fails: ``python -m peer.limits_page > docs/limits.md``."""
    assert (ROOT / "docs" / "limits.md").read_text() == limits_page.page()


def test_every_test_that_the_page_of_reliability_names_exists() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    tests = {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) > 50
    assert named <= tests
    assert all((ROOT / place).exists() for place in re.findall(r"`(tests/[\w/]+\.py)`", page))
