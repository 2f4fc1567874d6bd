"""Damaged frames, many of them: what is no message is one exception, and costs no memory.

``WIRE_FUZZ_FRAMES=1000000 pytest tests/gossip/test_wire_fuzz.py`` is the long form.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
from collections import Counter
from pathlib import Path

from gossip import wire
from gossip.errors import RemoteError

FRAMES = int(os.environ.get("WIRE_FUZZ_FRAMES", "100000"))
GROWTH_MAX = 16 << 20
RSS_UNIT = 1 if sys.platform == "darwin" else 1024
SEEDS = [
    bytes.fromhex(frame)[wire.LENGTH_BYTES :]
    for frame in json.loads((Path(__file__).parents[1] / "golden" / "frames.json").read_text()).values()
]
HEADERS = (
    b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\x7f\xff\xff\xff", b"\xc6\x7f\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01", b"\xdc\xff\xff", b"\x91" * 600, b"\xcb\x7f\xf0" + bytes(6), b"\xc0",
)  # fmt: skip
"""What promises more than there is, nests, or is no number: put where something else was."""


def damaged(rng: random.Random) -> bytearray:
    """Return a valid frame after up to four of: another byte, a cut, a doubled piece, a piece of another, a header."""
    frame = bytearray(rng.choice(SEEDS))
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(frame) + 1)
        match rng.randrange(6):
            case 0 | 1:
                frame[place : place + 1] = rng.randbytes(1)
            case 2:
                del frame[place : place + rng.randint(1, 40)]
            case 3:
                frame[place:place] = frame[place : place + rng.randint(1, 200)]
            case 4:
                other = rng.choice(SEEDS)
                start = rng.randrange(len(other))
                frame[place : place + 8] = other[start : start + rng.randint(1, 60)]
            case 5:
                frame[place : place + 1] = rng.choice(HEADERS)
    return frame


def test_damaged_frames_are_messages_or_malformed_and_cost_no_memory() -> None:
    rng, ends = random.Random(0), Counter[str]()
    for frame in SEEDS:
        wire.decode(frame)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(FRAMES):
        frame = damaged(rng)
        try:
            message = wire.decode(frame)
        except RemoteError as error:
            ends[error.reason] += 1
        else:
            ends["message"] += 1
            assert len(wire.encode(message)) <= wire.FRAME_BYTES_MAX
    assert set(ends) == {"malformed", "message"}
    assert ends["message"] > FRAMES // 100  # else nothing would be tried but the first check
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * RSS_UNIT
    assert grown <= GROWTH_MAX
