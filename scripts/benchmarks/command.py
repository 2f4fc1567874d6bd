"""How fast everything is: one table, and a JSON line per figure appended to bench.jsonl.

    python scripts/bench.py                     everything but the slow sections (two minutes)
    python scripts/bench.py mixing transport    some sections
    python scripts/bench.py learning            the default demo, as a figure (ten minutes)

Machines differ: trust the ratios, both sides of which are measured in the same run. Targets are those the project set
itself; a missed one is printed as such and is not an error.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from scripts.benchmarks.rows import Row, at_least, at_most, row, seconds

ROOT = Path(__file__).resolve().parents[2]

# -- sections


def mixing() -> Iterator[Row]:
    """Mixing 8 neighbors' adapters of 10M values against one memory copy per contribution."""
    import torch

    from gossip.methods.mixing import weighted_sum

    vectors = [torch.randn(10_000_000) for _ in range(9)]
    target = torch.empty_like(vectors[0])

    def copies() -> None:
        for vector in vectors:
            target.copy_(vector)

    copied = seconds(copies)
    mixed = seconds(lambda: weighted_sum(vectors, [1 / 9] * 9))
    yield row("mixing: 9 x 10M values", mixed, "s")
    yield row("mixing: 9 copies of 10M values", copied, "s")
    yield at_most("mixing / copies", mixed / copied, "x", 2.0)


def codecs() -> Iterator[Row]:
    """Encoding and decoding one million values of 100 pairs of LoRA factors, each vector in a round of its own."""
    import itertools

    import torch

    from gossip.adapter import AdapterSpec
    from gossip.methods.codecs import CODECS

    factors = (("a", (10, 500)), ("b", (500, 10)))
    spec = AdapterSpec(tuple((f"{index}{name}", shape) for index in range(100) for name, shape in factors))
    values, rounds = torch.randn(spec.size), itertools.count()
    for name, entry in CODECS.items():
        codec = entry.make()
        payload = codec.encode(values, spec, 0)
        encode = seconds(lambda codec=codec: codec.encode(values, spec, next(rounds)))
        decode = seconds(lambda codec=codec, payload=payload: codec.decode(payload, spec, 0))
        yield row(f"codec {name}: encode", 4 / encode, "MB/s")
        yield row(f"codec {name}: decode", 4 / decode, "MB/s")
        yield row(f"codec {name}: size of float32", len(payload) / 4e6, "x")


def simulation() -> Iterator[Row]:
    """A thousand real nodes on the virtual clock, and how memory grows with their number."""
    from scripts.benchmarks import simulation as section

    yield from section.rows()


def transport() -> Iterator[Row]:
    """The network beside TLS and beside the library's default path; see transport.py."""
    from scripts.benchmarks import transport as section

    yield from section.rows()


def topology() -> Iterator[Row]:
    """Consensus and spectra of 10,000 peers, and the real protocol with 256; see topology.py."""
    from scripts.benchmarks import topology as section

    yield from section.rows()


def rounds() -> Iterator[Row]:
    """Four peers' processes on a ring, 4.4 MB of float32 each, no training: a round, before and after a kill -9."""
    from scripts.benchmarks import rounds as section

    yield from section.rows()


def methods() -> Iterator[Row]:
    """A round of every kind of method beside the local steps of the default demo; see methods.py."""
    from scripts.benchmarks import methods as section

    yield from section.rows()


def memory() -> Iterator[Row]:
    """Private memory of a local peer with SmolLM2-135M, before its first step, while a second one runs beside it."""
    from scripts.benchmarks import memory as section

    yield from section.rows()


def learning() -> Iterator[Row]:
    """The default demo: gossip against local-only and centralized training."""
    from scripts.lab.testnet import TestnetConfig, run_testnet

    with tempfile.TemporaryDirectory() as folder:
        summary, _ = run_testnet(TestnetConfig(out=Path(folder) / "run"), lambda view, event: None)
    base, local, central = summary["base_loss"], summary["local_loss"], summary["central_loss"]
    gossip = summary["gossip_loss_mean"]
    for name, loss in (("base", base), ("local only", local), ("gossip", gossip), ("centralized", central)):
        yield row(f"demo: loss over all languages, {name}", loss, "nats")
    yield at_least("demo: gossip below local only", local - gossip, "nats", 0.15)
    yield at_least("demo: share of the centralized gain", (base - gossip) / (base - central), "", 0.85)
    yield at_most("demo: wall time", summary["wall_s"], "s", 600.0)


SECTIONS: dict[str, Callable[[], Iterator[Row]]] = {
    "mixing": mixing,
    "codecs": codecs,
    "simulation": simulation,
    "transport": transport,
    "topology": topology,
    "rounds": rounds,
    "methods": methods,
    "memory": memory,
    "learning": learning,
}
SLOW = {"topology", "methods", "memory", "learning"}


def machine() -> dict[str, Any]:
    """Return what a figure depends on."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    packages = ("torch", "libp2p", "trio", "transformers", "peft")
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "commit": commit.stdout.strip() or None,
        "cpus": os.cpu_count(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def main(words: Sequence[str] | None = None) -> int:
    """Run sections, print the table, append JSON lines."""
    names = sys.argv[1:] if words is None else list(words)
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        print(f"error: unknown section {', '.join(unknown)}; known: {', '.join(SECTIONS)}", file=sys.stderr)
        return 2
    chosen = names or [name for name in SECTIONS if name not in SLOW]
    with (ROOT / "bench.jsonl").open("a") as file:
        for name in chosen:
            for made in SECTIONS[name]():
                verdict = {None: "", True: "met", False: "MISSED"}[made["met"]]
                figure = f"{made['value']:10.3f} {made['unit']:5}"
                print(f"{made['name']:52} {figure} {made['target']:8} {verdict}", flush=True)
                file.write(json.dumps({"section": name, **made, **machine()}) + "\n")
    return 0
