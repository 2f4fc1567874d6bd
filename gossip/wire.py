"""Messages to bytes and back, with every limit of the control plane in one place.

A frame is one msgpack map: ``"type"`` and the message's fields. On a stream it follows its length as four big-endian
bytes. Tensors never travel inside msgpack. Bytes from a peer are hostile until ``decode`` has returned: whatever is
wrong with them is one exception, ``RemoteError("malformed")``.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Callable
from typing import Any, get_args

import msgpack

from gossip.errors import RemoteError
from gossip.messages import (
    Claim,
    Evidence,
    Hello,
    Kind,
    MaskKey,
    MaskKeyQuery,
    MaskSeeds,
    Message,
    Offer,
    PairSeed,
    Ping,
    Presence,
    Pull,
    Reason,
    Refusal,
    SumAgreed,
    Summand,
    SumProposal,
    SumSigned,
)
from topology.announced import LABELS_MAX, ROWS_MAX, Announced

FRAME_BYTES_MAX = 64 * 1024
"""A control frame is at most this long; ours are below 4 KiB (ux-reliability.md B7)."""
TEXT_BYTES_MAX = 1024
LIST_ITEMS_MAX = 64
WAIT_S_MAX = 600.0
ROUND_MAX = 2**40
INCARNATION_MAX = 2**48
"""Seconds since 1970 fit for nine million years, and a few more lives."""
PAYLOAD_BYTES_MAX = 512 * 1024 * 1024
"""Hard cap of one adapter. The exact size follows from the run manifest and is checked besides."""

_LENGTH = struct.Struct(">I")
LENGTH_BYTES = _LENGTH.size

Check = Callable[[Any], Any]


def _integer(low: int, high: int) -> Check:
    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"integer from {low} to {high} expected")
        return value

    return check


def _text(value: Any) -> str:
    if type(value) is not str or len(value.encode()) > TEXT_BYTES_MAX:
        raise ValueError(f"text of at most {TEXT_BYTES_MAX} bytes expected")
    if not value.isprintable():
        # Names and details reach terminals and logs: no escape sequences, no newlines, no direction marks.
        raise ValueError("printable text expected")
    return value


def _one_of(words: tuple[str, ...]) -> Check:
    def check(value: Any) -> str:
        if type(value) is not str or value not in words:
            raise ValueError(f"one of {', '.join(words)} expected")
        return value

    return check


def _binary(*lengths: int) -> Check:
    def check(value: Any) -> bytes:
        if type(value) is not bytes or len(value) not in lengths:
            raise ValueError(f"binary of {lengths} bytes expected")
        return value

    return check


def _seconds(value: Any) -> float:
    if type(value) not in (float, int) or not math.isfinite(value) or not 0 <= value <= WAIT_S_MAX:
        raise ValueError(f"0 to {WAIT_S_MAX:g} seconds expected")
    return float(value)


def _texts(value: Any) -> tuple[str, ...]:
    if type(value) is not list or len(value) > LIST_ITEMS_MAX:
        raise ValueError(f"list of at most {LIST_ITEMS_MAX} texts expected")
    return tuple(_text(item) for item in value)


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("true or false expected")
    return value


def _manifest(value: Any) -> dict[str, str | int]:
    if type(value) is not dict or len(value) > LIST_ITEMS_MAX:
        raise ValueError("map of manifest fields expected")
    number = _integer(-(2**63), 2**63)
    return {_text(key): number(item) if type(item) is int else _text(item) for key, item in value.items()}


def _announced(value: Any) -> Announced:
    if type(value) is not dict or value.keys() != {"rows", "labels"}:
        raise ValueError("a map of rows and labels expected")
    count = _integer(0, ROWS_MAX)
    labels = value["labels"]
    if type(labels) is not list or len(labels) > LABELS_MAX:
        raise ValueError(f"list of at most {LABELS_MAX} counts expected")
    return Announced(count(value["rows"]), tuple(count(rows) for rows in labels))


def _record(cls: type[Any], checks: dict[str, Check]) -> Check:
    """Return the check of a map that is one of our records."""

    def check(value: Any) -> Any:
        if type(value) is not dict or value.keys() != checks.keys():
            raise ValueError(f"a map of {', '.join(checks)} expected")
        return cls(**{name: check(value[name]) for name, check in checks.items()})

    return check


def _list_of(check: Check, items_max: int) -> Check:
    def check_all(value: Any) -> tuple[Any, ...]:
        if type(value) is not list or len(value) > items_max:
            raise ValueError(f"list of at most {items_max} expected")
        return tuple(check(item) for item in value)

    return check_all


def _optional(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


_round = _integer(0, ROUND_MAX)
_offset = _integer(0, PAYLOAD_BYTES_MAX)
CLAIMS_MAX = 4
"""Claims in one presence: a kilobyte, about once a second, and half a millisecond to check. Source: ours."""
EVIDENCE_MAX = 16
"""Pieces of evidence in one hello, 8 KiB. Source: ours."""

_kind = _one_of(get_args(Kind))
_RUN, _DIGEST, _SIGNATURE = 16, 32, 64
BASE_BYTES = 8
"""Length of a replica's fingerprint: it guards against mistakes; a liar's payload is guarded against as any other."""

_incarnation = _integer(0, INCARNATION_MAX)
_claim = _record(
    Claim,
    {
        "peer": _text,
        "incarnation": _incarnation,
        "round": _round,
        "kind": _kind,
        "base": _binary(0, BASE_BYTES),
        "digest": _binary(_DIGEST),
        "signature": _binary(_SIGNATURE),
    },
)
MASKED_MAX = 32
"""Publishers in one masked sum. Source: ours; twice as many as a small group's final merge reads."""
_SEED = _KEY = 32
_MASK_KEY = {"peer": _text, "key": _binary(_KEY), "signature": _binary(_SIGNATURE)}
_mask_keys = _list_of(_record(MaskKey, _MASK_KEY), MASKED_MAX)
_summands = _list_of(_record(Summand, {"peer": _text, "digest": _binary(_DIGEST)}), MASKED_MAX)
_pair_seeds = _list_of(_record(PairSeed, {"peer": _text, "seed": _binary(_SEED)}), MASKED_MAX)
_WHICH_SUM = {"run": _binary(_RUN), "round": _round, "kind": _kind, "keys": _binary(_DIGEST)}
_EVIDENCE = {"first": _claim, "second": _claim}
_evidence = _record(Evidence, _EVIDENCE)

SCHEMA: dict[str, tuple[type[Any], dict[str, Check]]] = {
    "hello": (
        Hello,
        {
            "manifest": _manifest,
            "name": _text,
            "round": _round,
            "addresses": _texts,
            "known": _texts,
            "incarnation": _incarnation,
            "evidence": _list_of(_evidence, EVIDENCE_MAX),
        },
    ),
    "refusal": (Refusal, {"reason": _one_of(get_args(Reason)), "detail": _text}),
    "ping": (Ping, {"round": _round}),
    "pull": (
        Pull,
        {
            "run": _binary(_RUN),
            "round": _optional(_round),
            "newer_than": _integer(-1, ROUND_MAX),
            "wait_s": _seconds,
            "offset": _offset,
            "digest": _binary(0, _DIGEST),
            "base": _binary(0, BASE_BYTES),
            "kind": _kind,
        },
    ),
    "offer": (
        Offer,
        {
            "round": _round,
            "age": _integer(0, ROUND_MAX),
            "codec": _text,
            "length": _offset,
            "digest": _binary(_DIGEST),
            "offset": _offset,
            "base": _binary(0, BASE_BYTES),
            "kind": _kind,
            "incarnation": _incarnation,
            "signature": _binary(0, _SIGNATURE),
        },
    ),
    "presence": (
        Presence,
        {
            "run": _binary(_RUN),
            "name": _text,
            "round": _round,
            "addresses": _texts,
            "leaving": _flag,
            "incarnation": _incarnation,
            "sequence": _round,
            "claims": _list_of(_claim, CLAIMS_MAX),
        },
    ),
    "evidence": (Evidence, _EVIDENCE),
    "mask_key_query": (MaskKeyQuery, {"run": _binary(_RUN)}),
    "mask_key": (MaskKey, _MASK_KEY),
    "sum_proposal": (SumProposal, {**_WHICH_SUM, "summands": _summands}),
    "sum_agreed": (SumAgreed, {"signature": _binary(_SIGNATURE)}),
    "sum_signed": (
        SumSigned,
        {**_WHICH_SUM, "signatures": _list_of(_binary(_SIGNATURE), MASKED_MAX)},
    ),
    "mask_seeds": (MaskSeeds, {"own": _binary(_SEED), "pairs": _pair_seeds}),
}
OPTIONAL: dict[str, dict[str, Check]] = {"hello": {"data": _announced}, "pull": {"keys": _mask_keys}}
"""Fields that are left out where there is nothing to say, so that most frames are without them."""
_TYPE_NAMES = {cls: name for name, (cls, _) in SCHEMA.items()}

_AS_THEY_ARE = frozenset({int, str, bytes, bool, float, dict, type(None)})
"""Types of most fields, which msgpack takes as they are."""


def encode(message: Message) -> bytes:
    """Return the frame of a message (without the length that precedes it on a stream)."""
    name = _TYPE_NAMES[type(message)]
    body = {"type": name, **{field: _plain(getattr(message, field)) for field in SCHEMA[name][1]}}
    for field in OPTIONAL.get(name, ()):
        if (value := getattr(message, field)) is not None:
            body[field] = _plain(value)
    frame: bytes = msgpack.packb(body, use_bin_type=True)
    return frame


def _plain(value: Any) -> Any:
    """Return a field as msgpack has it."""
    if type(value) in _AS_THEY_ARE:
        return value
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    is_record = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return dataclasses.asdict(value) if is_record else value


def decode(frame: bytes | bytearray | memoryview) -> Message:
    """Return the message in a frame.

    Raises:
        RemoteError: ``"malformed"``, for anything else than exactly one well-formed message within all limits.
    """
    if len(frame) > FRAME_BYTES_MAX:
        raise RemoteError("malformed", f"frame of {len(frame)} bytes, at most {FRAME_BYTES_MAX}")
    try:
        raw = msgpack.unpackb(
            frame,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_unique,
            ext_hook=_no_extension,
            max_str_len=TEXT_BYTES_MAX,
            max_bin_len=_SIGNATURE,
            max_array_len=LIST_ITEMS_MAX,
            max_map_len=LIST_ITEMS_MAX,
            max_ext_len=0,
        )
        if type(raw) is not dict or type(raw.get("type")) is not str:
            raise ValueError("a map with a type expected")
        name = raw.pop("type")
        cls, required = SCHEMA[name]
        checks = required
        if optional := OPTIONAL.get(name):
            checks = {**required, **{key: check for key, check in optional.items() if key in raw}}
        if raw.keys() != checks.keys():
            raise ValueError(f"fields {sorted(checks)} expected, got {sorted(map(str, raw))}")
        message: Message = cls(**{name: check(raw[name]) for name, check in checks.items()})
    except (ValueError, KeyError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise RemoteError("malformed", f"{type(error).__name__}: {error}"[:200]) from error
    return message


def framed(message: Message) -> bytes:
    """Return the frame preceded by its length: what is written to a stream."""
    frame = encode(message)
    return _LENGTH.pack(len(frame)) + frame


def frame_length(prefix: bytes | bytearray) -> int:
    """Return the length announced by four bytes.

    Raises:
        RemoteError: ``"oversized"``, before anything is allocated for it.
    """
    (length,) = _LENGTH.unpack(prefix)
    if not 0 < length <= FRAME_BYTES_MAX:
        raise RemoteError("oversized", f"frame of {length} bytes announced, 1 to {FRAME_BYTES_MAX} allowed")
    return int(length)


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        raise ValueError("a key appears twice")
    return mapping


def _no_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code} is not part of the protocol")
