"""How fast everything is: one table, and a JSON line per figure appended to bench.jsonl.

How to call it:

    python scripts/bench.py                     all but the slow ones (two minutes)
    python scripts/bench.py mixing transport    some sections, slow ones too
    python scripts/bench.py learning            the demo as a figure (ten minutes)

Machines differ: trust the ratios, both sides of which are measured in the same run. Targets are those the project set
itself; a missed one is printed as such and is not an error.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from gossip.errors import LocalError
from scripts.benchmarks.rows import Row
from scripts.lab.checkout import commit
from scripts.lab.program import run_program

SECTIONS = (
    "mixing",
    "codecs",
    "masks",
    "simulation",
    "transport",
    "floods",
    "topology",
    "rounds",
    "methods",
    "dp",
    "memory",
    "learning",
)
"""Names of sections, each a file of this room with a function ``rows``."""
SLOW = frozenset({"floods", "topology", "methods", "dp", "memory", "learning"})
"""Sections that run only when they are asked for: half a minute to ten minutes each."""
PACKAGES = ("torch", "libp2p", "trio", "transformers", "peft")

app = App(name="python scripts/bench.py", help=__doc__, default_parameter=Parameter(show_env_var=False))


@app.default
def bench(
    *sections: Annotated[str, Parameter(help=f"Of {', '.join(SECTIONS)}.")],
    quick: Annotated[
        bool, Parameter(negative=(), help="On sizes that take seconds: only to see that everything runs.")
    ] = False,
    out: Annotated[Path, Parameter(help="File to which a JSON line per figure is appended.")] = Path(
        "bench.jsonl"
    ),
) -> None:
    """Run sections, print the table, append JSON lines."""
    unknown = [name for name in sections if name not in SECTIONS]
    if unknown:
        raise LocalError(f"unknown section {', '.join(unknown)}; known: {', '.join(SECTIONS)}")
    chosen = sections or [name for name in SECTIONS if name not in SLOW]
    with out.open("a", encoding="utf-8") as file:
        for name in chosen:
            for row in section_of(name)(quick):
                print(_line(row), flush=True)
                record = {"section": name, **dataclasses.asdict(row), "quick": quick, **machine()}
                file.write(json.dumps(record) + "\n")


def section_of(name: str) -> Callable[[bool], Iterator[Row]]:
    """Return the function that measures a section; imports what it needs."""
    measure: Callable[[bool], Iterator[Row]] = importlib.import_module(f"scripts.benchmarks.{name}").rows
    return measure


def _line(row: Row) -> str:
    verdict = {None: "", True: "met", False: "MISSED"}[row.met]
    return f"{row.name:52} {row.value:10.3f} {row.unit:5} {row.target:8} {verdict}"


def machine() -> dict[str, Any]:
    """Return what a figure depends on."""
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "commit": commit(),
        "cpus": os.cpu_count(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def main(words: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_program(app, words, called=None, extra="demo")
