"""What feedback rules promise: alone, between a sender and its readers, and in consensus on a ring of 16.

The toy is x' = x + gamma (W - I) y, where y is x as readers decode it. Known answers: algorithms.md section 2.
"""

from functools import lru_cache, partial
from itertools import pairwise

import numpy as np
import pytest
import torch

from gossip.adapter import AdapterSpec, AdapterState
from gossip.errors import LocalError, RemoteError
from gossip.methods.budget import LADDER, choose_codec
from gossip.methods.catalogue import find
from gossip.methods.codecs import CODECS, Codec, Encoding
from gossip.methods.feedback import FEEDBACKS, default_feedback
from gossip.methods.parts import whole
from gossip.methods.pipeline import Pipeline, PipelinePlan
from gossip.methods.requirements import State
from gossip.methods.stage import Encoded, Incoming, RoundContext, Stage
from gossip.published import PublishedAdapter

SPEC = AdapterSpec((("a", (8, 30)), ("b", (30, 8)), ("c", (20,))))
PEERS = 16
OF_ADAPTERS = [name for name, entry in FEEDBACKS.items() if not entry.make().changes]
"""What rounds have changed, ``test_pseudo_gradients.py`` is about."""


def codec_of(name: str) -> Codec:
    return find("codec", name, CODECS)


def stage_of(name: str) -> Stage:
    return find("feedback rule", name, FEEDBACKS).stage(SPEC)


def context_of(values: torch.Tensor, round: int) -> RoundContext:
    adapter = AdapterState(SPEC, values)
    return RoundContext(round=round, age=0, steps=1, start=adapter, trained=adapter, readers=lambda: 0)


def publish(
    stage: Stage, codec: Codec, values: torch.Tensor, round: int, state: State
) -> tuple[Encoded, State]:
    """Let a vector pass a stage and a codec."""
    context, encoding = context_of(values, round), Encoding(codec, SPEC)

    def encode(vector: torch.Tensor) -> Encoded:
        return encoding.publish(vector, context, encode, {})[0]

    return stage.publish(values, context, encode, state)


def read(
    stage: Stage, codec: Codec, payload: bytes, base: bytes, round: int, state: State
) -> tuple[torch.Tensor, State]:
    """Let what came from ``"sender"`` pass a codec and a stage."""
    incoming = Incoming("sender", PublishedAdapter(round, 0, "some codec", payload, base), SPEC)

    def decode(incoming: Incoming) -> torch.Tensor:
        return Encoding(codec, SPEC).read(incoming, decode, {})[0]

    return stage.read(incoming, decode, state)


def vectors(count: int, common: float = 0.0) -> torch.Tensor:
    """Return float64[count, P]: normally distributed, with a common part of another size."""
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(count, SPEC.size, generator=generator)
    return (own + common * torch.randn(SPEC.size, generator=generator)).double()


def disagreement(x: torch.Tensor) -> float:
    return float((x - x.mean(dim=0)).square().sum())


@lru_cache(maxsize=64)
def consensus(codec: str, feedback: str, gamma: float, rounds: int, common: float = 0.0) -> tuple[float, ...]:
    """Return Xi^2 / Xi_0^2 after each round; checks on the way that the mean stays where it is."""
    method, stage = codec_of(codec), stage_of(feedback)
    x = vectors(PEERS, common)
    mean, first = x.mean(dim=0), disagreement(x)
    states = [stage.init(torch.zeros(SPEC.size)) for _ in range(PEERS)]
    left = []
    for round in range(rounds):
        decoded = torch.empty_like(x)
        for peer in range(PEERS):
            encoded, states[peer] = publish(stage, method, x[peer].float(), round, states[peer])
            decoded[peer] = encoded.as_decoded
        x = x + gamma / 3 * (decoded.roll(1, 0) + decoded.roll(-1, 0) - 2 * decoded)
        left.append(disagreement(x) / first)
        if left[-1] > 100:
            break
        assert (x.mean(dim=0) - mean).abs().max() < 1e-10
    return tuple(left)


# -- sender and readers


@pytest.mark.parametrize("feedback", OF_ADAPTERS)
@pytest.mark.parametrize("codec", CODECS)
def test_readers_make_of_it_what_the_sender_believes(codec: str, feedback: str) -> None:
    method, stage = codec_of(codec), stage_of(feedback)
    state, readers = stage.init(torch.zeros(SPEC.size)), stage.init(torch.zeros(SPEC.size))
    for round, values in zip((0, 1, 2, 5), vectors(4).float(), strict=True):
        before = {name: tensor.clone() for name, tensor in state.items()}
        encoded, later = publish(stage, method, values, round, state)
        assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
        assert encoded.base == stage.base_of("sender", readers), "a reader that missed nothing can use it"
        assert (encoded.whole is not None) == bool(encoded.base)
        decoded, readers = read(stage, method, encoded.payload, encoded.base, round, readers)
        assert torch.equal(decoded, encoded.as_decoded)
        state = later


@pytest.mark.parametrize("codec", ["float32", "int4", "topk"])
def test_after_a_gap_the_whole_gives_the_same_replica(codec: str) -> None:
    method, stage = codec_of(codec), stage_of("replica")
    state = stage.init(torch.zeros(SPEC.size))
    for round, values in enumerate(vectors(5).float()):  # a reader that was away all the time
        encoded, state = publish(stage, method, values, round, state)
    assert encoded.whole is not None
    newcomer = stage.init(torch.zeros(SPEC.size))
    assert encoded.base != stage.base_of("sender", newcomer)
    replica, newcomer = read(stage, method, encoded.whole(), b"", 4, newcomer)
    assert torch.equal(replica, encoded.as_decoded)
    following, _ = publish(stage, method, vectors(6)[5].float(), 5, state)
    assert following.base == stage.base_of("sender", newcomer)
    decoded, _ = read(stage, method, following.payload, following.base, 5, newcomer)
    assert torch.equal(decoded, following.as_decoded)


def test_a_change_of_something_that_the_reader_lacks_is_refused_and_changes_nothing() -> None:
    plan = PipelinePlan.of(
        [find("feedback rule", "replica", FEEDBACKS).stage, partial(Encoding, codec_of("int8"))],
        whole(SPEC),
        "int8",
    )
    zeros = AdapterState(SPEC, torch.zeros(SPEC.size))
    sender, reader = (Pipeline(name, plan, zeros, 10.0) for name in ("sender", "reader"))
    published = [sender.publish(context_of(vector.float(), round)) for round, vector in enumerate(vectors(3))]
    reader.read("sender", published[0], 0.5)
    with pytest.raises(RemoteError, match="gap"):
        reader.read("sender", published[2], 0.5)
    for change in published[1:]:  # the round that was missed, and then the one that was refused
        reader.read("sender", change, 0.5)
    assert reader.base_of("sender") == sender.publish(context_of(vectors(1)[0].float(), 3)).base
    reader.forget("sender")
    assert reader.base_of("sender") == b""


@pytest.mark.parametrize("feedback", FEEDBACKS)
def test_a_wrong_length_is_the_sender_s_fault(feedback: str) -> None:
    stage = stage_of(feedback)
    state = stage.init(torch.zeros(SPEC.size))
    if feedback == "replica":
        whole = codec_of("float32").encode(torch.zeros(SPEC.size), SPEC, 3)
        _, state = read(stage, codec_of("int8"), whole, b"", 3, state)
    for base in (b"", stage.base_of("sender", state)):
        with pytest.raises(RemoteError, match="shape"):
            read(stage, codec_of("int8"), b"\0" * 17, base, 4, state)


def test_a_replica_that_is_not_finite_is_not_kept() -> None:
    stage = stage_of("replica")
    whole = codec_of("float32").encode(torch.full((SPEC.size,), torch.nan), SPEC, 0)
    _, state = read(stage, codec_of("int8"), whole, b"", 0, stage.init(torch.zeros(SPEC.size)))
    assert stage.base_of("sender", state) == b""


def test_a_state_that_was_saved_goes_on() -> None:
    # Named tensors: what a checkpoint keeps. A sender that begins a life sends a whole vector: its replica, if it has
    # kept one, with the change of that round, or else the vector itself.
    stage, method, (first, second) = stage_of("replica"), codec_of("topk"), vectors(2).float()
    beginning = stage.init(torch.zeros(SPEC.size))
    _, state = publish(stage, method, first, 0, beginning)
    copy = {name: torch.from_numpy(np.array(tensor)) for name, tensor in stage.saved(state).items()}
    assert copy.keys() == {"replica", "round"}
    (again, _), (going_on, _) = (publish(stage, method, second, 1, each) for each in (copy, state))
    assert going_on.whole is not None
    assert (again.base, again.payload) == (b"", going_on.whole())
    assert torch.equal(again.as_decoded, going_on.as_decoded)
    anew, _ = publish(stage, method, second, 1, beginning)
    assert anew.base == b""
    assert torch.equal(anew.as_decoded, second)
    assert len(anew.payload) == 4 * SPEC.size


# Real adapters, 10 rounds, without and with: sign .469, .140; int4 .070, .007 (ml-runtime.md section 9). Normally
# distributed values are the harder case. randomk has a closed form: without, each value is sent once in ten rounds, .9;
# with, round t sends t + 1 times a value, so that sqrt(mean((1 - t / 10)^2)) = .52 to .54 remains.
@pytest.mark.parametrize(
    ("codec", "without", "with_memory"),
    [
        ("sign", 0.61, 0.285),
        ("int4", 0.122, 0.0116),
        ("topk", 0.74, 0.34),
        ("randomk", 0.9, 0.53),
        ("lowrank", 0.67, 0.19),
    ],
)
def test_what_was_lost_is_sent_later(codec: str, without: float, with_memory: float) -> None:
    method, values = codec_of(codec), vectors(1)[0].float()
    for feedback, expected in (("none", without), ("error", with_memory)):
        stage = stage_of(feedback)
        total = torch.zeros(SPEC.size)
        state = stage.init(total)
        for round in range(10):
            encoded, state = publish(stage, method, values, round, state)
            total += encoded.as_decoded / 10
        assert float((total - values).norm() / values.norm()) == pytest.approx(expected, rel=0.1)
        # All that was not sent is remembered.
        torch.testing.assert_close(total + state.get("error", 10 * (values - total)) / 10, values)


def test_defaults_follow_the_codec() -> None:
    assert {name: default_feedback(name) for name in CODECS} == {
        **dict.fromkeys(("float32", "bfloat16", "int8"), "none"),
        **dict.fromkeys(("int4", "sign", "topk", "randomk", "lowrank"), "error"),
        "chunked": "pseudo-gradient",
    }
    assert default_feedback("TopK:0.05") == "error"


# -- consensus


@pytest.mark.parametrize("feedback", OF_ADAPTERS)
def test_the_exact_codec_with_step_size_1_is_plain_mixing(feedback: str) -> None:
    w = np.zeros((PEERS, PEERS))
    for peer in range(PEERS):
        w[peer, [peer - 1, peer, (peer + 1) % PEERS]] = 1 / 3
    x = vectors(PEERS).numpy()
    centered = x - x.mean(axis=0)
    expected = np.square(np.linalg.matrix_power(w, 20) @ centered).sum() / np.square(centered).sum()
    assert consensus("float32", feedback, 1.0, 20)[-1] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("feedback", OF_ADAPTERS)
@pytest.mark.parametrize("codec", CODECS)
def test_the_mean_stays(codec: str, feedback: str) -> None:
    assert len(consensus(codec, feedback, 0.05, 12, 1.0)) == 12


def test_replicas_of_the_largest_tenth_converge_linearly_up_to_their_step_size() -> None:
    # algorithms.md: after 400 rounds 7e-9 with 0.4; 0.6 diverges.
    left = consensus("topk", "replica", 0.4, 400)
    assert 7e-9 / 3 < left[-1] < 7e-9 * 3
    assert np.log(left[199] / left[99]) == pytest.approx(np.log(left[399] / left[199]) / 2, rel=0.25)
    assert consensus("topk", "replica", 0.6, 400)[-1] > 100


def test_error_memory_stalls_and_is_never_better_than_replicas() -> None:
    # algorithms.md: 2.0e-2 with 0.3 however long, 5.4e-3 with 0.1 after 400 rounds; replicas go on falling.
    left = consensus("topk", "error", 0.3, 200)
    assert 1e-2 < left[-1] < 4e-2
    assert left[-1] == pytest.approx(left[99], rel=0.5)
    assert consensus("topk", "error", 1.0, 200)[-1] > 100
    assert 3e-3 < consensus("topk", "error", 0.1, 400)[-1] < 1e-2
    for codec, gamma, common in (
        ("topk", 0.3, 0.0),
        ("topk", 0.1, 1.0),
        ("sign", 0.2, 1.0),
        ("int4", 0.5, 1.0),
    ):
        with_error, with_replicas = (
            consensus(codec, rule, gamma, 120, common)[-1] for rule in ("error", "replica")
        )
        assert with_replicas < with_error, codec


def test_each_codec_agrees_with_its_own_step_size_and_a_rung_up_the_ladder_agrees_better() -> None:
    left = {
        name: consensus(name, default_feedback(name), codec_of(name).gamma, 100, 1.0)[-1]
        for name in (*LADDER, "topk", "randomk", "lowrank")
    }
    assert all(each < 1 for each in left.values())
    assert [left[name] for name in LADDER] == sorted(left[name] for name in LADDER)
    assert len({round(left[name], 12) for name in LADDER}) == len(LADDER)


# -- the byte budget


def test_the_most_exact_codec_within_the_budget_is_chosen() -> None:
    spec = AdapterSpec((("w", (1_000_000,)),))
    for text in LADDER:
        needed = 3 * codec_of(text).payload_bytes(spec)
        assert choose_codec(needed, spec, 3) == text
        if text != LADDER[-1]:
            assert choose_codec(needed - 1, spec, 3) != text
    assert choose_codec(10**9, spec, 3) == "float32"


def test_a_budget_too_small_names_the_least_one() -> None:
    spec = AdapterSpec((("w", (1_000_000,)),))
    least = 2 * codec_of(LADDER[-1]).payload_bytes(spec)
    with pytest.raises(LocalError, match=f"at least {least:,} bytes"):
        choose_codec(least - 1, spec, 2)


def test_each_rung_costs_less_than_the_one_above() -> None:
    spec = AdapterSpec((("w", (1_000_000,)),))
    costs = [codec_of(text).payload_bytes(spec) for text in LADDER]
    assert all(lower < 0.6 * upper for upper, lower in pairwise(costs))
