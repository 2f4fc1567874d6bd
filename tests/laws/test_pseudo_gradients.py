"""What holds where the changes of a round travel: nothing is lost but what fades, and equal peers stay equal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from gossip.adapter import AdapterSpec, AdapterState
from gossip.errors import LocalError, RemoteError
from gossip.events import RoundReport, Train
from gossip.methods.catalogue import find
from gossip.methods.codecs import CODECS, Encoding
from gossip.methods.feedback import PseudoGradients
from gossip.methods.method_set import MethodNames, resolve
from gossip.methods.parts import whole
from gossip.methods.pipeline import Pipeline, PipelinePlan
from gossip.methods.requirements import State
from gossip.methods.stage import Encoded, RoundContext
from gossip.published import PublishedAdapter
from gossip.quadratic import Quadratic, positions
from gossip.simulation import LocalSteps, Simulation
from peer.config import PeerConfig
from peer.run_plan import RunPlan, plan_run

SPEC = AdapterSpec((("a", (40, 30)), ("b", (77,))))
PEERS, ROUNDS = 4, 15


def normal(seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(SPEC.size, generator=torch.Generator().manual_seed(seed))


def publish(
    stage: PseudoGradients, codec: str, start: Tensor, trained: Tensor, round: int, state: State
) -> tuple[Encoded, State]:
    context = RoundContext(
        round=round,
        age=0,
        steps=1,
        start=AdapterState(SPEC, start),
        trained=AdapterState(SPEC, trained),
        readers=lambda: 3,
    )
    encoding = Encoding(find("codec", codec, CODECS), SPEC)

    def encode(vector: Tensor) -> Encoded:
        return encoding.publish(vector, context, encode, {})[0]

    return stage.publish(trained, context, encode, state)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("codec", CODECS)
def test_what_was_sent_and_what_is_remembered_is_all_that_was_learned(codec: str, decay: float) -> None:
    """sum_t BETA^(T - t) (start_t - trained_t) = e_T + sum_t BETA^(T - t) sent_t, whatever the codec loses."""
    stage, encoding = PseudoGradients(decay, SPEC), find("codec", codec, CODECS)
    state = stage.init(torch.zeros(SPEC.size))
    learned, sent = torch.zeros(2, SPEC.size, dtype=torch.float64)
    for round in range(8):
        start, trained = normal(round), normal(100 + round)
        before = {name: tensor.clone() for name, tensor in state.items()}
        encoded, later = publish(stage, codec, start, trained, round, state)
        assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
        state = later
        change = encoding.decode(encoded.payload, SPEC, round)
        assert torch.equal(encoded.as_decoded, start - change)
        learned = decay * learned + (start - trained)
        sent = decay * sent + change
    torch.testing.assert_close(sent + state["error"], learned, rtol=0.0, atol=2e-5)


# -- networks


def network(codec: str = "float32", feedback: str = "pseudo-gradient", **methods: Any) -> Quadratic:
    names = MethodNames(codec=codec, feedback=feedback, **{"merge": "none", **methods})
    return Quadratic(peers=PEERS, dimension=9, rounds=ROUNDS, topology="complete", methods=names)


def ran(quadratic: Quadratic) -> Tensor:
    simulation = quadratic.simulation()
    simulation.run()
    assert simulation.penalties == []
    return positions(simulation, quadratic.names)


@pytest.mark.parametrize("optimizer", ["none", "noloco:0.5:0.7", "diloco:0.5:0.9"])
@pytest.mark.parametrize("fragments", [1, 2])
def test_without_loss_changes_of_equal_peers_are_as_good_as_adapters(optimizer: str, fragments: int) -> None:
    """With one fragment; with more, the parts that do not travel differ between peers in both, and alike."""
    methods: dict[str, Any] = {"optimizer": optimizer, "fragments": fragments}
    of_changes, of_adapters = ran(network(**methods)), ran(network(feedback="none", **methods))
    torch.testing.assert_close(of_changes, of_adapters, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("codec", ["chunked:1024", "chunked:512:4", "topk:0.3", "sign", "int4"])
@pytest.mark.parametrize("optimizer", ["none", "diloco:0.5:0.9"])
def test_all_go_on_from_one_adapter_whatever_the_codec_loses(codec: str, optimizer: str) -> None:
    left = ran(network(codec, optimizer=optimizer))
    assert left.norm() > 0.1
    assert (left - left.mean(dim=0)).abs().max() < 1e-5


def test_the_memory_brings_the_mean_of_the_optima_near() -> None:
    """x* is the mean of the optima; an eighth of the values a round comes near, and nearer than without memory."""
    far = {}
    for feedback in ("pseudo-gradient:0.95", "pseudo-gradient:0"):
        quadratic = replace(network("chunked:512", feedback), rounds=200)
        target = quadratic.optima().mean(dim=0)
        far[feedback] = float((ran(quadratic) - target).norm() / target.norm())
    assert far["pseudo-gradient:0.95"] < 0.6 * far["pseudo-gradient:0"]


def test_who_misses_a_change_stays_apart_by_it_until_the_merge() -> None:
    quadratic = network("chunked:2048", merge="average")
    ends: dict[tuple[str, int], Tensor] = {}

    def note(now: float, name: str, report: RoundReport) -> None:
        ends[name, report.round] = report.state.flat

    simulation = quadratic.simulation(on_report=note)
    handle = simulation.node("p0000").handle

    def losing(event: Any, now: float) -> Any:
        """Let p0000 take what p0001 sends in round 5 for lost."""
        actions = handle(event, now)
        return [one for one in actions if getattr(one, "peer", "") != "p0001" or one.round != 5]

    simulation.node("p0000").handle = losing  # type: ignore[method-assign]  # a fault
    simulation.run()
    apart = [
        float((ends["p0000", round] - ends["p0002", round]).norm()) for round in (4, 5, ROUNDS - 1, ROUNDS)
    ]
    assert apart[0] < 1e-5
    assert apart[1] > 1e-3
    assert apart[2] == pytest.approx(apart[1], rel=0.2), "what others send moves both alike"
    assert apart[3] == 0.0


# -- hostile


def bent(simulation: Simulation, liar: str, change: Callable[[Tensor], Tensor]) -> None:
    train = simulation.train

    def lying(name: str, action: Train) -> LocalSteps:
        steps = train(name, action)
        if name != liar or action.round != 6:
            return steps
        return steps._replace(state=replace(steps.state, flat=change(steps.state.flat)))

    simulation.train = lying


@pytest.mark.parametrize(
    ("times", "step_cap", "reason"), [(1e4, 5.0, "far"), (1e15, float("inf"), "norm"), (30.0, 1.0, "far")]
)
def test_a_change_that_goes_too_far_is_seen_as_an_adapter_that_lies_too_far(
    times: float, step_cap: float, reason: str
) -> None:
    quadratic, reports = replace(network(), step_cap=step_cap), dict[str, list[RoundReport]]()
    simulation = quadratic.simulation(lambda now, name, report: reports.setdefault(name, []).append(report))
    bent(simulation, "p0003", lambda flat: times * (flat + 1.0))
    simulation.run()
    for name in ("p0000", "p0001", "p0002"):
        objections = {objection for report in reports[name] for objection in report.objections}
        assert ("p0003", reason) in objections
        first = {objection for report in reports[name][:7] for objection in report.objections}
        assert {peer for peer, _ in first} == {"p0003"}
    if reason == "norm":
        assert {peer for _, peer, _ in simulation.penalties} == {"p0003"}
    assert torch.isfinite(positions(simulation, quadratic.names[:3])).all()


def pipeline_of(codec: str) -> Pipeline:
    encoding = partial(Encoding, find("codec", codec, CODECS))
    plan = PipelinePlan.of([partial(PseudoGradients, 0.95), encoding], whole(SPEC), codec)
    return Pipeline("me", plan, AdapterState(SPEC, normal(0)), 10.0)


def test_a_payload_of_another_length_is_refused() -> None:
    reader, size = pipeline_of("chunked"), find("codec", "chunked", CODECS).payload_bytes(SPEC)
    for length in (0, 1, size - 1, size + 1, 4 * SPEC.size):
        with pytest.raises(RemoteError, match="shape"):
            reader.read("other", PublishedAdapter(0, 0, "chunked", bytes(length)), 0.25)


def test_a_restart_goes_on_bit_for_bit() -> None:
    def publications(pipeline: Pipeline, first: int, last: int) -> list[bytes]:
        sent = []
        for round in range(first, last):
            start, trained = AdapterState(SPEC, normal(round)), AdapterState(SPEC, normal(100 + round))
            context = RoundContext(
                round=round, age=0, steps=1, start=start, trained=trained, readers=lambda: 3
            )
            sent.append(bytes(pipeline.publish(context).payload))
        return sent

    straight = publications(pipeline_of("chunked"), 0, 6)
    first = pipeline_of("chunked")
    publications(first, 0, 3)
    encoding = partial(Encoding, find("codec", "chunked", CODECS))
    plan = PipelinePlan.of([partial(PseudoGradients, 0.95), encoding], whole(SPEC), "chunked")
    again = Pipeline("me", plan, AdapterState(SPEC, normal(0)), 10.0, first.tensors())
    assert publications(again, 3, 6) == straight[3:]


# -- what does not go together


def planned(**options: Any) -> RunPlan:
    return plan_run(
        PeerConfig.of(**{"codec": "chunked:512", "topology": "complete", "wait_peers": 3, **options})
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"topology": "ring", "wait_peers": 5}, "use --topology complete"),
        ({"topology": "epidemic:4", "wait_peers": 9}, "use --topology complete"),
        ({"collect_s": 0.0}, "use --collect-s 60"),
        ({"overlap": True}, "use no --overlap"),
        ({"mixing": "age"}, "use --mixing average"),
        ({"mixing": "staleness"}, "use --mixing average"),
        ({"gamma": 0.5}, "diloco:0:LR"),
        ({"optimizer": "fedadam"}, "use --optimizer none, noloco or diloco"),
        ({"optimizer": "qg"}, "use --optimizer none, noloco or diloco"),
        ({"robust": "trim-clip"}, "use --robust none"),
        ({"factors": "tsvd"}, "use --factors both"),
        ({"feedback": "pseudo-gradient:2"}, "0 to 1"),
        (
            {"codec": "float32", "feedback": "pseudo-gradient", "mask": "pairs", "robust": "none"},
            "use --feedback none",
        ),
    ],
)
def test_what_does_not_go_with_changes_is_refused_with_a_way_out(options: dict[str, Any], said: str) -> None:
    with pytest.raises(LocalError, match=said):
        planned(**options)


@pytest.mark.parametrize(
    "options",
    [{}, {"optimizer": "diloco:0.5:0.9"}, {"fragments": 2}, {"codec": "int4", "feedback": "pseudo-gradient"}],
)
def test_what_goes_with_changes_reaches_the_node(options: dict[str, Any]) -> None:
    plan = planned(**options)
    methods = plan.methods(SPEC)
    assert plan.robust == "none"
    assert methods.gamma == 1.0
    assert methods.sends_changes
    assert not methods.sends_plain_adapters
    assert methods.merge.codec == "int8"


def test_without_loss_the_merge_loses_nothing_either() -> None:
    assert resolve(MethodNames(feedback="pseudo-gradient"), SPEC).merge.codec == "float32"
