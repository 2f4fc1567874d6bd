"""Which way of learning together is best: methods on the same text, splits, initial adapter and tokens, over seeds.

    python scripts/compare.py run --workload languages-tiny --method ring --method "epidemic:3 codec=int8" --out runs/a
    python scripts/compare.py run --spec comparison.toml --out runs/b
    python scripts/compare.py report --out runs/a
    python scripts/compare.py robustness --out runs/c
    python scripts/compare.py privacy --out runs/private
    python scripts/compare.py agents --out runs/agents

A method is a topology and settings of a peer: "epidemic:3 codec=int4 optimizer=noloco local_steps=5 overlap". The
baselines local, central, central-large, fedavg and fedopt always run, and may be given with settings, too: "central
batch_size=4". All train on the same number of tokens. Every method's learning rate is tuned, on a grid that is widened
while the best rate lies at its edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from scripts.lab.agents.command import agents
from scripts.lab.command import note
from scripts.lab.comparison.design import Comparison, read_comparison
from scripts.lab.program import program, run_program
from scripts.lab.robustness.command import robustness

app = App(
    name="python scripts/compare.py",
    help=__doc__,
    default_parameter=Parameter(negative_iterable=(), consume_multiple=True, show_env_var=False),
)

OutOption = Annotated[Path, Parameter(help="Folder of the results.")]

WorkloadOption = Annotated[str | None, Parameter(help="Name, file:PATH[:FIELD] or labeled:PATH[:FIELD].")]

SpecOption = Annotated[Path | None, Parameter(help="TOML file with these options; flags count before it.")]

WideningsOption = Annotated[
    int | None, Parameter(help="Rates beyond an edge of the grid at most; default: 4.")
]

UntilOption = Annotated[
    str | None, Parameter(help="rounds, or converged: until the validation loss falls no more.")
]

PatienceOption = Annotated[
    int | None, Parameter(help="Evaluations without a better validation loss; default: 3.")
]

RoundsFactorOption = Annotated[
    int | None, Parameter(help="At most so many times --rounds until converged; default: 10.")
]

EvaluateEveryOption = Annotated[
    int | None, Parameter(help="Rounds; default: for a quarter of the cost of training.")
]

StepOption = Annotated[
    float | None, Parameter(help="Virtual seconds of a step; default: 0.1; 0 = as measured here, once.")
]


@app.command
def run(
    *,
    out: OutOption,
    workload: WorkloadOption = None,
    method: Annotated[list[str] | None, Parameter(help="What to compare; may be given many times.")] = None,
    baselines: Annotated[
        list[str] | None, Parameter(help="Which of them; default: all that no --method names.")
    ] = None,
    spec: SpecOption = None,
    partition: Annotated[str | None, Parameter(help="As dirichlet:0.3; default: the workload's own.")] = None,
    peers: Annotated[int | None, Parameter(help="Default: 8.")] = None,
    rounds: Annotated[int | None, Parameter(help="Rounds before the final merge; default: 20.")] = None,
    local_steps: Annotated[int | None, Parameter(help="Steps a round; default: the workload's own.")] = None,
    seeds: Annotated[int | None, Parameter(help="Paired repetitions; default: 5.")] = None,
    learning_rates: Annotated[
        list[float] | None, Parameter(help="The grid to begin with; one = no search.")
    ] = None,
    widenings: WideningsOption = None,
    tune_seeds: Annotated[int | None, Parameter(help="Seeds that rates are tuned with; default: 1.")] = None,
    set: Annotated[list[str] | None, Parameter(help="KEY=VALUE: a setting of all methods.")] = None,
    until: UntilOption = None,
    patience: PatienceOption = None,
    rounds_factor: RoundsFactorOption = None,
    evaluate_every: EvaluateEveryOption = None,
    latency_s: Annotated[float | None, Parameter(help="One way; default: 0.05.")] = None,
    bandwidth_mbit: Annotated[float | None, Parameter(help="Of a transfer; default: 20.")] = None,
    loss: Annotated[float | None, Parameter(help="Probability that a message is lost; default: 0.")] = None,
    step_s: StepOption = None,
    jobs: Annotated[int, Parameter(help="Processes; 0 = one per core.")] = 0,
) -> None:
    """Tune and compare. Broken off, even by kill -9, the same command goes on where it stopped."""
    options = {**locals(), "methods": method, "settings": set}
    given = {name: options[name] for name in options if name not in ("out", "method", "spec", "set", "jobs")}
    if step_s == 0.0:
        from scripts.lab.comparison.step_time import measured_step_s

        given["step_s"] = measured_step_s(read_comparison({**given, "step_s": None}, spec), out)
    comparison = read_comparison(given, spec)
    _compare(comparison, out, jobs)
    note(f"results in {out}; now: {program()} report --out {out}")


@app.command
def report(*, out: OutOption) -> None:
    """Print the first table; write plots, table.md and one self-contained report.html."""
    from scripts.lab.comparison.report import write_report

    target, table = write_report(out)
    print("\n".join(table))
    note(f"written to {target}")


app.command(agents)
app.command(robustness)


@app.command
def privacy(
    *,
    out: OutOption,
    seeds: Annotated[int, Parameter(help="Paired repetitions.")] = 5,
) -> None:
    """Compare learning alone, with gossip and centrally under differential privacy, on a fixed task; it resumes.

    Prints a table of accuracies (docs/differential-privacy.md). Broken off, the same command goes on where it stopped.
    """
    import torch

    from scripts.lab.comparison.private import compare, table

    torch.set_num_threads(1)
    for trial, accuracy in compare(out, seeds):
        note(
            f"{trial.way}, epsilon {trial.epsilon:g}, rate {trial.rate:g}, seed {trial.seed}: {accuracy:.1%}"
        )
    print("\n".join(table(out)))


@app.command
def privacy_text(*, out: OutOption) -> None:
    """Compare SmolLM2 with and without differential privacy on thousands of rows of text; it resumes."""
    import torch

    from scripts.lab.comparison.private_text import compare, table

    torch.set_num_threads(1)
    for outcome in compare(out):
        note(
            f"epsilon {outcome.epsilon:g}, rate {outcome.rate:g}: {outcome.before:.3f} to {outcome.after:.3f}"
        )
    print("\n".join(table(out)))


def _compare(comparison: Comparison, out: Path, jobs: int) -> None:
    from scripts.lab.comparison.tuning import run_comparison
    from scripts.lab.progress import progress
    from scripts.lab.sweep import OnProgress

    def on_phase(phase: str, total: int) -> AbstractContextManager[OnProgress]:
        note(f"{phase}: {total} runs")
        return progress(total)

    tuned = run_comparison(
        comparison, out, workers=jobs, engine="here" if jobs == 1 else "pool", on_phase=on_phase
    )
    for method in tuned.rates:
        note(tuned.says(method))


def main(words: Sequence[str] | None = None, called: str | None = None) -> int:
    """Run one command and return its exit code; ``called``: how, if not as the script."""
    return run_program(app, words, called=called, extra="research")
