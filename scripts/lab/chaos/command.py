"""The commands ``chaos`` and ``simulate`` of the testnet."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gossip.errors import LocalError
from scripts.lab.chaos.spec import Backend


class BarMissed(LocalError):
    """A figure of a chaos run does not hold."""

    exit_code = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosOptions:
    """How to run a chaos spec."""

    out: Annotated[Path, Parameter(show_default=lambda path: "runs/ and the time")] = field(
        default_factory=lambda: Path("runs") / time.strftime("chaos-%Y%m%d-%H%M%S")
    )
    """Folder for everything; report.html is the page."""
    shorten: float = 1.0
    """Let everything come and last a so many times shorter time."""
    backend: Backend = "auto"
    """What carries the packets; auto: namespaces where they can be had, else proxies on loopback."""


def chaos(
    spec: Annotated[
        Path, Parameter(help="TOML file: a table [run] and [[fault]] tables (gossip/faults.py).")
    ],
    *,
    options: Annotated[ChaosOptions, Parameter(name="*")] = ChaosOptions(),
) -> None:
    """Run real peers while faults befall them, and write one page of what came of it."""
    from scripts.lab.chaos.judge import judge
    from scripts.lab.chaos.report import verdict_rows, write_report
    from scripts.lab.chaos.run import run_chaos
    from scripts.lab.chaos.spec import read_spec
    from scripts.lab.page import text_table

    if options.shorten <= 0:
        raise LocalError(f"--shorten is above 0, not {options.shorten}")
    whole = read_spec(spec).shortened(options.shorten)
    reference = None
    if whole.reference:
        print("without faults:", flush=True)
        reference = run_chaos(whole.without_faults(), options.out / "reference", options.backend, _say)
    print("with faults:", flush=True)
    record = run_chaos(whole, options.out / "run", options.backend, _say)
    figures = judge(record, reference)
    page = options.out / "report.html"
    write_report(record, reference, figures, page)
    print("\n".join(text_table(verdict_rows(figures))))
    print(f"report in {page}")
    missed = [figure.name for figure in figures if figure.holds is False]
    if missed:
        raise BarMissed(f"{len(missed)} figures do not hold: {'; '.join(missed)}")


def simulate(*, first: int = 0, count: int = 300) -> None:
    """Run seeded simulations with random faults; all invariants are checked after every event.

    Args:
        first: The first seed.
        count: How many seeds.
    """
    from scripts.lab.chaos.simulate import run_trials

    print(run_trials(first, count))


def _say(line: str) -> None:
    print(f"  {line}", flush=True)
