"""From one configuration to a plan of the run: every name is read once, and whatever can be refused is refused here.

``plan_run`` turns the names of topology and methods into values; nobody reads a name again. What depends on the
adapter (sizes, a byte budget, the manifest) follows when the training process has told what it is. Pure; whether files
and ports are there, ``inputs.py`` has seen before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gossip import mask_rules
from gossip.adapter import AdapterSpec
from gossip.errors import LocalError
from gossip.methods import compatibility
from gossip.methods.budget import choose_codec
from gossip.methods.catalogue import Entry, find, written
from gossip.methods.codecs import CODECS
from gossip.methods.factors import FACTORS
from gossip.methods.feedback import FEEDBACKS, default_feedback
from gossip.methods.merging import MERGES
from gossip.methods.method_set import MethodNames, MethodSet, resolve
from gossip.methods.mixing import MIXERS
from gossip.methods.optimizers import OPTIMIZERS
from gossip.methods.robust import READS_MIN, ROBUST
from gossip.readers import Readers, everybody, row_readers
from gossip.roster import roster_digest, rows_of
from gossip.settings import NodeSettings
from peer import sharing_rules
from peer.config import OPTIONS, PeerConfig
from peer.group_options import MixingOptions
from peer.inputs import topology_of
from peer.training import trainers
from peer.training.agent.refusals import check_agent
from peer.training.classification import head_names
from peer.training.frames import RateChoice, Ready
from topology.announced import Announced
from topology.links import Topology

CORE_ADAPTER = "lora-xs"
"""The kind of adapter whose tensors are the cores that ``--factors r-only`` mixes."""
PRIVATE_ADAPTERS = ("lora", "rslora", "lora-xs")
"""Kinds of adapter of which each row's gradient can be told apart (``peer/training/per_sample.py``)."""
MEMBERS_GUESSED = 4
"""Peers that a topology is judged for where the configuration does not say how many will come. Source: the demo."""
SWEEP_SEEN = 32
"""Rounds of a schedule that are looked at. Source: a whole sweep of every finite-time schedule up to 1,000 peers."""

CATALOGUES: Mapping[str, Mapping[str, Entry[Any]]] = {
    "factors": FACTORS,
    "mixing": MIXERS,
    "optimizer": OPTIMIZERS,
    "codec": CODECS,
    "feedback": FEEDBACKS,
    "robust": ROBUST,
    "merge": MERGES,
}
"""Option of ``peer run`` -> what it may be."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What a peer is going to do, with every name resolved.

    Args:
        config: what the user asked for.
        topology: who reads whom.
        names: the methods in canonical writing, before a byte budget has its say.
        robust: the rule for rows that may contain liars, in canonical writing.
        roster: all peers of the run, sorted, if only those may read a peer whose row names it; empty = all may.
    """

    config: PeerConfig
    topology: Topology
    names: MethodNames
    robust: str
    roster: tuple[str, ...] = ()

    def with_rate(self, choice: RateChoice | None) -> RunPlan:
        """Return the plan with a learning rate that the training process has chosen, if it has: friends are told it."""
        if choice is None:
            return self
        return dataclasses.replace(self, config=self.config.with_options(learning_rate=choice.rate))

    def methods(self, spec: AdapterSpec) -> MethodSet:
        """Return the run's methods for an adapter; a byte budget chooses the codec.

        Raises:
            LocalError: a rule does not fit the adapter, or no codec the budget.
        """
        names, budget_mb = self.names, self.config.mixing.budget_mb
        if self.config.model.private_head:
            names = dataclasses.replace(names, private=tuple(sorted(head_names(spec))))
        if budget_mb:
            lossless = resolve(dataclasses.replace(names, codec="float32", feedback="none"), spec)
            codec = choose_codec(round(budget_mb * 1e6), lossless.wire_spec, self.reads_per_round())
            names = dataclasses.replace(names, codec=codec, feedback=default_feedback(codec))
        return resolve(names, spec)

    def announced(self, ready: Ready) -> Announced | None:
        """Return what we announce of our data: only what the topology goes by, and nothing for most."""
        wants = self.topology.wants
        if not wants:
            return None
        return Announced(
            rows=ready.rows if "rows" in wants else 0, labels=ready.label_rows if "labels" in wants else ()
        )

    def readers(self, me: str) -> Readers:
        """Return who may read us.

        Raises:
            LocalError: we are not on the roster, so that nobody would read us, and we nobody.
        """
        if not self.roster:
            return everybody
        if me not in self.roster:
            raise LocalError(
                f"--roster does not name this peer, {me}: add it, for all peers of the run alike, or leave --roster "
                "out on all"
            )
        return row_readers(rows_of(self.topology, self.roster), me)

    @property
    def masked(self) -> bool:
        """Whether only sums of adapters are read."""
        return self.config.privacy.mask != "none"

    @property
    def mask(self) -> str:
        """What the manifest says of it."""
        if not self.masked:
            return "none"
        return f"{self.config.privacy.mask} {roster_digest(self.topology, self.roster).hex()}"

    def node_settings(self, methods: MethodSet, data: Announced | None = None) -> NodeSettings:
        """Return what the node is run with; ``data``: what we announce of ours."""
        mixing = self.config.mixing
        return NodeSettings(
            topology=self.topology,
            names=methods.names,
            rounds=self.config.run.rounds,
            collect_s=mixing.collect_s,
            norm_cap=mixing.norm_cap,
            step_cap=mixing.step_cap,
            check_every=mixing.check_every if mixing.check_rows and mixing.share != "rollouts" else 0,
            check_slack=mixing.check_slack,
            overlap=mixing.overlap,
            data=data,
            robust=self.robust,
            roster=self.roster,
            masked=self.masked,
            average_last=mixing.average_last,
            share=mixing.share,
        )

    def robust_note(self) -> str:
        """Return what ``--robust auto`` has become, for the user; empty where the user has said it."""
        mixing, topology = self.config.mixing, self.config.mixing.topology
        if mixing.robust.strip().lower() != "auto" or mixing.share == "rollouts":
            return ""
        if self.masked:
            return "--robust auto is none here: under --mask pairs a row is read as one sum"
        if self.robust == "none":
            method = compatibility.counts_on_whole_rows(self.names)
            return f"--robust auto is none here: {method} counts on rows that are mixed as they came"
        rule = f"rows of {READS_MIN} and more neighbors are mixed by trim-clip"
        if not (self.topology.own_sample or _members_said(self.config)):
            return f"--robust auto: {rule}, smaller ones as they came"
        reads = self.reads_per_round()
        if reads >= READS_MIN:
            return f"--robust auto: {rule}"
        return f"--robust auto is none here: {rule}, and --topology {topology} reads {reads}"

    def reads_per_round(self) -> int:
        """Return how many neighbors a peer reads in a round at most.

        Raises:
            LocalError: nobody knows: the number of peers is not given.
        """
        if self.topology.own_sample:
            return self.topology.own_sample
        roster, peers = self.config.mixing.roster, _members_said(self.config)
        if not peers:
            raise LocalError(
                f"--budget-mb needs to know how many neighbors --topology {self.config.mixing.topology} gives: say "
                "--wait-peers or --roster, or use epidemic:S"
            )
        rounds = min(self.topology.period(peers) or SWEEP_SEEN, SWEEP_SEEN)
        edges = (self.topology.edges(roster or peers, round) for round in range(rounds))
        return max(int(np.bincount(pairs[:, 0], minlength=1).max()) for pairs in edges)


def plan_run(config: PeerConfig, peers: int | None = None) -> RunPlan:
    """Read every name of a configuration, and refuse what does not exist or does not go together.

    Args:
        peers: how many take part, where it is known; else what the configuration lets one expect.

    Raises:
        LocalError: an unknown topology, method or trainer (the known ones are named); methods and topology that do not
            go together (a valid alternative is named).
    """
    topology = topology_of(config, peers)
    check_agent(config)
    trainers.entry_point(trainers.trainer_name(config))  # refuses what the training process could not start
    mixing, adapter = config.mixing, config.model.adapter
    names = sharing_rules.methods_with(config, _method_names(mixing))
    if find("factor rule", mixing.factors, FACTORS).core_only != (adapter == CORE_ADAPTER):
        raise LocalError(
            f"--factors r-only and --adapter {CORE_ADAPTER} go together: its tensors are the r x r cores; "
            f"this is --factors {mixing.factors} with --adapter {adapter}"
        )
    if "labels" in topology.wants and not config.model.labels:
        raise LocalError(
            f"--topology {mixing.topology} goes by how many rows of each label peers have, and only a classification "
            "has labels: use --task classification --labels ..., or another topology"
        )
    if config.privacy.canaries and config.model.task == "classification":
        raise LocalError(
            "--canaries are random rows whose continuation is learned, and a classification continues nothing: leave "
            "them out; --audit measures its rows"
        )
    compatibility.check_average(mixing.average_last, config.run.rounds, names)
    compatibility.check_fragments(mixing.fragments, config.run.rounds, mixing.collect_s)
    _check_warmup(config)
    _check_privacy(config, topology)
    expected = peers or _members_said(config) or MEMBERS_GUESSED
    robust = written("robust rule", mixing.robust, ROBUST)
    if config.privacy.mask != "none":
        _check_masks(config, topology, names)
    reads_whole = mixing.share == "rollouts" or config.privacy.mask != "none"
    if robust == "auto" and (reads_whole or compatibility.counts_on_whole_rows(names)):
        robust = "none"
    compatibility.check(
        names, topology, expected, collect_s=mixing.collect_s, overlap=mixing.overlap, robust=robust
    )
    return RunPlan(config, topology, names, robust, _roster_of_readers(config, topology))


def _check_warmup(config: PeerConfig) -> None:
    training, steps = config.training, config.run.rounds * config.training.local_steps
    if training.warmup_steps >= steps:
        raise LocalError(
            f"--warmup-steps {training.warmup_steps}: the whole run has {steps} steps ({config.run.rounds} rounds of "
            f"{training.local_steps}), so that it would end before it is warm: give fewer, or more --rounds"
        )


def _check_privacy(config: PeerConfig, topology: Topology) -> None:
    """Refuse what would break a promise of differential privacy, or cannot keep one.

    Raises:
        LocalError: says why, and a way out.
    """
    options, adapter = config.privacy, config.model.adapter
    if not options.dp_epsilon:
        if options.dp_unit != OPTIONS["dp_unit"].default:
            raise LocalError(
                f"--dp-unit {options.dp_unit} says whose data are protected, but not how well: give --dp-epsilon 8, too"
            )
        return
    promise = f"--dp-epsilon {options.dp_epsilon:g}"
    if config.training.accumulate > 1:
        raise LocalError(
            f"{promise} draws a step's rows at once, and computes what does not fit into memory in pieces by itself: "
            "leave --accumulate out and give a larger --batch-size"
        )
    if adapter not in PRIVATE_ADAPTERS:
        raise LocalError(
            f"{promise} needs the gradient of each row by itself, for which there is no rule with --adapter {adapter}: "
            f"use --adapter {', '.join(PRIVATE_ADAPTERS[:-1])} or {PRIVATE_ADAPTERS[-1]}"
        )
    if config.training.trainer != OPTIONS["trainer"].default:
        raise LocalError(
            f"{promise} is kept by --trainer local-steps alone; of {config.training.trainer} nobody knows whether it "
            "adds noise: use local-steps, or no --dp-epsilon"
        )
    if config.model.private_head:
        raise LocalError(
            f"{promise} with --private-head would spend noise on a head that never travels and feeds all that does: "
            "leave --private-head away"
        )
    if config.mixing.factors == "share-a":
        raise LocalError(
            f"{promise} with --factors share-a would spend noise on a factor that never travels and feeds the one that "
            "does: use --factors both or ffa"
        )
    if topology.wants:
        raise LocalError(
            f"{promise} with --topology {config.mixing.topology} would tell everybody how many "
            f"{' and '.join(sorted(topology.wants))} of ours there are, without noise: use --topology epidemic:4"
        )


def _check_masks(config: PeerConfig, topology: Topology, names: MethodNames) -> None:
    mixing = config.mixing
    mask_rules.check(
        mask_rules.MaskedRun(
            names=names,
            topology=topology,
            roster=mixing.roster,
            collect_s=mixing.collect_s,
            overlap=mixing.overlap,
            budget=mixing.budget_mb > 0,
            robust=mixing.robust,
            readers=config.privacy.readers,
        )
    )


def _members_said(config: PeerConfig) -> int:
    """Return how many peers the configuration speaks of, this one included; 0 if it does not say."""
    waited_for = config.network.wait_peers
    return len(config.mixing.roster) or (waited_for + 1 if waited_for else 0)


def _roster_of_readers(config: PeerConfig, topology: Topology) -> tuple[str, ...]:
    """Return the roster, sorted, if only those may read a peer whose row of W names it; nothing if all may.

    Raises:
        LocalError: that was asked for, and there is nothing by which a peer could know whose row names it.
    """
    asked = config.privacy.readers
    mixing = config.mixing
    if asked == "all" or (asked == "auto" and not mixing.roster):
        return ()
    if problem := compatibility.problem_of_row_readers(topology, mixing.roster, mixing.collect_s):
        if asked == "auto":
            return ()
        raise LocalError(f"--readers row {problem}")
    return tuple(sorted(mixing.roster))


def _method_names(mixing: MixingOptions) -> MethodNames:
    """Return the methods in canonical writing.

    Raises:
        LocalError: an unknown name (the known ones are named) or a bad parameter.
    """
    feedback = default_feedback(mixing.codec) if mixing.feedback == "auto" else mixing.feedback
    return MethodNames(
        factors=written("factor rule", mixing.factors, FACTORS),
        mixing=written("mixing rule", mixing.mixing, MIXERS),
        optimizer=written("optimizer", mixing.optimizer, OPTIMIZERS),
        codec=written("codec", mixing.codec, CODECS),
        feedback=written("feedback", feedback, FEEDBACKS),
        gamma=mixing.gamma,
        merge=written("merge", mixing.merge, MERGES),
        fragments=mixing.fragments,
    )
