"""The fault language: what files say, what is refused with which words, and whom an occurrence befalls."""

from __future__ import annotations

import math
import tomllib

import pytest

from gossip.errors import LocalError
from gossip.fault_kinds import FAULTS, Byzantine, Kill, Link, Partition, Restart
from gossip.faults import Fault, parse_faults, schedule

NAMES = tuple(f"p{index}" for index in range(10))


def parsed(text: str) -> tuple[Fault, ...]:
    return parse_faults(tomllib.loads(text)["fault"], "x.toml")


def test_a_file_says_what_happens_to_whom_and_when() -> None:
    first, second, third = parsed("""
        [[fault]]
        kind = "restart"
        at_s = 20
        every_s = 60
        until_s = 600
        who = 0.3
        older = 2
        [[fault]]
        kind = "partition"
        at_round = 3
        for_s = 120
        who = ["p1", "p2"]
        other = "p3"
        [[fault]]
        kind = "link"
        loss = 0.05
        delay_s = 0.2
        jitter_s = 0.05
    """)
    assert first == Fault(kind=Restart(older=2), at_s=20.0, every_s=60.0, until_s=600.0, who=0.3)
    assert first.occurrences == 10
    assert second == Fault(kind=Partition(), at_round=3, for_s=120.0, who=("p1", "p2"), other="p3")
    assert third == Fault(kind=Link(loss=0.05, delay_s=0.2, jitter_s=0.05))
    assert third.for_s == math.inf


@pytest.mark.parametrize("name", FAULTS)
def test_every_kind_can_be_written_with_its_name_alone(name: str) -> None:
    (fault,) = parse_faults([{"kind": name, "for_s": 1}], "x.toml")
    assert type(fault.kind) is FAULTS[name]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('kind = "kil"', r"x\.toml: fault 1: unknown kind 'kil'\. Did you mean 'kill'\? Known: bit-flips, .*tiny-disk"),
        ("at_s = 3", "unknown kind ''"),
        ('kind = "kill"\nwhen = 3', r"x\.toml: fault 1 \(kill\): unknown key 'when'.*Known: at_round, at_s, every_s"),
        ('kind = "kill"\nafter_s = 3', "unknown key 'after_s'"),
        ('kind = "restart"\nolder = 1.5', "older is a whole number, not 1.5"),
        ('kind = "restart"\nolder = true', "older is a whole number, not True"),
        ('kind = "restart"\nafter_s = "3"', "after_s is a number, not '3'"),
        ('kind = "link"\nloss = 1.5', "shares are 0 to 1"),
        ('kind = "link"\nloss = nan', "loss is a number"),
        ('kind = "link"\njitter_s = 1', "delay_s is at least jitter_s"),
        ('kind = "pause"', "for_s is needed"),
        ('kind = "byzantine"\nbehavior = "lies"', r"unknown behavior 'lies'.*equivocate.*noise"),
        ('kind = "byzantine"\nbehavior = 3', "behavior is a text, not 3"),
        ('kind = "strangers"\ncount = 100000', "count is 1 to 1000"),
        ('kind = "clock"\njump_s = -1', "clocks are monotonic"),
        ('kind = "kill"\nwho = 1.5', "a share of the peers is above 0, up to 1"),
        ('kind = "kill"\nwho = 0', "a number of peers is at least 1"),
        ('kind = "kill"\nwho = [1, 2]', "who is .*not \\[1, 2\\]"),
        ('kind = "kill"\nat_s = -1', "at least 0"),
        ('kind = "kill"\nat_s = 1\nat_round = 2', "not both"),
        ('kind = "kill"\nevery_s = 2', "until_s after at_s"),
        ('kind = "kill"\nevery_s = 1e-9\nuntil_s = 5', "more than 10000 times"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_place_and_what_is_known(table: str, words: str) -> None:
    with pytest.raises(LocalError, match=words):
        parsed(f"[[fault]]\n{table}")


def test_single_brackets_are_refused() -> None:
    with pytest.raises(LocalError, match=r"write \[\[fault\]\]"):
        parsed('[fault]\nkind = "kill"')


def test_targets_are_drawn_anew_each_time_and_equal_seeds_draw_equal_ones() -> None:
    faults = (Fault(kind=Kill(), every_s=1.0, until_s=20.0, who=0.3),)
    drawn = schedule(faults, NAMES, seed=1)
    assert [injection.at_s for injection in drawn] == [float(second) for second in range(20)]
    assert all(len(injection.who) == 3 for injection in drawn)
    assert all(set(injection.who).isdisjoint(injection.others) for injection in drawn)
    assert len({injection.who for injection in drawn}) > 10
    assert drawn == schedule(faults, reversed(NAMES), seed=1)
    assert drawn != schedule(faults, NAMES, seed=2)


def test_the_other_side_is_the_rest_unless_it_is_said() -> None:
    rest, one, everybody = schedule(
        (
            Fault(kind=Partition(), who=("p1", "p2")),
            Fault(kind=Partition(), at_s=1.0, who="p1", other="p2"),
            Fault(kind=Byzantine(), at_round=2, who="all"),
        ),
        NAMES,
        seed=0,
    )
    assert rest.others == tuple(name for name in NAMES if name not in ("p1", "p2"))
    assert (one.who, one.others) == (("p1",), ("p2",))
    assert (everybody.who, everybody.others, everybody.at_round) == (NAMES, NAMES, 2)
    assert everybody.title.startswith("byzantine p0,p1")


@pytest.mark.parametrize(
    ("who", "words"), [("p77", "the peer 'p77'; known: all, p0"), (11, "wants 11 peers")]
)
def test_targets_that_are_no_peers_of_the_run_are_refused(who: str | int, words: str) -> None:
    with pytest.raises(LocalError, match=words):
        schedule((Fault(kind=Kill(), who=who),), NAMES, seed=0)
