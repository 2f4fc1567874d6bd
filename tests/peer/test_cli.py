"""The command line as a stranger meets it: quick help, clear refusals, documented exit codes."""

from __future__ import annotations

import ast
import errno
import itertools
import os
import re
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import peer.group_options
import peer.learning_options
from gossip.errors import LocalError
from gossip.manifest import PROTOCOL_VERSION
from peer.cli import check_environment, main
from peer.config import OPTIONS, PeerConfig

FRIEND = "/ip4/192.0.2.7/tcp/4001/p2p/12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5"


def peer_command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PEER_")}
    return subprocess.run(
        [sys.executable, "-m", "peer", *words],
        capture_output=True,
        text=True,
        check=False,
        env={**clean, **environment},
    )


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nsys.argv = ['peer', 'run', '--help']\n"
        "from peer.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'libp2p', 'transformers', 'peft', 'trio', 'datasets', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--data", "x.jsonl"], "no data file x.jsonl"),
        (["run"], "--data is missing"),
        (["run", "--data", "{data}", "--topology", "rng"], "Did you mean 'ring'"),
        (["run", "--data", "{data}", "--topology", "matrix:none.csv"], "none.csv"),
        (["run", "--data", "{data}", "--topology", "matrix:{matrix}"], "0.9"),
        (
            ["run", "--data", "{data}", "--topology", "hypercube", "--roster", "a", "b", "c"],
            "does not fit the roster",
        ),
        (["run", "--data", "{data}", "--weights", "metropolys"], "metropolis-hastings"),
        (["run", "--data", "{data}", "--codec", "int9"], "bfloat16, chunked, float32, int4"),
        (["run", "--data", "{data}", "--mixing", "averag"], "Did you mean 'average'?"),
        (["run", "--data", "{data}", "--join", "/ip4/1.2.3"], "malformed address"),
        (
            ["run", "--data", "{data}", "--home", "{home}", "--join", FRIEND],
            "the whole line with which you were",
        ),
        (["run", "--data", "{data}", "--allow", "bob"], "--allow bob: not a peer id"),
        (["run", "--data", "{data}", "--home", "{home}", "--secret", "abc"], "incomplete or mistyped"),
        (["run", "--data", "{data}", "--listen", "/ip4/1.2.3.4/udp/5"], "malformed listen address"),
        (["run", "--data", "{data}", "--lora-r", "0"], "lora_r must be greater than 0"),
        (["run", "--data", "{data}", "--collect-s", "-1"], "collect_s must not be negative"),
        (["run", "--topologi", "ring"], "--topology"),
        (["--config", "none.toml", "run"], "no such file"),
        (["id", "--home", "{home}"], "peer init"),
        (["eval", "--adapter", "{home}", "--data", "{data}"], "not an adapter"),
    ],
)
def test_bad_input_is_refused_with_what_would_be_right(
    tmp_path: Path,
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "one row of text that is long enough"}\n' * 20)
    matrix = tmp_path / "w.csv"
    matrix.write_text("0.5,0.4\n0.5,0.5\n")
    with pytest.raises(SystemExit) as exit:
        main([word.format(data=data, home=tmp_path, matrix=matrix) for word in words])
    printed = capsys.readouterr()
    assert exit.value.code in (2, 6)
    assert said in printed.err + printed.out
    assert "Traceback" not in printed.err


def test_init_and_id(tmp_path: Path) -> None:
    made = peer_command("init", "--home", str(tmp_path / "home"))
    assert made.returncode == 0
    shown = peer_command("id", PEER_HOME=str(tmp_path / "home"))
    assert shown.stdout.strip() == made.stdout.splitlines()[0]
    again = peer_command("init", "--home", str(tmp_path / "home"))
    assert again.returncode == 2
    assert "never overwritten" in again.stderr


def test_flags_beat_environment_beats_file_beats_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.toml"
    file.write_text('codec = "int8"\nlora_r = 3\nrounds = 7\ndata = ["a.jsonl"]\n')
    monkeypatch.setenv("PEER_LORA_R", "4")
    monkeypatch.setenv("PEER_ROUNDS", "8")
    seen: list[PeerConfig] = []
    from peer import cli

    monkeypatch.setattr("peer.inputs.check_inputs", lambda config: seen.append(config) or stop())
    with pytest.raises(Stopped):
        cli.app.meta(["--config", str(file), "run", "--rounds", "9"], exit_on_error=False)
    assert [seen[0].option(name) for name in ("codec", "lora_r", "rounds")] == ["int8", 4, 9]
    assert seen[0].data.data == (Path("a.jsonl"),)
    assert seen[0].training == PeerConfig().training


class Stopped(Exception):
    pass


def stop() -> None:
    raise Stopped


def test_an_unknown_key_of_the_file_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('topologi = "ring"\n')
    result = peer_command("--config", str(file), "run")
    assert result.returncode == 1 or result.returncode == 2
    assert "topologi" in result.stderr + result.stdout
    assert "--topology" in result.stderr + result.stdout


def test_an_unknown_environment_variable_is_refused_with_a_suggestion() -> None:
    check_environment({"PEER_TOPOLOGY": "ring", "PATH": "", "PEER_JSON": "1"})
    with pytest.raises(LocalError, match="Did you mean PEER_TOPOLOGY"):
        check_environment({"PEER_TOPOLOGI": "ring"})


def test_every_option_is_documented_and_survives_json() -> None:
    files = (peer.learning_options.__file__, peer.group_options.__file__)
    trees = [ast.parse(Path(file).read_text()) for file in files]
    described = {
        declared.target.id
        for tree in trees
        for section in ast.walk(tree)
        if isinstance(section, ast.ClassDef)
        for declared, sentence in itertools.pairwise(section.body)
        if isinstance(declared, ast.AnnAssign) and isinstance(declared.target, ast.Name)
        if isinstance(sentence, ast.Expr) and isinstance(sentence.value, ast.Constant)
    }
    assert OPTIONS.keys() == described, "an option has no sentence for --help"
    config = PeerConfig.of(data=(Path("a"),), join=("x",), lora_r=5, home=Path("/h"))
    assert PeerConfig.from_json(config.to_json()) == config
    assert PeerConfig.from_json(PeerConfig().to_json()) == PeerConfig()


def test_methods_lists_every_entry_of_the_catalogues(capsys: pytest.CaptureFixture[str]) -> None:
    from peer.run_plan import CATALOGUES

    with pytest.raises(SystemExit) as ended:
        main(["methods"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    for option, catalogue in CATALOGUES.items():
        assert f"--{option}\n" in told
        assert all(f"\n  {name}" in told for name in catalogue)


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (OSError(errno.EMFILE, "Too many open files"), 8, "raise the limit, for example `ulimit -n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/tmp/x"),
            8,
            "/tmp/x: No space left on device: free",
        ),
        (OSError(errno.EINVAL, "Invalid argument"), 1, "this is a bug"),
        (
            ExceptionGroup("", [OSError(errno.EMFILE, "Too many open files"), ValueError()]),
            1,
            "this is a bug",
        ),
    ],
)
def test_a_machine_at_its_limits_is_told_from_a_bug(
    raised: Exception,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(words: object) -> int:
        raise raised

    monkeypatch.setattr("peer.cli.run_command", refuse)
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == code
    assert said in capsys.readouterr().err


def test_mistakes_are_told_before_anything_heavy_is_imported() -> None:
    code = "import sys, peer.cli, peer.inputs; print(sorted({'torch', 'libp2p', 'transformers'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--topology", "rign"], "Did you mean 'ring'"),
        (["--eval-data", "nowhere.txt"], "there is no data file nowhere.txt"),
        (["--join", "/ip4/1.2.3.4/tcp/1"], "malformed address"),
    ],
)
def test_what_can_be_refused_at_once_is(words: list[str], told: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a line\n")
    with pytest.raises(LocalError, match=re.escape(told)):
        cli_run(["--data", str(text), "--home", str(tmp_path / "home"), *words])
    assert not (tmp_path / "home").exists()


def test_a_port_that_is_taken_is_refused_at_once(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a line\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LocalError, match=f"port {port} is in use"):
            cli_run(["--data", str(text), "--listen", f"/ip4/127.0.0.1/tcp/{port}"])


def cli_run(words: list[str]) -> None:
    from peer import cli

    cli.app.meta(["run", *words], exit_on_error=False)


def test_the_version_is_the_installed_one() -> None:
    told = peer_command("--version")
    assert (
        told.stdout.strip() == f"gossip-peer {metadata.version('gossip-peer')}, protocol {PROTOCOL_VERSION}"
    )


def test_help_shows_everyday_options_in_groups_and_help_all_every_one() -> None:
    short, everything = (peer_command("run", flag).stdout for flag in ("--help", "--help-all"))
    shown = set(re.findall(r"--[a-z][a-z0-9-]*", short))
    flags = {option.flag: option for option in OPTIONS.values()}
    assert shown & flags.keys() == {flag for flag, option in flags.items() if option.everyday}
    assert flags.keys() <= set(re.findall(r"--[a-z][a-z0-9-]*", everything))
    for title in ("Your text", "The run", "Others", "Privacy"):
        assert f" {title} " in short
    assert "peer run --help-all" in short
    assert len(short.splitlines()) < len(everything.splitlines()) / 2
