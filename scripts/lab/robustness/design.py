"""The parts of the experiment on robustness, and their cells. It runs nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import product

from gossip.errors import LocalError
from scripts.lab.robustness.cell import ALONE, Attacked

ATTACKS = (
    "sign", "noise", "scale", "ipm", "alie", "dissensus", "drift", "stale", "free-rider", "equivocate", "ascent",
    "label-flip",
)  # fmt: skip
"""All that a language model can be attacked with; backdoors have a part of their own."""
FEW = ("sign", "dissensus", "drift", "label-flip")
"""One of each sort, for small tables: an outlier, one told to each reader, a stealthy one, and data."""
TOPOLOGIES = ("random-regular:4", "epidemic:4")
"""A static graph and one drawn anew each round, both with rows of 4."""
PARTITIONS = ("natural", "iid")
"""One language a peer, which all attacks are tried on, and all languages alike, on which few are: it is easier."""
RULES = ("none", "clip", "nna", "trimmed", "median", "geometric-median")
"""Rules of ``--robust`` that are compared with the default."""

CLASSIFYING = Attacked(
    workload="sources", partition="iid", peers=8, rounds=20, batch_size=8, learning_rate=3e-3
)
"""Training in which a backdoor is learned."""
PLANTED = ("backdoor", "backdoor+scale")
"""A backdoor as it is learned, and what the liar has learned sent 10 times."""


def cells(seeds: int, parts: Sequence[str] = ()) -> list[Attacked]:
    """Return the cells of some parts (default: of all), each once.

    Raises:
        LocalError: no such part.
    """
    for part in parts:
        if part not in PARTS:
            raise LocalError(f"unknown part {part!r}; known: {', '.join(PARTS)}")
    chosen = [PARTS[part]() for part in parts or PARTS]
    return list(
        dict.fromkeys(
            dataclasses.replace(cell, seed=seed) for part in chosen for cell in part for seed in range(seeds)
        )
    )


def _clean() -> list[Attacked]:
    return [
        Attacked(topology=topology, partition=partition, guard=guard)
        for guard, partition, topology in product(("default", "none"), PARTITIONS, TOPOLOGIES)
    ]


def _liars(count: int) -> Callable[[], list[Attacked]]:
    def attacked() -> list[Attacked]:
        return [
            Attacked(topology=topology, partition=partition, attack=attack, liars=count)
            for partition, topology in product(PARTITIONS, TOPOLOGIES)
            for attack in (ATTACKS if partition == "natural" else FEW)
        ]

    return attacked


def _control() -> list[Attacked]:
    return [Attacked(guard="unguarded", attack=attack, liars=2) for attack in ATTACKS]


def _elsewhere() -> list[Attacked]:
    where = [
        Attacked(topology="ring"),
        Attacked(topology="epidemic:3"),
        Attacked(topology="ring", guard="trim-clip"),
    ]
    lying = [dataclasses.replace(cell, attack=attack, liars=2) for cell in where for attack in FEW]
    return [*where, *lying]


def _rules() -> list[Attacked]:
    guards = [Attacked(guard=rule) for rule in RULES]
    return [
        *guards,
        *(dataclasses.replace(cell, attack=attack, liars=2) for cell in guards for attack in FEW),
    ]


def _backdoor() -> list[Attacked]:
    clean = [dataclasses.replace(CLASSIFYING, guard=guard) for guard in ("default", "unguarded")]
    alone = dataclasses.replace(CLASSIFYING, topology=ALONE)
    planted = [dataclasses.replace(cell, attack=attack, liars=2) for cell in clean for attack in PLANTED]
    return [dataclasses.replace(alone, attack="backdoor", liars=2), *clean, *planted]


PARTS: dict[str, Callable[[], list[Attacked]]] = {
    "clean": _clean,
    "two": _liars(2),
    "control": _control,
    "three": _liars(3),
    "elsewhere": _elsewhere,
    "rules": _rules,
    "backdoor": _backdoor,
}
"""Parts by name, in the order in which they are run."""
