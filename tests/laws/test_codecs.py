"""Laws that every codec of the catalogue keeps, whatever it is, and known answers of single ones."""

import random

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from gossip.adapter import AdapterSpec
from gossip.errors import LocalError, RemoteError
from gossip.methods import chunked, lowrank, sparse
from gossip.methods.catalogue import find, written
from gossip.methods.codecs import CODECS, INT8_BLOCK, Codec

NAMES = [
    *CODECS,
    *("topk:0.004", "topk:0.3", "topk:1", "randomk:0.03", "randomk:1", "lowrank:1", "lowrank:9"),
    *("chunked:1", "chunked:64:1", "chunked:4096:8", "chunked:4096:1"),
]
SIZES = (1, 7, INT8_BLOCK - 1, INT8_BLOCK, INT8_BLOCK + 1, 5000)
MATRICES = AdapterSpec(
    (("a", (8, 40)), ("b", (60, 8)), ("c", (8, 40)), ("d", (3, 2)), ("e", (5,)), ("f", (0, 4)))
)
LAYOUTS = [*(AdapterSpec((("w", (size,)),)) for size in SIZES), MATRICES]


def codec_of(name: str) -> Codec:
    return find("codec", name, CODECS)


def vector(spec: AdapterSpec, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(spec.size, generator=torch.Generator().manual_seed(seed))


def round_trip(name: str, values: Tensor, spec: AdapterSpec, round: int = 3) -> Tensor:
    codec = codec_of(name)
    return codec.decode(codec.encode(values, spec, round), spec, round)


def relative(decoded: Tensor, values: Tensor) -> float:
    return float((decoded - values).norm() / values.norm())


@pytest.mark.parametrize("spec", LAYOUTS, ids=lambda spec: str(spec.size))
@pytest.mark.parametrize("name", NAMES)
def test_error_is_within_the_declared_bound(name: str, spec: AdapterSpec) -> None:
    for scale in (1e-6, 1.0, 1e6):
        values = vector(spec, scale=scale)
        error = (round_trip(name, values, spec) - values).abs().max()
        assert error <= codec_of(name).relative_error * values.abs().max() * (1 + 1e-6)


@pytest.mark.parametrize("spec", LAYOUTS, ids=lambda spec: str(spec.size))
@pytest.mark.parametrize("name", NAMES)
def test_payload_size_is_known_before_the_first_byte(name: str, spec: AdapterSpec) -> None:
    codec = codec_of(name)
    for seed in range(3):
        assert len(codec.encode(vector(spec, seed), spec, seed)) == codec.payload_bytes(spec)


@pytest.mark.parametrize("spec", [LAYOUTS[-1], LAYOUTS[-2]], ids=["matrices", "vector"])
@pytest.mark.parametrize("name", NAMES)
def test_zero_stays_zero(name: str, spec: AdapterSpec) -> None:
    assert not round_trip(name, torch.zeros(spec.size), spec).any()


@pytest.mark.parametrize("name", NAMES)
def test_encoding_twice_gives_equal_bytes_and_leaves_the_values(name: str) -> None:
    for spec in (MATRICES, AdapterSpec((("w", (2048,)),))):  # the second is whole blocks of every size
        codec, values = codec_of(name), vector(spec)
        assert codec.encode(values, spec, 5) == codec.encode(values, spec, 5)
        assert torch.equal(values, vector(spec))


@pytest.mark.parametrize("change", [-1, 1, 1000])
@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_length_is_the_sender_s_fault(name: str, change: int) -> None:
    codec = codec_of(name)
    payload = codec.encode(vector(MATRICES), MATRICES, 0)
    wrong = payload[:change] if change < 0 else payload + bytes(change)
    with pytest.raises(RemoteError, match="shape"):
        codec.decode(wrong, MATRICES, 0)


@pytest.mark.parametrize("name", NAMES)
@given(size=st.integers(0, 600), seed=st.integers(0, 2**32), round=st.integers(0, 2**40))
@settings(max_examples=30, deadline=None)
def test_any_bytes_of_the_right_length_decode_to_a_vector_or_are_refused(
    name: str, size: int, seed: int, round: int
) -> None:
    codec = codec_of(name)
    spec = AdapterSpec((("w", (size,)),)) if size else MATRICES
    payload = random.Random(seed).randbytes(codec.payload_bytes(spec))
    refusals = []
    try:
        decoded = codec.decode(payload, spec, round)
        assert decoded.shape == (spec.size,)
        assert decoded.dtype == torch.float32
    except RemoteError as error:
        refusals.append(error.reason)
    assert refusals in ([], ["malformed"] if name.startswith(("topk", "chunked")) else [])


@pytest.mark.parametrize("name", NAMES)
def test_what_is_decoded_shares_no_memory_with_the_payload(name: str) -> None:
    codec = codec_of(name)
    payload = bytearray(codec.encode(vector(MATRICES), MATRICES, 0))
    before = bytes(payload)
    codec.decode(payload, MATRICES, 0).fill_(7.0)
    assert payload == before


@pytest.mark.parametrize("name", NAMES)
def test_a_step_size_suits_the_codec(name: str) -> None:
    codec = codec_of(name)
    assert 0 < codec.gamma <= 1
    assert codec.gamma == 1 or codec.relative_error > 0.01


def test_the_error_of_a_dense_vector_is_as_measured_elsewhere() -> None:
    # On normally distributed values: the mean magnitude is sqrt(2 / pi), so sign leaves sqrt(1 - 2 / pi) = 0.603; a
    # random tenth leaves sqrt(0.9) = 0.949; the largest tenth (|x| > 1.645) leaves sqrt(1 - 0.1 - 2 1.645 pdf) = 0.749;
    # int4 in steps of a seventh of the largest of 64, 2.6 on average, leaves 2.6 / 7 / sqrt(12) = 0.107; int8 with the
    # largest of 256, 3.1, leaves 3.1 / 127 / sqrt(12) = 0.0070.
    spec = AdapterSpec((("w", (100_000,)),))
    values = vector(spec)
    for name, expected in (
        ("sign", 0.603),
        ("randomk", 0.949),
        ("topk", 0.749),
        ("int4", 0.107),
        ("int8", 0.0070),
    ):
        assert relative(round_trip(name, values, spec), values) == pytest.approx(expected, rel=0.02), name


def test_bits_a_value() -> None:
    spec = AdapterSpec((("w", (1_000_000,)),))
    expected = {
        "float32": 32,
        "bfloat16": 16,
        "int8": 8.125,
        "int4": 4.25,
        "sign": 1.016,
        "topk": 2.125,
        "randomk": 1.6,
        # 32 bits of levels a chunk, 2 bits of each eighth value, and where it stands: 3 low bits, and 2 in unary.
        "chunked": 0.883,
        "chunked:64": 0.164,
    }
    for name, bits in expected.items():
        assert 8 * codec_of(name).payload_bytes(spec) / spec.size == pytest.approx(bits, abs=5e-4)


def test_parameters_are_refused_with_what_would_be_valid() -> None:
    for text in (
        "topk:0",
        "topk:1.5",
        "randomk:x",
        "lowrank:0",
        "int4:3",
        "chunked:0",
        "chunked:4097",
        "chunked:8:9",
        "zstd",
    ):
        with pytest.raises(LocalError):
            codec_of(text)
    assert written("codec", "TopK:.05", CODECS) == "topk:0.05"


# -- positions


@given(size=st.integers(1, 3000), data=st.data())
@settings(max_examples=100, deadline=None)
def test_positions_survive(size: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, size))
    drawn = random.Random(data.draw(st.integers(0, 2**32))).sample(range(size), count)
    positions = np.array(sorted(drawn), dtype=np.int64)
    raw = np.frombuffer(sparse.encode_positions(positions, size), dtype=np.uint8)
    assert len(raw) == sparse.positions_bytes(count, size) <= -(-size // 8)
    np.testing.assert_array_equal(sparse.decode_positions(raw, count, size), positions)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_positions_that_cannot_be_are_refused(share: float) -> None:
    spec = AdapterSpec((("w", (1003,)),))
    codec = codec_of(f"topk:{share}")
    count = sparse.count_of(share, spec.size)
    payload = bytearray(codec.encode(vector(spec), spec, 0))
    for hostile in (bytes(len(payload) - 2 * count), b"\xff" * (len(payload) - 2 * count)):
        with pytest.raises(RemoteError, match="malformed"):
            codec.decode(bytes(payload[: 2 * count]) + hostile, spec, 0)


def test_equal_positions_and_positions_beyond_the_end_are_refused() -> None:
    # 3 of 100: 5 low bits each, high parts in unary. Position 101 has as many high bits as 99.
    for positions in ([4, 4, 9], [4, 9, 101]):
        raw = np.frombuffer(sparse.encode_positions(np.array(positions), 100), dtype=np.uint8)
        with pytest.raises(RemoteError, match="malformed"):
            sparse.decode_positions(raw, 3, 100)


def test_the_largest_values_are_chosen() -> None:
    spec = AdapterSpec((("w", (20,)),))
    values = torch.tensor([0.5, -8.0, 1.0, 4.0] + [0.25] * 16)
    expected = torch.zeros(20)
    expected[1], expected[3] = -8.0, 4.0
    assert torch.equal(round_trip("topk", values, spec), expected)


@pytest.mark.parametrize("size", [1, 10, 1000, 1003])
def test_random_positions_differ_between_rounds_and_reach_everything(size: int) -> None:
    count = sparse.count_of(0.1, size)
    sweep = -(-size // count)
    sparse.random_positions.cache_clear()
    first = [sparse.random_positions(count, size, round).copy() for round in range(2 * sweep)]
    sparse.random_positions.cache_clear()
    for round, positions in enumerate(first):  # another peer draws the same
        np.testing.assert_array_equal(sparse.random_positions(count, size, round), positions)
        assert len(set(positions.tolist())) == count
    for rounds in (first[:sweep], first[sweep:]):
        assert set(np.concatenate(rounds).tolist()) == set(range(size))
    if size >= 1000:
        assert len({positions.tobytes() for positions in first}) == 2 * sweep


def test_of_every_chunk_the_largest_values_are_kept_at_the_levels_nearest_to_them() -> None:
    """A chunk of values around 1 loses nothing to one of values around 1000; of two bits one tells small from large."""
    spec = AdapterSpec((("w", (2 * chunked.CHUNK + 100,)),))
    values = torch.full((spec.size,), 1e-3)
    values[[5, 6, 7, 8]] = torch.tensor([1.0, -1.0, 2.0, -2.0])
    values[[4096, 5000, 6000, 8191]] = torch.tensor([1000.0, 1000.0, -3000.0, 3000.0])
    values[-1] = -7.0
    expected = torch.where(values.abs() > 0.5, values, 0.0)
    decoded = round_trip("chunked:4", values, spec)
    assert torch.equal(decoded[:-100], torch.from_numpy(expected.numpy()[:-100]).bfloat16().float())
    assert decoded[-1] == -7.0
    assert decoded[-100:].count_nonzero() == 1, "of 100 values, the share of 4 in 4,096, rounded up"


def test_more_bits_come_nearer() -> None:
    spec = AdapterSpec((("w", (20_000,)),))
    values = vector(spec)
    errors = [relative(round_trip(f"chunked:4096:{bits}", values, spec), values) for bits in range(1, 9)]
    assert errors == sorted(errors, reverse=True)
    # Known: the best two levels with signs leave sqrt(0.1175) = 0.343 of a normal distribution (Max 1960), one 0.603.
    assert errors[0] == pytest.approx(0.603, rel=0.02)
    assert errors[1] == pytest.approx(0.343, rel=0.03)
    assert errors[7] < 0.02


def test_positions_of_which_a_chunk_has_too_many_are_refused() -> None:
    spec = AdapterSpec((("w", (2 * chunked.CHUNK,)),))
    codec = codec_of("chunked:2")
    positions = sparse.encode_positions(np.array([1, 2, 3, 5000]), spec.size)
    payload = bytes(codec.payload_bytes(spec) - len(positions)) + positions
    with pytest.raises(RemoteError, match="malformed"):
        codec.decode(payload, spec, 0)


def test_random_positions_are_the_same_on_every_machine() -> None:
    assert sparse.random_positions(4, 40, 7).tolist() == [6, 8, 9, 37]


# -- low rank


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_matrix_of_low_rank_survives(rank: int) -> None:
    spec = AdapterSpec((("w", (30, 50)), ("v", (50, 30))))
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(30, rank, generator=generator) @ torch.randn(rank, 50, generator=generator)
    values = torch.cat([w.reshape(-1), w.T.reshape(-1)])
    assert relative(lowrank.expand(lowrank.compact(values, spec, 4, 0), spec, 4), values) < 0.003
    assert relative(round_trip("lowrank:4", values, spec), values) < 0.005


def test_the_factors_come_near_the_truncated_svd() -> None:
    spec = AdapterSpec((("w", (30, 50)),))
    for seed in range(5):
        values = vector(spec, seed)
        singular = torch.linalg.svdvals(values.view(30, 50))
        best = float(singular[2:].norm() / singular.norm())
        assert best <= relative(round_trip("lowrank:2", values, spec, seed), values) < 1.06 * best


def test_vectors_and_small_matrices_travel_as_they_are() -> None:
    values = vector(MATRICES)
    decoded = round_trip("lowrank:2", values, MATRICES)
    rest = slice(MATRICES.places["d", (3, 2)].start, None)
    assert torch.equal(decoded[rest], values[rest].to(torch.bfloat16).float())
    assert lowrank.compact_size(MATRICES, 2) == 2 * (48 + 68 + 48) + 6 + 5
