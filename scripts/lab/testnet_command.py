"""A local network of peers, compared with learning alone and with central training.

    python scripts/testnet.py                  the demo: four languages, a real language model
    python scripts/testnet.py --model tiny     the same in under a minute

Flags after ``--`` go to every ``peer run``: ``python scripts/testnet.py --peers 8 -- --lora-r 4``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from gossip.errors import LocalError
from peer.journal_events import megabytes
from scripts.lab.testnet import PeerView, TestnetConfig, run_testnet

app = App(name="testnet.py", help=__doc__, default_parameter=Parameter(show_env_var=False))
console = Console()


class Screen:
    """The live table on a terminal; plain lines where there is none."""

    def __init__(self, live: Live | None) -> None:
        self._live = live
        self._views: dict[tuple[str, str], PeerView] = {}
        self._stages: dict[tuple[str, str], str] = {}
        self._drawn = 0.0

    def watch(self, view: PeerView, event: dict[str, Any]) -> None:
        """Take one event of one peer."""
        key = (view.regime, view.name)
        self._views[key] = view
        if event["event"] == "preparing":
            self._stages[key] = event["stage"]
        elif event["event"] in ("ready", "listening", "step", "finished"):
            self._stages[key] = {"step": "train", "finished": "done"}.get(event["event"], event["event"])
        if self._live is None:
            self._print(view, event)
        elif time.monotonic() - self._drawn > 0.2 or event["event"] in ("round", "eval", "finished"):
            self._drawn = time.monotonic()
            self._live.update(self.table(view.regime))

    def _print(self, view: PeerView, event: dict[str, Any]) -> None:
        if event["event"] == "round":
            what = "merge" if event["merging"] else f"loss {event['loss']:.3f}"
            console.print(
                f"{view.regime:8} {view.name:12} round {event['round'] + 1}/{event['rounds']} {what} "
                f"read {len(event['mixed'])} in {megabytes(event['bytes_in'])}"
            )
        elif event["event"] == "eval":
            found = view.evals[-1]
            right = ""
            if found.accuracy is not None:
                right = f"; right labels own {found.accuracy:.1%}, over all {found.accuracy_all:.1%}"
            console.print(
                f"{view.regime:8} {view.name:12} after round {event['round']}: held-out loss "
                f"own {found.own:.3f}, over all {found.all:.3f}{right}"
            )

    def table(self, regime: str) -> Table:
        """Return the table of one regime's peers."""
        table = Table(title=f"{regime} learning", title_justify="left")
        shown = {key: view for key, view in self._views.items() if key[0] == regime}
        labels = any(view.evals and view.evals[-1].accuracy is not None for view in shown.values())
        losses = ("loss own", "loss all", *(("right own", "right all") if labels else ()))
        for column in ("peer", "doing", "round", "step", *losses, "read from", "in", "out", "age"):
            table.add_column(column, justify="left" if column in ("peer", "doing", "read from") else "right")
        for key, view in shown.items():
            table.add_row(*self._row(key, view, labels))
        return table

    def _row(self, key: tuple[str, str], view: PeerView, labels: bool) -> list[str]:
        """Return the cells of one peer; with those of right labels, if ``labels`` are what is learned."""
        done, step = view.last.get("round"), view.last.get("step")
        found = view.evals[-1] if view.evals else None
        right = (found.accuracy, found.accuracy_all) if found else (None, None)
        return [
            view.name,
            self._stages.get(key, "start"),
            f"{done['round'] + 1}/{done['rounds']}" if done else "",
            f"{step['step']}/{step['steps']}" if step else "",
            f"{found.own:.3f}" if found else "",
            f"{found.all:.3f}" if found else "",
            *(("" if share is None else f"{share:.1%}" for share in right) if labels else ()),
            ", ".join(done["mixed"]) if done else "",
            megabytes(done["bytes_in"]) if done else "",
            megabytes(done["bytes_out"]) if done else "",
            f"{done['age']} steps" if done else "",
        ]


def prepare_model(model: str) -> None:
    """Fetch and convert the base model once, with a progress bar, before four processes ask for it at once."""
    from peer.training import base_models

    columns = (TextColumn("[bold]{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"base model {model}", total=None)

        def report(stage: str, done: float | None) -> None:
            progress.update(
                task, description=f"base model {model}: {stage}", total=1.0, completed=done or 0.0
            )

        source = base_models.resolve(model, progress=report)
    console.print(f"base model {source.name} is ready")


def plot(views: dict[str, list[PeerView]], summary: dict[str, Any], path: Path) -> None:
    """Draw loss over all shards against rounds, every regime, to a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colors = {"gossip": "tab:blue", "local": "tab:orange", "central": "tab:green"}
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for regime, regime_views in views.items():
        for view in regime_views:
            rounds, losses = [e.round for e in view.evals], [e.all for e in view.evals]
            axes.plot(rounds, losses, color=colors[regime], alpha=0.25, lw=1)
        rounds = [e.round for e in regime_views[0].evals]
        mean = [
            sum(view.evals[i].all for view in regime_views) / len(regime_views) for i in range(len(rounds))
        ]
        label = f"{regime}: {mean[-1]:.3f}" + (" (mean of peers)" if len(regime_views) > 1 else "")
        axes.plot(rounds, mean, "o-", color=colors[regime], label=label, ms=4)
    axes.axhline(summary["base_loss"], color="gray", ls=":", label=f"base model: {summary['base_loss']:.3f}")
    axes.set_xlabel("round")
    axes.set_ylabel(f"held-out loss over all shards (nats per {_target(summary)})")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _target(summary: dict[str, Any]) -> str:
    """Return what a loss is measured per."""
    return "token" if summary["base_accuracy"] is None else "text"


def print_summary(summary: dict[str, Any], views: dict[str, list[PeerView]]) -> None:
    """Print the final table and where everything is."""
    title = f"held-out loss over all shards, nats per {_target(summary)}"
    labels = summary["base_accuracy"] is not None
    table = Table(title=title, title_justify="left")
    for column in ("", "loss", "gain over base", "share of central", *(("right labels",) if labels else ())):
        table.add_column(column, justify="right" if column else "left")
    base, central = summary["base_loss"], summary["central_loss"]
    rows = (
        ("base model, random head" if labels else "base model", base, summary["base_accuracy"]),
        ("local only", summary["local_loss"], summary["local_accuracy"]),
        ("gossip, mean of peers", summary["gossip_loss_mean"], summary["gossip_accuracy_mean"]),
        ("gossip, worst peer", summary["gossip_loss_worst"], summary["gossip_accuracy_worst"]),
        ("centralized", central, summary["central_accuracy"]),
    )
    for name, loss, accuracy in rows:
        if loss is None:
            continue
        gain = base - loss
        share = f"{gain / (base - central):.0%}" if central is not None and base > central else ""
        table.add_row(name, f"{loss:.3f}", f"{gain:.3f}", share, *([f"{accuracy:.1%}"] if labels else []))
    console.print(table)
    console.print(f"peers differ by {summary['consensus_distance']:.2%} of their adapters' norm")
    for peer in summary["peers"]:
        console.print(
            f"{peer['name']:12} in {megabytes(peer['bytes_in'])}, out {megabytes(peer['bytes_out'])}, "
            f"{peer['adapter']}",
            soft_wrap=True,
        )
    first = views["gossip"][0]
    console.print("load one with", soft_wrap=True)
    console.print(f"    {first.last['finished']['load']}", soft_wrap=True, markup=False, highlight=False)


@app.default
def launch(
    *options: Annotated[
        str, Parameter(allow_leading_hyphen=True, help="Flags for every peer run, after --.")
    ],
    peers: int = 4,
    rounds: int | None = None,
    topology: str | None = None,
    model: str = "smollm2-135m",
    data: str = "demo",
    codec: str | None = None,
    collect_s: float | None = None,
    compare: str = "local,central",
    out: Path | None = None,
    seed: int = 0,
    keep: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Run a network of real peer processes on this machine and say how well it learned.

    Parameters
    ----------
    peers: Number of peers, each a process.
    rounds: Rounds of every regime (default: the peer's).
    topology: Who reads whom (default: the peer's).
    model: Base model: smollm2-135m, tiny, a folder or a Hugging Face id.
    data: "demo" (four languages), or a folder with one data file per peer.
    codec: How adapters travel (default: the peer's).
    collect_s: Longest wait for neighbors, seconds; 0 = asynchronous (default: the peer's).
    compare: Baselines to run: local,central or none.
    out: Folder for everything (default: runs/ and the time).
    seed: Seed of data, adapter and topologies.
    keep: Keep checkpoints and the baselines' homes too.
    """
    config = TestnetConfig(
        peers=peers,
        rounds=rounds,
        topology=topology,
        model=model,
        data=data,
        codec=codec,
        collect_s=collect_s,
        compare=() if compare == "none" else tuple(compare.split(",")),
        out=out or Path("runs") / time.strftime("%Y%m%d-%H%M%S"),
        seed=seed,
        keep=keep,
        options=options,
    )
    try:
        prepare_model(config.model)
        if console.is_terminal:
            with Live(console=console, refresh_per_second=4) as live:
                summary, views = run_testnet(config, Screen(live).watch)
        else:
            summary, views = run_testnet(config, Screen(None).watch)
        plot(views, summary, config.out / "curves.png")
    except LocalError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"interrupted; what the peers have learned so far is in {config.out}", file=sys.stderr)
        return 130
    print_summary(summary, views)
    console.print(
        f"curves in {config.out / 'curves.png'}, numbers in {config.out / 'summary.json'}", soft_wrap=True
    )
    console.print(f"took {summary['wall_s']:.0f} s")
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return int(app(words))
