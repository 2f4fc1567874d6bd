"""A local network of peers, compared with learning alone and with central training.

How to call it:

    python scripts/testnet.py                  four languages, a real model
    python scripts/testnet.py --model tiny     a tiny one, much sooner
    python scripts/testnet.py --from-scratch nano   one that begins untrained, on Shakespeare
    python scripts/testnet.py --task agent     four agents that learn from one another's answers

Flags after -- go to every peer run:

    python scripts/testnet.py --peers 8 -- --lora-r 4

Break it on purpose:

    python scripts/testnet.py chaos scripts/lab/chaos/specs/churn.toml
    python scripts/testnet.py simulate --count 1000
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from scripts.lab.chaos.command import chaos, simulate
from scripts.lab.command import note
from scripts.lab.program import run_program
from scripts.lab.testnet.config import TestnetConfig

if TYPE_CHECKING:
    from rich.console import Console

    from scripts.lab.testnet.summary import Summary

app = App(name="python scripts/testnet.py", help=__doc__, default_parameter=Parameter(show_env_var=False))
app.command(chaos)
app.command(simulate)


@app.default
def launch(
    *options: Annotated[str, Parameter(help="Flags for every peer run, after --.")],
    config: Annotated[TestnetConfig, Parameter(name="*")] = TestnetConfig(),  # noqa: B008 - frozen
) -> None:
    """Run a network of real peer processes on this machine and say how well it learned."""
    config = dataclasses.replace(config, options=options)
    if config.task == "agent":
        from scripts.lab.agents.demo import launch_agents

        launch_agents(config)
        return
    from rich.console import Console

    from scripts.lab.testnet.curves import write_curves
    from scripts.lab.testnet.run import run_testnet
    from scripts.lab.testnet.samples import SAMPLES
    from scripts.lab.testnet.screen import prepare_model, watching

    console = Console()
    try:
        prepare_model(config, console)
        with watching(console) as watch:
            summary, views = run_testnet(config, watch)
    except KeyboardInterrupt:
        note(f"interrupted before gossip was finished; what the peers have learned so far is in {config.out}")
        raise SystemExit(130) from None
    if summary.interrupted:
        note(f"interrupted; finished: {', '.join(views)}; their summary is in {config.out / 'summary.json'}")
        raise SystemExit(130)
    curves = config.out / "curves.png"
    write_curves(summary, curves)
    print_summary(summary, views["gossip"][0].load, console)
    if config.from_scratch:
        console.print((config.out / SAMPLES).read_text(), markup=False, highlight=False)
    console.print(f"curves in {curves}, numbers in {config.out / 'summary.json'}", soft_wrap=True)
    console.print(f"took {summary.wall_s:.0f} s")


def print_summary(summary: Summary, load: str, console: Console) -> None:
    """Print how well it learned, and where everything is.

    Args:
        load: a line of Python that loads one of the adapters.
    """
    from peer.journal_words import megabytes

    _print_table(summary, console)
    console.print(f"peers differ by {summary.consensus_distance:.2%} of their adapters' norm")
    for peer in summary.peers:
        console.print(
            f"{peer.name:12} in {megabytes(peer.bytes_in)}, out {megabytes(peer.bytes_out)}, {peer.adapter}",
            soft_wrap=True,
        )
    console.print("load one with", soft_wrap=True)
    console.print(f"    {load}", soft_wrap=True, markup=False, highlight=False)


def _print_table(summary: Summary, console: Console) -> None:
    from rich.table import Table

    labels = summary.base_accuracy is not None
    title = f"held-out loss over all shards, nats per {summary.target}"
    table = Table(title=title, title_justify="left")
    columns = ("", "budget", "loss", "gain over base", "share of strongest central's")
    for column in (*columns, *(("right labels",) if labels else ())):
        table.add_column(column, justify="left" if column in ("", "budget") else "right")
    for row in summary.rows():
        title = f"{row.title} (strongest)" if row.name == summary.strongest else row.title
        share = "" if row.share is None else f"{row.share:.0%}"
        right = [] if row.accuracy is None else [f"{row.accuracy:.1%}"]
        table.add_row(title, row.budget, f"{row.loss:.3f}", f"{row.gain:.3f}", share, *right)
    console.print(table)
    if summary.strongest:
        console.print(
            "Central training draws from everybody's text alike: with equal tokens it takes as many small steps as all "
            "peers together,\nwith equal time as many steps as one peer, on batches as large as all peers' together."
        )


def main(words: Sequence[str] | None = None, called: str | None = None) -> int:
    """Run the command and return its exit code; ``called``: how, if not as the script."""
    return run_program(app, words, called=called, extra="demo")
