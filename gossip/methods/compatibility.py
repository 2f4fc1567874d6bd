"""Which methods go together, and with which topology: refused at start-up, with a sentence that names a way out.

Methods say what they need (``requirements.py``); here stands what a topology and the settings give. A need is one line
in ``OF_TOPOLOGY`` or ``OF_SETTINGS``; the rest is what does not fit that form: mixing rules that do not mix with the
weights of W, and the step sizes of outer momentum (``stability.py``). Source of the table: algorithms.md section 10.2.
It does not know adapters, and judges for the number of peers that is expected: others may come.

Allowed on purpose: CHOCO's replicas over a changing topology. Ours are kept for each neighbor, and whoever has none
reads the whole adapter: wasteful, not wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gossip.errors import LocalError
from gossip.methods.catalogue import find
from gossip.methods.codecs import CODECS
from gossip.methods.factors import FACTORS
from gossip.methods.feedback import rule_of
from gossip.methods.merging import MERGES
from gossip.methods.method_set import MethodNames
from gossip.methods.mixing import MIXERS
from gossip.methods.optimizers import OPTIMIZERS
from gossip.methods.parts import FRAGMENTS_MAX
from gossip.methods.requirements import Requirements
from gossip.methods.robust import ROBUST
from gossip.methods.stability import Outer, random_bound, static_bound
from gossip.methods.topology_facts import ROUNDING, TopologyFacts, facts_of
from topology.links import Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the other settings of a run give to methods.

    Args:
        collect_s: longest wait for neighbors, seconds; 0 = asynchronous.
        overlap: neighbors are read while the next local steps run.
        codec: how adapters travel.
        codec_is_exact: nothing is lost on the way.
        refactors: products are mixed and split into factors anew.
        robust: the rule for a row that may contain liars.
        fragments: parts of the adapter that take turns in travelling.
    """

    collect_s: float = 60.0
    overlap: bool = False
    codec: str = "float32"
    codec_is_exact: bool = True
    refactors: bool = False
    robust: str = "none"
    fragments: int = 1


class _OfTopology(NamedTuple):
    need: str
    wanted: str
    met: Callable[[TopologyFacts], bool]


class _OfSettings(NamedTuple):
    need: str
    wanted: str
    met: Callable[[Settings], bool]
    given: Callable[[Settings], str]
    instead: str


OF_TOPOLOGY = (
    _OfTopology("doubly_stochastic", "columns of W that sum to 1", lambda facts: facts.doubly_stochastic),
    _OfTopology("symmetric", "a symmetric W", lambda facts: facts.symmetric),
    _OfTopology("static", "the same W in every round", lambda facts: facts.static),
    _OfTopology(
        "positive",
        "a W without negative eigenvalues",
        lambda facts: facts.lambda_min is None or facts.lambda_min >= -ROUNDING,
    ),
    _OfTopology("uniform", "rows of W that read everybody alike", lambda facts: facts.uniform),
)
OF_SETTINGS = (
    _OfSettings(
        "lock_step",
        "rounds in lock step",
        lambda settings: settings.collect_s > 0,
        lambda settings: "--collect-s 0 is asynchronous",
        "--collect-s 60",
    ),
    _OfSettings(
        "lock_step",
        "neighbors' adapters of the same round",
        lambda settings: not settings.overlap,
        lambda settings: "--overlap mixes those of the round before",
        "no --overlap",
    ),
    _OfSettings(
        "exact_codec",
        "adapters that arrive as they were sent",
        lambda settings: settings.codec_is_exact,
        lambda settings: f"--codec {settings.codec} loses some",
        "--codec float32",
    ),
    _OfSettings(
        "linear",
        "tensors that are averaged one by one",
        lambda settings: not settings.refactors,
        lambda settings: "--factors tsvd mixes products and factors them anew",
        "--factors both",
    ),
    _OfSettings(
        "whole_rows",
        "rows that are mixed as they came",
        lambda settings: settings.robust == "none",
        lambda settings: f"--robust {settings.robust} changes them",
        "--robust none",
    ),
    _OfSettings(
        "all_parts",
        "all of what travels in every round",
        lambda settings: settings.fragments == 1,
        lambda settings: f"--fragments {settings.fragments} sends a part",
        "--fragments 1",
    ),
)

SUGGESTED: dict[str, frozenset[str]] = {
    "--topology epidemic-oracle:3": frozenset({"doubly_stochastic"}),
    "--topology random-matching": frozenset({"doubly_stochastic", "symmetric"}),
    "--topology exponential": frozenset({"doubly_stochastic", "static"}),
    "--topology ring": frozenset({"doubly_stochastic", "symmetric", "static"}),
    "--topology ring --weights lazy": frozenset({"doubly_stochastic", "symmetric", "static", "positive"}),
    "--topology complete": frozenset({"doubly_stochastic", "symmetric", "static", "positive", "uniform"}),
}
"""Topologies that give what is needed, the least demanding first."""


def check(
    names: MethodNames,
    topology: Topology,
    peers: int,
    *,
    collect_s: float,
    overlap: bool = False,
    robust: str = "none",
) -> None:
    """Refuse methods that do not go together, or not with this topology.

    Args:
        names: how the run's methods are written.
        peers: how many are expected, >= 1.
        collect_s, overlap, robust: see ``Settings``.

    Raises:
        LocalError: an unknown method, or a clash: who needs what, what there is instead, and what would be valid.
    """
    rule, mixer = find("factor rule", names.factors, FACTORS), find("mixing rule", names.mixing, MIXERS)
    optimizer = find("optimizer", names.optimizer, OPTIMIZERS)
    settings = Settings(
        collect_s=collect_s,
        overlap=overlap,
        codec=names.codec,
        codec_is_exact=find("codec", names.codec, CODECS).relative_error == 0.0,
        refactors=rule.refactors,
        robust=robust,
        fragments=names.fragments,
    )
    needs = _needs(names) | {
        f"--robust {robust}": find("robust rule", robust, ROBUST).requires,
        f"--merge {names.merge}": find("merge", names.merge, MERGES).requires,
    }
    facts = facts_of(topology, peers)
    check_requirements(needs, facts, settings)
    if overlap and names.optimizer != "none":
        raise LocalError(
            f"--optimizer {names.optimizer} counts on local steps that come before the mixing, but with --overlap they "
            "run beside it: use --optimizer none, or no --overlap"
        )
    if rule_of(names.feedback, names.codec)[1].changes:
        check_changes(names)
    if mixer.reweighs:
        check_reweighing(f"--mixing {names.mixing}", f"--optimizer {names.optimizer}", optimizer.requires)
    if mixer.newest_only and optimizer.vectors > 1:  # it adds up what has come in running sums
        raise LocalError(
            f"--optimizer {names.optimizer} counts on what one round has changed, but --mixing {names.mixing} adds up "
            "what all rounds have: use --mixing average, or --optimizer none"
        )
    if optimizer.outer:
        check_outer(f"--optimizer {names.optimizer}", optimizer.outer, facts)


def check_fragments(fragments: int, rounds: int, collect_s: float) -> None:
    """Refuse parts that would not take turns.

    Args:
        fragments: parts of the adapter.
        rounds: of the run.
        collect_s: see ``Settings``.

    Raises:
        LocalError: says why, and a way out.
    """
    if fragments > min(rounds, FRAGMENTS_MAX):
        most = min(rounds, FRAGMENTS_MAX)
        raise LocalError(
            f"--fragments {fragments}: every part travels once at least in --rounds {rounds}, and there are at most "
            f"{FRAGMENTS_MAX}: use {most} or fewer"
        )
    if fragments > 1 and not collect_s:
        raise LocalError(
            f"--fragments {fragments}: parts take turns by the round, and with --collect-s 0 neighbors are in other "
            "rounds than we are: use --collect-s 60, or --fragments 1"
        )


def check_average(last: int, rounds: int, names: MethodNames) -> None:
    """Refuse a mean over the last rounds that there is not.

    Args:
        last: over so many rounds (``gossip/tail_average.py``).
        rounds: of the run.
        names: how its methods are written.

    Raises:
        LocalError: says why, and a way out.
    """
    if last > rounds:
        raise LocalError(
            f"--average-last {last} is the mean over more rounds than --rounds {rounds}: use {rounds} at most"
        )
    if last > 1 and find("factor rule", names.factors, FACTORS).refactors:
        raise LocalError(
            f"--average-last {last} averages tensors one by one, but --factors {names.factors} factors products anew "
            "in each round: use --factors both, or no --average-last"
        )


def counts_on_whole_rows(names: MethodNames) -> str:
    """Return which method, as it is written, a robust rule would put out of order; empty = none."""
    return next((method for method, required in _needs(names).items() if required.whole_rows), "")


def _needs(names: MethodNames) -> dict[str, Requirements]:
    return {
        f"--factors {names.factors}": find("factor rule", names.factors, FACTORS).requires,
        f"--mixing {names.mixing}": find("mixing rule", names.mixing, MIXERS).requires,
        f"--optimizer {names.optimizer}": find("optimizer", names.optimizer, OPTIMIZERS).requires,
        f"--codec {names.codec}": find("codec", names.codec, CODECS).requires,
        f"--feedback {names.feedback}": rule_of(names.feedback, names.codec)[1].requires,
    }


def check_requirements(needs: Mapping[str, Requirements], facts: TopologyFacts, settings: Settings) -> None:
    """Refuse a topology or settings that lack what a method requires.

    Args:
        needs: how a method is written -> what it requires.

    Raises:
        LocalError: the first method that lacks something, all that it lacks, and a way out for each.
    """
    for method, required in needs.items():
        clashes = []
        lacking = [
            demand.wanted
            for demand in OF_TOPOLOGY
            if getattr(required, demand.need) and not demand.met(facts)
        ]
        if lacking:
            clashes.append(
                f"{method} needs {_listed(lacking)}, which --topology {facts.name} does not give: "
                f"use {_topology_for(required, lacking)}"
            )
        clashes += [
            f"{method} needs {demand.wanted}, but {demand.given(settings)}: use {demand.instead}"
            for demand in OF_SETTINGS
            if getattr(required, demand.need) and not demand.met(settings)
        ]
        if clashes:
            raise LocalError(". ".join(clashes))


def check_changes(names: MethodNames) -> None:
    """Refuse what would let peers that send their changes go apart: nothing draws them together again.

    Raises:
        LocalError: says why, and a way out.
    """
    sent, optimizer = f"--feedback {names.feedback}", find("optimizer", names.optimizer, OPTIMIZERS)
    if names.mixing != "average":
        raise LocalError(
            f"{sent}: all apply the same mean of changes, and with --mixing {names.mixing} each would weigh them in "
            "its own way: use --mixing average"
        )
    if names.gamma not in (0.0, 1.0):
        raise LocalError(
            f"{sent} takes the mean of changes as it is, and --gamma {names.gamma:g} would leave a share of each to "
            "its sender alone: use no --gamma; --optimizer diloco:0:LR makes steps larger or smaller"
        )
    if optimizer.requires.all_parts or optimizer.vectors > 1:
        raise LocalError(
            f"{sent} sends what a round has changed and nothing else, and --optimizer {names.optimizer} needs more: "
            "use --optimizer none, noloco or diloco"
        )


def check_reweighing(mixing: str, optimizer: str, requires: Requirements) -> None:
    """Refuse a mixing rule with weights of its own where the optimizer counts on those of W.

    Raises:
        LocalError: names both, and what to use.
    """
    if requires.doubly_stochastic:
        raise LocalError(
            f"{optimizer} counts on the weights of W, which {mixing} replaces with its own: use --mixing average, "
            "or --mixing symmetric-drop where messages get lost and W is symmetric"
        )


def check_outer(optimizer: str, outer: Outer, facts: TopologyFacts) -> None:
    """Refuse outer momentum that would drive peers apart over this topology.

    A symmetric static W is judged by its smallest eigenvalue, any other by second moments: those of its own rounds and
    those of random pairs, the hardest that everybody takes part in.

    Raises:
        LocalError: names the step size, its bound here, and one that is below.
    """
    if facts.static and facts.symmetric:
        smallest = -1.0 if facts.lambda_min is None else min(facts.lambda_min, 0.0)
        bound = static_bound(outer.mu, smallest, nesterov=outer.nesterov)
    else:
        of_rounds = random_bound(outer.mu, facts.omega, facts.kappa, nesterov=outer.nesterov)
        bound = min(random_bound(outer.mu, nesterov=outer.nesterov), of_rounds)
    if outer.gamma < bound:
        return
    name = optimizer.partition(":")[0]
    below = math.floor(100.0 * bound - 1e-6) / 100.0  # the bound itself is too much
    instead = f"{name}:{outer.mu:g}:{below:g} or less" if below > 0.0 else "--optimizer none"
    raise LocalError(
        f"{optimizer} drives peers apart over --topology {facts.name}: with momentum {outer.mu:g} the step must be "
        f"below {bound:.3g}, not {outer.gamma:g}: use {instead}"
    )


def problem_of_row_readers(topology: Topology, roster: Sequence[str], collect_s: float) -> str:
    """Return why a peer cannot know whose row of W names it, and what to do about it; empty = it can.

    Args:
        roster: all peers of the run; empty = not given.
        collect_s: see ``Settings``.
    """
    if not roster:
        return "needs to know who takes part: give --roster and the ids of all peers, or use --readers all"
    if topology.own_sample:
        return (
            f"needs a W on which all agree, but with --topology {topology.name} each peer draws whom it reads: use "
            "--topology random-regular:4, or --readers all"
        )
    if topology.wants:
        return (
            f"needs a W that nobody can change, but --topology {topology.name} and its weights go by what peers "
            "announce of their data: use --topology random-regular:4 --weights metropolis-hastings, or --readers all"
        )
    if not collect_s and not topology.is_static:
        return (
            f"needs rounds in lock step where W changes with them, as that of --topology {topology.name}: use a "
            "static topology such as random-regular:4, --collect-s 60, or --readers all"
        )
    return ""


def _topology_for(required: Requirements, lacking: Sequence[str]) -> str:
    """Return the least demanding suggestion that gives all a method needs of a topology."""
    if lacking == [demand.wanted for demand in OF_TOPOLOGY if demand.need == "positive"]:
        return "--weights lazy"
    wanted = {demand.need for demand in OF_TOPOLOGY if getattr(required, demand.need)}
    return next(written for written, given in SUGGESTED.items() if wanted <= given)


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
