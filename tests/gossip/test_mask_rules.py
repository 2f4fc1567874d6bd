"""What does not go together with masks is refused, each with a way out that is taken when it is followed."""

from __future__ import annotations

import re
from typing import Any

import pytest

from gossip.errors import LocalError
from gossip.mask_rules import LINEAR_MERGES, LINEAR_MIXING
from gossip.masked_sums import READS_MIN, minimum
from gossip.methods.codecs import CODECS
from gossip.methods.method_set import MERGES
from gossip.methods.mixing import MIXERS
from gossip.methods.robust import ROBUST
from peer.config import OPTIONS, PeerConfig
from peer.run_plan import plan_run

ROSTER = tuple(f"peer {number}" for number in range(8))
GOES: dict[str, Any] = {
    "mask": "pairs",
    "roster": ROSTER,
    "topology": "random-regular:4",
    "merge": "average",
}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"merge": "none"},
        {"mixing": "staleness:0.5"},
        {"optimizer": "k-gt"},
        {"optimizer": "noloco"},
        {"optimizer": "fedadam"},
        {"factors": "ffa"},
        {"topology": "complete"},
        {"robust": "none"},
        {"readers": "row"},
        {"topology": "ring", "weights": "metropolis-hastings", "roster": ROSTER, "mask": "none"},
    ],
)
def test_what_goes_together_is_planned(settings: dict[str, Any]) -> None:
    plan = plan_run(PeerConfig.of(**GOES | settings))
    assert plan.roster == ROSTER
    assert plan.masked == (plan.mask != "none")
    if plan.masked:
        assert plan.robust == "none"
        assert "one sum" in plan.robust_note() or settings.get("robust") == "none"


CLASHES: list[dict[str, Any]] = [
    {"roster": ()},
    {"topology": "epidemic:3"},
    {"topology": "similar:4"},
    {"topology": "epidemic-oracle:4"},
    {"topology": "base:4"},
    {"topology": "one-peer-exponential"},
    {"topology": "ring"},
    {"weights": "data-size"},
    {"topology": "random-regular:3"},
    {"collect_s": 0.0},
    {"overlap": True},
    {"readers": "all"},
    {"budget_mb": 1.0},
    {"factors": "tsvd"},
    {"optimizer": "fedexp"},
    {"roster": tuple(f"peer {number:02}" for number in range(17))},
    {"topology": "complete", "merge": "none", "roster": tuple(f"peer {number:02}" for number in range(40))},
    *({"codec": name} for name in CODECS if name != "float32"),
    *({"mixing": name} for name in MIXERS if name not in LINEAR_MIXING),
    *({"merge": name} for name in MERGES if name not in LINEAR_MERGES),
    *({"robust": name} for name in ROBUST if name not in ("none", "auto")),
]


@pytest.mark.parametrize("settings", CLASHES, ids=str)
def test_what_does_not_go_together_is_refused_with_a_way_out(settings: dict[str, Any]) -> None:
    with pytest.raises(LocalError, match="--mask pairs") as caught:
        plan_run(PeerConfig.of(**GOES | settings))
    said = str(caught.value)
    advised = dict(re.findall(r"use --([\w-]+) ([\w:.-]+)", said))
    for flag, value in advised.items():
        name = flag.replace("-", "_")
        default = OPTIONS[name].default
        settings = settings | {name: type(default)(value) if isinstance(default, float) else value}
    for name in ("budget_mb", "overlap", "weights"):
        if f"--{name.replace('_', '-')}" in said or name == "weights":
            settings = {key: value for key, value in settings.items() if key != name}
    if settings.get("roster") == ():
        assert "give --roster" in said
    else:
        plan_run(PeerConfig.of(**GOES | settings))


def test_runs_with_another_roster_or_w_are_other_runs() -> None:
    masks = {
        plan_run(PeerConfig.of(**GOES | settings)).mask
        for settings in (
            {},
            {"roster": ROSTER[::-1]},
            {"roster": (*ROSTER[:7], "somebody else")},
            {"topology": "complete"},
            {"seed": 7},
            {"weights": "lazy"},
        )
    }
    assert len(masks) == 5


def test_two_thirds_of_a_row_and_at_least_three_are_needed() -> None:
    assert [minimum(row) for row in range(1, 16)] == [3, 3, 3, 3, 4, 4, 5, 6, 6, 7, 8, 8, 9, 10, 10]
    assert all(minimum(row) < row for row in range(READS_MIN, 40))  # one may be away
