"""What promises of differential privacy are worth: ``python -m scripts.lab.privacy_bounds [--out FOLDER]``.

For the training of docs/differential-privacy.md, the noise that a promise needs, and what nobody who must say whether
a row was among those learned from can do better than. Nothing is drawn: each time the figures are the same.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from peer.privacy.accounting import noise_multiplier_for
from peer.privacy.charge import Charge
from peer.privacy.guesses import area_under_curve, profile, true_positives
from scripts.lab.records import Record, Value, record_of_table, table_of, write_record

EPSILONS = (1, 2, 4, 8)
DELTA, RATE, STEPS = 1e-5, 64 / 450, 60
"""Steps of 64 of 450 rows, as in ``compare.py privacy``."""
HEADING = (
    "epsilon",
    "noise over clip",
    "found, with 1 % false alarms, %",
    "found, with 5 % false alarms, %",
    "area under the curve",
)


def bounds() -> Record:
    """Return the record, a row a promise; what bounds guesses is rounded up."""
    rows: list[Sequence[Value]] = [HEADING]
    for epsilon in EPSILONS:
        noise = noise_multiplier_for(epsilon, DELTA, RATE, STEPS)
        pairs = profile([Charge(noise, RATE, STEPS)])
        found = (math.ceil(1000 * true_positives(pairs, alarms)) / 10 for alarms in (0.01, 0.05))
        rows.append([str(epsilon), noise, *found, math.ceil(100 * area_under_curve(pairs)) / 100])
    title = "What a promise is worth against the best guess"
    record = record_of_table(title, "python -m scripts.lab.privacy_bounds --out runs/bounds", rows, 1)
    return replace(record, digits={**record.digits, HEADING[1]: 2, HEADING[-1]: 2})


def main(words: Sequence[str] | None = None) -> None:
    """Print the table, and write it as a record."""
    parser = argparse.ArgumentParser(description="What promises of differential privacy are worth.")
    parser.add_argument("--out", type=Path, help="folder that gets record.json")
    asked = parser.parse_args(words)
    record = bounds()
    print("\n".join(table_of(record, {})))
    if asked.out is not None:
        write_record(asked.out / "record.json", record)


if __name__ == "__main__":
    main()
