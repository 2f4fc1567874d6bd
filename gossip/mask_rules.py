"""What goes together with masks, which let a reader learn the weighted sum of its row and nothing else.

Whatever needs to see single adapters does not, nor what is no sum; each is refused with a way out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gossip.errors import LocalError
from gossip.final_merge import ALL_MAX
from gossip.masked_sums import READS_MIN
from gossip.methods.catalogue import find
from gossip.methods.codecs import CODECS
from gossip.methods.factors import FACTORS
from gossip.methods.feedback import rule_of
from gossip.methods.method_set import MethodNames
from gossip.methods.optimizers import OPTIMIZERS
from gossip.roster import rows_of
from gossip.wire import MASKED_MAX
from topology.links import Topology

LINEAR_MIXING = ("average", "staleness")
"""Mixing rules that need no more of a row than its weighted sum."""
LINEAR_MERGES = ("average", "none")
"""Final merges that need no more of the others than the sum of their adapters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedRun:
    """What masks are asked to go together with.

    Args:
        names: how the run's methods are written.
        topology: who reads whom.
        roster: all peers of the run; empty = not given.
        collect_s: longest wait for neighbors, seconds; 0 = asynchronous.
        overlap: neighbors are read while the next local steps run.
        budget: a byte budget chooses the codec.
        robust: the rule for a row that may contain liars, as the user has written it.
        readers: who may read, as the user has written it.
    """

    names: MethodNames
    topology: Topology
    roster: Sequence[str]
    collect_s: float
    overlap: bool
    budget: bool
    robust: str
    readers: str


def check(run: MaskedRun) -> None:
    """Refuse what does not go together with ``--mask pairs``.

    Raises:
        LocalError: what it is, why, and what to use instead.
    """
    for problem in (_problem_of_methods(run), _problem_of_rounds(run), _problem_of_rows(run)):
        if problem:
            raise LocalError(f"--mask pairs {problem}")


def _problem_of_methods(run: MaskedRun) -> str:
    names = run.names
    mixing, _, _ = names.mixing.partition(":")
    if run.budget:
        return "sends every value in 4 bytes, and --budget-mb may choose to lose some: leave it out"
    if find("codec", names.codec, CODECS).relative_error > 0.0:
        return (
            f"hides whole numbers that must add up, and --codec {names.codec} loses some: use --codec float32"
        )
    if find("factor rule", names.factors, FACTORS).refactors:
        return f"reads sums of equal tensors, and with --factors {names.factors} ranks may differ: use --factors both"
    if mixing not in LINEAR_MIXING:
        return f"reads one sum, and --mixing {names.mixing} looks at each neighbor: use --mixing average"
    if find("optimizer", names.optimizer, OPTIMIZERS).of_row:
        return (
            f"reads one sum, and --optimizer {names.optimizer} looks at each neighbor: use --optimizer none"
        )
    if run.robust.strip().lower() not in ("auto", "none"):
        return f"reads one sum, and --robust {run.robust} compares single neighbors: use --robust none"
    if rule_of(names.feedback, names.codec)[1].changes:
        return f"sums adapters, and --feedback {names.feedback} sends what rounds have changed: use --feedback none"
    if names.fragments > 1:
        return f"binds sums to all that travels, and --fragments {names.fragments} sends a part: use --fragments 1"
    if names.merge not in LINEAR_MERGES:
        return (
            f"reads one sum, and --merge {names.merge} needs each adapter: use --merge average, or --merge none to end "
            "without one"
        )
    return ""


def _problem_of_rounds(run: MaskedRun) -> str:
    if not run.collect_s:
        return "needs adapters of one round, and --collect-s 0 is asynchronous: use --collect-s 60"
    if run.overlap:
        return "needs all of a row at one time, and --overlap reads it beside the local steps: leave --overlap out"
    if run.readers == "all":
        return "is for those whose row names us: use --readers row"
    return ""


def _problem_of_rows(run: MaskedRun) -> str:
    """Return what is wrong with who reads whom."""
    topology, roster = run.topology, tuple(sorted(run.roster))
    if not roster:
        return "binds every sum to a roster: give --roster and the ids of all peers"
    if not topology.is_static or topology.own_sample or topology.wants:
        return (
            f"needs rows that stay as they are, because sums of changing rows tell single adapters apart, and "
            f"--topology {topology.name} with its weights changes them: use --topology random-regular:4 --weights "
            "metropolis-hastings"
        )
    rows = rows_of(topology, roster)
    reads = sorted(len(rows(peer, "round", 0)) for peer in roster)
    if reads[0] < READS_MIN:
        return (
            f"needs rows that read {READS_MIN} or more, and --topology {topology.name} has some that read {reads[0]}: "
            f"use --topology random-regular:{READS_MIN} among 6 peers or more, or complete among 5"
        )
    if reads[-1] > MASKED_MAX:
        return f"sums at most {MASKED_MAX} adapters, and some rows read {reads[-1]}: use --topology random-regular:4"
    if run.names.merge != "none" and len(roster) > ALL_MAX:
        return f"merges at most {ALL_MAX} peers in one sum, and there are {len(roster)}: use --merge none"
    return ""
