"""Three stories of one node, told as text: what it was told, and what it asked for (the style of etcd/raft's tests).

A line that begins with a word of ``COMMANDS`` is an event; what stands between ``----`` and the next empty line is what
the node did. Numbers are halves and quarters, so that no machine rounds them otherwise.
"""

from __future__ import annotations

import random
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gossip import events
from gossip.adapter import AdapterSpec, AdapterState
from gossip.messages import Kind
from gossip.methods.codecs import CODECS
from gossip.methods.method_set import MethodNames
from gossip.node import GossipNode
from gossip.published import PublishedAdapter
from gossip.settings import NodeSettings
from topology.links import parse_topology

TRANSCRIPTS = Path(__file__).parent / "transcripts"
SPEC = AdapterSpec((("w", (4,)),))


def state(text: str) -> AdapterState:
    return AdapterState(SPEC, torch.tensor([float(word) for word in text.split(",")]))


def new_node(me: str, members: str, rounds: str = "2", collect_s: str = "16", **more: str) -> GossipNode:
    names = MethodNames(
        mixing=more.get("mixing", "average"),
        codec=more.get("codec", "float32"),
        optimizer=more.get("optimizer", "none"),
        merge=more.get("merge", "none"),
    )
    settings = NodeSettings(
        topology=parse_topology(more.get("topology", "complete"), seed=0),
        names=names,
        rounds=int(rounds),
        collect_s=float(collect_s),
        norm_cap=16.0,
        overlap="overlap" in more,
    )
    return GossipNode(me, state("1,1,1,1"), settings, random.Random(0), tuple(members.split(",")))


def published(
    round: str, values: str, age: str = "1", codec: str = "float32", kind: Kind = "round"
) -> PublishedAdapter:
    payload = CODECS[codec].make().encode(state(values).flat, SPEC, int(round))
    return PublishedAdapter(int(round), int(age), codec, payload, kind=kind)


COMMANDS: dict[str, Callable[..., events.Event]] = {
    "start": lambda: events.Start(),
    "trained": lambda values, steps="2", loss="0.5": events.Trained(state(values), int(steps), float(loss)),
    "fetched": lambda peer, **said: events.Fetched(peer, published(**said)),
    "failed": lambda peer, reason: events.FetchFailed(peer, reason),
    "served": lambda peer, round: events.Served(peer, int(round)),
    "up": lambda peer, round, incarnation="0": events.PeerUp(peer, int(round), None, int(incarnation)),
    "down": lambda peer: events.PeerDown(peer),
    "timer": lambda round: events.TimerFired(int(round)),
    "stop": lambda: events.Stop(),
}


def decoded(published: PublishedAdapter) -> AdapterState:
    codec = CODECS[published.codec].make()
    return AdapterState(SPEC, codec.decode(published.payload, SPEC, published.round))


def values_of(adapter: AdapterState) -> str:
    return ",".join(f"{value:g}" for value in adapter.flat.tolist())


def told(action: events.Action) -> str:
    match action:
        case events.Train():
            return f"train round={action.round} part={action.trainable} from {values_of(action.state)}"
        case events.Publish(published):
            return (
                f"publish {published.kind}={published.round} age={published.age} codec={published.codec} "
                f"values={values_of(decoded(published))}"
            )
        case events.Fetch():
            wanted = "newest" if action.round is None else action.round
            kind = action.kind
            return (
                f"fetch {action.peer} {kind}={wanted} newer_than={action.newer_than} wait_s={action.wait_s:g}"
            )
        case events.SetTimer():
            return f"timer round={action.round} delay_s={action.delay_s:g}"
        case events.Penalize():
            return f"penalize {action.peer} {action.reason}"
        case events.Report(report):
            mixed = " ".join(f"{peer}@{round}*{weight:g}" for peer, round, weight in report.mixed) or "nobody"
            failed = "".join(f" failed {peer}:{reason}" for peer, reason in report.failed)
            objections = "".join(f" objection {peer}:{reason}" for peer, reason in report.objections)
            merging = " merging" if report.merging else ""
            return (
                f"report round={report.round}{merging} age={report.age} mixed {mixed}{failed}{objections} "
                f"bytes={report.payload_bytes} waited_s={report.collect_s:g} of {report.deadline_s:g} "
                f"-> {values_of(report.state)}"
            )
        case events.Finish():
            return "finish"


def replay(text: str) -> str:
    """Return the transcript with what the node does now."""
    node: GossipNode | None = None
    now, out, skipping = 0.0, [], False
    for line in text.splitlines():
        if line == "----":
            skipping = True
        elif not line.strip():
            skipping = False
            out.append("")
        elif not skipping:
            out.append(line)
            if line.startswith("#"):
                continue
            command, *words = shlex.split(line)
            plain = [word for word in words if "=" not in word]
            named: dict[str, Any] = dict(word.split("=", 1) for word in words if "=" in word)
            if command == "node":
                node, now = new_node(**named, **dict.fromkeys(plain, "yes")), 0.0
                continue
            now += float(named.pop("after", 0.0))
            assert node
            done = [told(action) for action in node.handle(COMMANDS[command](*plain, **named), now)]
            state_of = f"({node.phase.value}, round {node.round}, members {','.join(node.members)})"
            out += ["----", *(done or ["nothing"]), state_of]
    return "\n".join(out) + "\n"


@pytest.mark.parametrize("name", ["synchronous", "asynchronous", "overlap_and_merge"])
def test_a_node_does_what_its_transcript_says(name: str, golden: Callable[[str, Any], None]) -> None:
    golden(f"transcripts/{name}.txt", replay((TRANSCRIPTS / f"{name}.txt").read_text()))
