"""How long an optimizer step takes on this machine, for comparisons whose virtual seconds are to be those of here."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

from scripts.lab.comparison.design import Comparison
from scripts.lab.comparison.peers import prepare_peers
from scripts.lab.files import write_file
from scripts.lab.threads import one_thread

STEPS_TIMED = 20
"""After as many that warm up. Source: ours; the clock's two digits settle."""


def measured_step_s(comparison: Comparison, out: Path) -> float:
    """Return wall seconds of one optimizer step of one peer here, to two digits; measured once for a folder.

    It is kept in the folder, because trials with another number would be other trials.
    """
    kept = out / "step_s.json"
    if kept.exists():
        return float(json.loads(kept.read_text()))
    rates = dict.fromkeys(comparison.all_methods(), comparison.learning_rates[0])
    trial = dataclasses.replace(comparison.evaluation(rates)[0], local_steps=STEPS_TIMED)
    with one_thread():
        peers = prepare_peers(trial)
        peers.train(peers.names[0], peers.model.initial)
        begin = time.monotonic()
        peers.train(peers.names[0], peers.model.initial)
        step_s = float(f"{(time.monotonic() - begin) / STEPS_TIMED:.2g}")
    write_file(kept, json.dumps(step_s).encode())
    return step_s
