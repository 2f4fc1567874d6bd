"""``peer topology``: light to import, advice ranked by seconds, refusals that say what would be valid."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gossip.errors import LocalError
from peer.topology_cli import topology

CASE = ["--peers", "24", "--degree-max", "3", "--payload-mb", "4", "--bandwidth-mbit", "20", "--loss", "0.05"]


def command(*words: str) -> None:
    topology(list(words), result_action="return_value")


def test_importing_it_is_light() -> None:
    code = (
        "import sys\nimport peer.topology_cli\n"
        "heavy = {'torch', 'numpy', 'scipy', 'networkx', 'pyarrow', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_advice(capsys: pytest.CaptureFixture[str]) -> None:
    command("advise", *CASE, "--churn", "0.2", "--json")
    ranked = json.loads(capsys.readouterr().out)
    assert [advised["seconds"] for advised in ranked] == sorted(advised["seconds"] for advised in ranked)
    names = {advised["name"] for advised in ranked}
    assert {"ring", "base:1", "epidemic:3"} <= names
    assert not {"complete", "star"} & names  # wider than 3
    command("advise", *CASE)
    table = capsys.readouterr().out
    assert table.count("\n- ") == len(ranked)
    assert "mean error" in table


def test_the_page_shows_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "topology.md").read_text()
    line = next(line for line in page.splitlines() if "--liars" in line)
    command("advise", *line.split()[3:])
    printed = capsys.readouterr().out.splitlines()
    rows = [printed.index(heading) for heading in printed if heading.startswith("topology ")]
    for start in rows[1:]:  # after the ranking, whose seconds the page leaves out
        for shown in printed[start : printed.index("", start)]:
            assert shown in page


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--peers", "1", "at least 2 peers"),
        ("--degree-max", "0", "degree of at least 1"),
        ("--loss", "-0.1", "loss must be from 0 to below 1"),
        ("--bandwidth-mbit", "0", "up_mbit must be greater than 0"),
        ("--payload-mb", "-4", "--payload-mb must be greater than 0"),
        ("--tolerance", "2", "--tolerance must lie between 0 and 1"),
    ],
)
def test_bad_cases_are_refused(flag: str, value: str, says: str) -> None:
    with pytest.raises(LocalError, match=says):
        command("advise", *CASE, flag, value) if flag not in CASE else command(
            "advise",
            *(value if before == flag else word for before, word in zip(["", *CASE], CASE, strict=False)),
        )


def test_the_catalogue_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    command("list")
    printed = capsys.readouterr().out
    assert "random-regular:K" in printed
    assert "metropolis-hastings" in printed
    command("list", "--json")
    assert set(json.loads(capsys.readouterr().out)) == {"topologies", "weights"}
