"""What goes together and what does not: each clash is refused with a sentence that names a way out that is valid."""

import re
from typing import Any

import pytest

from gossip.adapter import AdapterSpec
from gossip.errors import LocalError
from gossip.methods import compatibility
from gossip.methods.catalogue import find
from gossip.methods.compatibility import SUGGESTED, Settings, check_outer, check_requirements
from gossip.methods.factors import FACTORS
from gossip.methods.method_set import MethodNames
from gossip.methods.mixing import MIXERS
from gossip.methods.optimizers import OPTIMIZERS
from gossip.methods.requirements import Requirements
from gossip.methods.robust import ROBUST
from gossip.methods.stability import Outer, random_bound, random_rate
from gossip.methods.topology_facts import TopologyFacts, facts_of
from peer.config import PeerConfig
from peer.run_plan import RunPlan, plan_run
from topology.links import Topology, parse_topology


def topology(text: str) -> Topology:
    """Read ``"ring"`` or ``"ring --weights lazy"``."""
    name, _, rule = text.partition(" --weights ")
    return parse_topology(name, seed=0, weights=rule or "metropolis-hastings")


def refusal(
    names: MethodNames,
    where: str,
    peers: int = 16,
    *,
    collect_s: float = 60.0,
    overlap: bool = False,
    robust: str = "none",
) -> str:
    with pytest.raises(LocalError) as caught:
        compatibility.check(
            names, topology(where), peers, collect_s=collect_s, overlap=overlap, robust=robust
        )
    return str(caught.value)


@pytest.mark.parametrize(
    ("names", "where", "settings", "said"),
    [
        (
            MethodNames(optimizer="d2"),
            "epidemic:3",
            {},
            ["--optimizer d2 needs", "columns of W", "symmetric", "epidemic:3"],
        ),
        (MethodNames(optimizer="k-gt"), "epidemic:3", {}, ["--optimizer k-gt", "columns of W that sum to 1"]),
        (MethodNames(optimizer="k-gt"), "star --weights uniform", {}, ["--optimizer k-gt", "columns of W"]),
        (
            MethodNames(optimizer="d2"),
            "random-matching",
            {},
            ["the same W in every round", "--topology random-matching"],
        ),
        (
            MethodNames(optimizer="d2"),
            "hypercube",
            {},
            ["without negative eigenvalues", "hypercube", "--weights lazy"],
        ),
        (MethodNames(optimizer="d2"), "ring", {}, ["without negative eigenvalues", "--weights lazy"]),
        (MethodNames(optimizer="d2"), "exponential", {}, ["symmetric", "exponential"]),
        (
            MethodNames(mixing="push-sum"),
            "random-matching",
            {},
            ["--mixing push-sum", "same W in every round"],
        ),
        (MethodNames(mixing="push-sum", codec="int8"), "ring", {}, ["push-sum", "int8", "--codec float32"]),
        (MethodNames(mixing="symmetric-drop"), "epidemic-oracle:3", {}, ["symmetric-drop", "a symmetric W"]),
        (
            MethodNames(mixing="symmetric-drop"),
            "ring",
            {"collect_s": 0.0},
            ["lock step", "asynchronous", "--collect-s 60"],
        ),
        (
            MethodNames(optimizer="k-gt"),
            "ring",
            {"collect_s": 0.0},
            ["--optimizer k-gt", "lock step", "--collect-s 60"],
        ),
        (
            MethodNames(optimizer="k-gt"),
            "ring",
            {"overlap": True},
            ["--optimizer k-gt", "same round", "--overlap"],
        ),
        (
            MethodNames(factors="tsvd", optimizer="qg"),
            "ring",
            {},
            ["--optimizer qg", "--factors tsvd", "--factors both"],
        ),
        (MethodNames(factors="tsvd", mixing="age"), "ring", {}, ["--mixing age", "--factors tsvd"]),
        (
            MethodNames(mixing="push-sum", optimizer="k-gt"),
            "ring",
            {},
            ["counts on the weights of W", "--mixing average"],
        ),
        (
            MethodNames(mixing="push-sum", optimizer="fedadam"),
            "exponential",
            {},
            ["--optimizer fedadam counts on what one round has changed", "--mixing average"],
        ),
        (
            MethodNames(mixing="age", optimizer="d2"),
            "ring --weights lazy",
            {},
            ["--mixing age", "--mixing average"],
        ),
        (
            MethodNames(optimizer="noloco:0.9:0.7"),
            "random-matching",
            {},
            ["below 0.38", "not 0.7", "noloco:0.9:0.37"],
        ),
        (
            MethodNames(mixing="push-sum"),
            "exponential",
            {"robust": "clip"},
            ["push-sum needs rows that are mixed as they came", "--robust clip", "use --robust none"],
        ),
        (
            MethodNames(mixing="symmetric-drop"),
            "ring",
            {"robust": "trim-clip:1"},
            ["symmetric-drop", "--robust none"],
        ),
        (MethodNames(optimizer="d2"), "ring --weights lazy", {"robust": "nna"}, ["d2", "--robust none"]),
        (
            MethodNames(optimizer="k-gt"),
            "random-matching",
            {"robust": "median"},
            ["k-gt", "--robust none"],
        ),
        (
            MethodNames(factors="tsvd"),
            "ring",
            {"robust": "median"},
            ["--robust median", "tsvd mixes products", "use --factors both"],
        ),
        (
            MethodNames(factors="tsvd"),
            "ring",
            {"robust": "trimmed:1"},
            ["--robust trimmed:1", "--factors both"],
        ),
        (MethodNames(factors="tsvd", merge="median"), "ring", {}, ["--merge median", "--factors both"]),
        (
            MethodNames(optimizer="diloco"),
            "random-pair",
            {},
            ["--optimizer diloco drives peers apart", "random-pair"],
        ),
    ],
    ids=lambda value: "/".join(value) if isinstance(value, tuple) else None,
)
def test_a_clash_is_refused_by_name(
    names: MethodNames, where: str, settings: dict[str, Any], said: list[str]
) -> None:
    message = refusal(names, where, **settings)
    for words in said:
        assert words in message, message


@pytest.mark.parametrize(
    ("names", "where", "collect_s"),
    [
        (MethodNames(), "epidemic:3", 0.0),
        (MethodNames(factors="tsvd", codec="int8"), "epidemic:3", 0.0),
        (MethodNames(mixing="age"), "epidemic:3", 0.0),
        (MethodNames(mixing="staleness:1"), "epidemic:3", 0.0),
        (MethodNames(mixing="push-sum"), "exponential", 0.0),
        (MethodNames(mixing="push-sum", optimizer="qg"), "ring", 60.0),
        (MethodNames(mixing="symmetric-drop", optimizer="k-gt"), "random-matching", 60.0),
        (MethodNames(optimizer="k-gt", codec="int8"), "epidemic-oracle:3", 60.0),
        (MethodNames(optimizer="d2", codec="int8"), "hypercube --weights lazy", 60.0),
        (MethodNames(optimizer="d2"), "complete", 60.0),
        (MethodNames(optimizer="qg"), "epidemic:3", 0.0),
        (MethodNames(optimizer="noloco"), "random-matching", 60.0),
        (MethodNames(optimizer="noloco"), "random-pair", 60.0),
        (MethodNames(optimizer="noloco:0.9:0.7"), "ring", 60.0),
        (MethodNames(optimizer="diloco"), "complete", 60.0),
        (MethodNames(optimizer="diloco"), "random-matching", 60.0),
        (MethodNames(optimizer="diloco"), "epidemic:3", 60.0),
        (MethodNames(optimizer="fedexp"), "epidemic:3", 0.0),
        (MethodNames(optimizer="fedadam:1"), "random-pair", 60.0),
    ],
    ids=lambda value: "/".join(value) if isinstance(value, tuple) else None,
)
def test_what_goes_together_is_let_through(names: MethodNames, where: str, collect_s: float) -> None:
    compatibility.check(names, topology(where), 16, collect_s=collect_s)


@pytest.mark.parametrize("robust", ROBUST)
@pytest.mark.parametrize("codec", ["float32", "int8", "topk:0.1"])
def test_every_robust_rule_goes_with_every_codec(robust: str, codec: str) -> None:
    names = MethodNames(codec=codec, mixing="age", merge="clipped")
    compatibility.check(names, topology("epidemic:4"), 16, collect_s=0.0, overlap=True, robust=robust)


@pytest.mark.parametrize("robust", ["clip", "trim-clip", "nna", "geometric-median", "krum", "auto"])
def test_rules_that_go_by_distance_go_with_products(robust: str) -> None:
    names = MethodNames(factors="tsvd", merge="clipped")
    compatibility.check(names, topology("epidemic:4"), 16, collect_s=60.0, robust=robust)


def planned(**options: Any) -> RunPlan:
    return plan_run(PeerConfig.of(**options))


def test_auto_is_none_where_a_method_counts_on_whole_rows_and_says_so() -> None:
    plan = planned(mixing="push-sum", topology="exponential")
    assert plan.robust == "none"
    assert plan.robust_note() == (
        "--robust auto is none here: --mixing push-sum counts on rows that are mixed as they came"
    )
    with pytest.raises(LocalError, match="use --robust none"):
        planned(mixing="push-sum", topology="exponential", robust="trim-clip")


def test_a_plan_says_what_auto_has_become_and_nothing_where_the_user_has_chosen() -> None:
    assert planned(topology="epidemic:4").robust == "auto"
    assert planned(topology="epidemic:4").robust_note() == (
        "--robust auto: rows of 4 and more neighbors are mixed by trim-clip"
    )
    assert "ring reads 2" in planned(topology="ring", wait_peers=5).robust_note()
    assert "smaller ones as they came" in planned(topology="ring").robust_note()
    assert planned(robust="NNA:2").robust == "nna:2"
    assert planned(robust="nna:2").robust_note() == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"average_last": 11}, "more rounds than --rounds 10: use 10 at most"),
        ({"average_last": 2, "factors": "tsvd"}, "use --factors both, or no --average-last"),
        ({"average_last": -1}, "average_last must not be negative"),
    ],
)
def test_a_mean_over_the_last_rounds_that_there_is_not_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(LocalError, match=said):
        planned(**options)


@pytest.mark.parametrize("options", [{"average_last": 1, "factors": "tsvd"}, {"average_last": 10}])
def test_a_mean_over_one_round_and_one_over_all_reach_the_node(options: dict[str, Any]) -> None:
    plan = planned(**options)
    spec = AdapterSpec((("m.lora_A.weight", (2, 6)), ("m.lora_B.weight", (5, 2))))
    assert plan.node_settings(plan.methods(spec)).average_last == options["average_last"]


def test_an_unknown_robust_rule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(LocalError, match="geometric-median"):
        planned(robust="bulyan")


METHODS = [
    *(MethodNames(optimizer=name) for name in OPTIMIZERS),
    *(MethodNames(mixing=name) for name in MIXERS),
    *(MethodNames(factors=name) for name in FACTORS),
]


@pytest.mark.parametrize(
    "names", METHODS, ids=lambda names: f"{names.optimizer}/{names.mixing}/{names.factors}"
)
@pytest.mark.parametrize(
    "where", ["epidemic:3", "random-matching", "exponential", "path", "star --weights uniform"]
)
def test_whatever_is_suggested_is_accepted(names: MethodNames, where: str) -> None:
    """Doing what the refusal says ends the refusals, for every method over every kind of topology."""
    collect_s = 0.0
    for _ in range(3):
        try:
            compatibility.check(names, topology(where), 16, collect_s=collect_s)
        except LocalError as error:
            if suggested := re.search(r"use --topology (\S+(?: --weights \S+)?)", str(error)):
                where = suggested[1].rstrip(".")
            elif "use --weights lazy" in str(error):
                where = where.partition(" ")[0] + " --weights lazy"
            if "use --collect-s 60" in str(error):
                collect_s = 60.0
        else:
            return
    pytest.fail(f"still refused over {where}: {refusal(names, where, collect_s=collect_s)}")


@pytest.mark.parametrize("written", SUGGESTED)
@pytest.mark.parametrize("peers", [2, 5, 16])
def test_a_suggested_topology_gives_what_it_is_suggested_for(written: str, peers: int) -> None:
    facts = facts_of(topology(written.removeprefix("--topology ")), peers)
    check_requirements({"all": Requirements(**dict.fromkeys(SUGGESTED[written], True))}, facts, Settings())


def test_every_combination_of_needs_has_a_suggestion() -> None:
    nothing = TopologyFacts(
        name="none", doubly_stochastic=False, symmetric=False, static=False, lambda_min=-1.0
    )
    for bits in range(1, 32):
        fields = ("doubly_stochastic", "symmetric", "static", "positive", "uniform")
        requires = Requirements(**{name: bool(bits >> place & 1) for place, name in enumerate(fields)})
        with pytest.raises(LocalError, match="use --"):
            check_requirements({"--optimizer x": requires}, nothing, Settings())


def test_needs_that_nobody_checks_do_not_exist() -> None:
    checked = {each.need for each in (*compatibility.OF_TOPOLOGY, *compatibility.OF_SETTINGS)}
    assert checked == set(Requirements.__dataclass_fields__)


def test_facts_of_a_topology() -> None:
    """Hypercube of 16: smallest eigenvalue -0.6. Pairs of 16: E[W] = E|Wz|^2/|z|^2 = (n - 2) / (2 (n - 1))."""
    cube, pairs = facts_of(topology("hypercube"), 16), facts_of(topology("random-matching"), 16)
    assert (cube.doubly_stochastic, cube.symmetric, cube.static) == (True, True, True)
    assert cube.lambda_min == pytest.approx(-0.6)
    assert (pairs.doubly_stochastic, pairs.symmetric, pairs.static, pairs.lambda_min) == (
        True,
        True,
        False,
        None,
    )
    assert pairs.omega == pytest.approx(14 / 30)
    assert pairs.kappa == pytest.approx(14 / 30)
    assert not facts_of(topology("epidemic:3"), 16).doubly_stochastic


def test_facts_of_a_topology_that_is_not_for_so_many_stay_unknown() -> None:
    facts = facts_of(topology("exponential --weights best-constant"), 16)
    assert (facts.lambda_min, facts.omega, facts.kappa) == (None, 0.5, 0.5)


@pytest.mark.parametrize("mu", [0.0, 0.5, 0.9])
def test_the_bound_of_outer_momentum_over_pairs(mu: float) -> None:
    """Heavy ball: refused from 2 (1 - mu^2) on, whatever the number of peers expected."""
    for peers in (4, 16, 64):
        facts = facts_of(topology("random-matching"), peers)
        check_outer("--optimizer noloco", Outer(mu, 0.99 * 2 * (1 - mu * mu)), facts)
        with pytest.raises(LocalError, match="drives peers apart"):
            check_outer("--optimizer noloco", Outer(mu, 1.001 * 2 * (1 - mu * mu)), facts)


@pytest.mark.parametrize(
    "optimizer", ["noloco:0.9:0.7", "noloco:0.5:3", "diloco:0.9:1", "diloco:0.5:4", "noloco:0.99:1"]
)
def test_the_step_that_is_suggested_is_stable(optimizer: str) -> None:
    message = refusal(MethodNames(optimizer=optimizer), "random-matching")
    suggested = re.search(r"use --optimizer (\S+) or less", message)
    assert suggested, message
    compatibility.check(MethodNames(optimizer=suggested[1]), topology("random-matching"), 16, collect_s=60)
    outer = find("optimizer", suggested[1], OPTIMIZERS).outer
    assert outer is not None
    assert random_rate(outer) < 1


def test_nesterov_bears_more_over_pairs_than_heavy_ball_at_its_momentum() -> None:
    """diloco's defaults are stable over pairs among many, noloco's step with diloco's momentum is not."""
    assert random_bound(0.9, nesterov=True) == pytest.approx(0.848, abs=1e-3)
    assert random_bound(0.9) == pytest.approx(0.38, abs=1e-6)


def test_outer_momentum_over_a_static_w_is_judged_by_its_smallest_eigenvalue() -> None:
    """Heavy ball: gamma < 2 (1 + mu) / (1 - l): ring of 16, l = -1/3: 2.25 at mu = 0.5."""
    facts = facts_of(topology("ring"), 16)
    check_outer("--optimizer noloco", Outer(0.5, 2.24), facts)
    with pytest.raises(LocalError, match=r"below 2\.25"):
        check_outer("--optimizer noloco", Outer(0.5, 2.26), facts)


def test_momentum_beside_overlapped_steps_is_refused() -> None:
    names = MethodNames(optimizer="noloco")
    assert "no --overlap" in refusal(names, "ring", overlap=True)
    compatibility.check(names, topology("ring"), 8, collect_s=60.0)
