"""``scripts/compare.py agents``: what sharing answers, weights or both is worth to agents, over seeds and bases."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

from cyclopts import Parameter

from gossip.errors import LocalError
from peer.durable import write_atomically
from scripts.lab.command import note

if TYPE_CHECKING:
    from scripts.lab.agents.tables import Outcomes
    from scripts.lab.agents.trial import Trial

RESULTS = "trials.json"
"""In the folder of the results: every finished trial."""


def agents(
    *,
    out: Annotated[Path, Parameter(help="Folder of the results; trials that are in it are not run again.")],
    seeds: Annotated[int, Parameter(help="Paired repetitions, each with a base model of its own.")] = 5,
    settings: Annotated[list[str] | None, Parameter(help="all, one; default: both.")] = None,
    methods: Annotated[list[str] | None, Parameter(help="Default: all.")] = None,
    rounds: Annotated[int, Parameter(help="Rounds of ten steps.")] = 15,
    learning_rate: Annotated[float, Parameter(help="Of all methods.")] = 4e-4,
    external: Annotated[int, Parameter(help="Groups of eight that are others' answers.")] = 4,
) -> None:
    """Compare agents that learn alone, from each other's answers, by mixing weights, and all in one.

    In setting one each agent practices a skill of its own, in setting all each practices all.
    """
    from scripts.lab.agents import tables
    from scripts.lab.agents.trial import METHODS, Setting, Trial
    from scripts.lab.records import table_of, write_record

    for chosen, known in ((settings, get_args(Setting)), (methods, METHODS)):
        strange = set(chosen or ()) - set(known)
        if strange:
            raise LocalError(f"unknown {', '.join(sorted(strange))}; known: {', '.join(known)}")
    out.mkdir(parents=True, exist_ok=True)
    asked = [
        Trial(
            setting=setting,
            method=method,
            seed=seed,
            rounds=rounds,
            learning_rate=learning_rate,
            own=8 - external,
            external=external,
        )
        for seed in range(seeds)
        for setting in get_args(Setting)
        for method in METHODS
        if (settings is None or setting in settings) and (methods is None or method in methods)
    ]
    command = f"python scripts/compare.py agents --seeds {seeds} --out runs/compare/agents"
    record = tables.record(_outcomes(asked, out), command)
    write_record(out / "record.json", record)
    print("\n".join(table_of(record, {})))


def _outcomes(asked: Sequence[Trial], out: Path) -> Outcomes:
    """Run what is not kept in the folder yet, one trial after another; each is kept at once."""
    from scripts.lab.agents.trial import Outcome, run_trial

    kept = out / RESULTS
    found: dict[str, Outcome] = {}
    if kept.exists():
        found = {name: Outcome(**values) for name, values in json.loads(kept.read_text()).items()}
    for trial in asked:
        if str(trial) not in found:
            found[str(trial)] = run_trial(trial, out / "bases")
            record = {name: one._asdict() for name, one in found.items()}
            write_atomically(kept, json.dumps(record, indent=1).encode())
        outcome = found[str(trial)]
        note(
            f"{trial.setting} {trial.method} seed {trial.seed}: {outcome.all:.3f}, own {outcome.own:.3f}, "
            f"{outcome.seconds:.0f} s"
        )
    return {(trial.setting, trial.method, trial.seed): found[str(trial)] for trial in asked}
