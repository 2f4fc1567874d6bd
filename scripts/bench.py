"""How fast everything is: one table, and a JSON line per figure appended to bench.jsonl.

    python scripts/bench.py                     everything but the slow sections (two minutes)
    python scripts/bench.py mixing transport    some sections
    python scripts/bench.py learning            the default demo, as a figure (ten minutes)

Machines differ: trust the ratios, both sides of which are measured in the same run. Targets are those the project set
itself; a missed one is printed as such and is not an error.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

Row = dict[str, Any]


def row(name: str, value: float, unit: str, target: str = "", met: bool | None = None) -> Row:
    """Return one figure; ``met`` is None where there is no target."""
    return {"name": name, "value": value, "unit": unit, "target": target, "met": met}


def at_most(name: str, value: float, unit: str, limit: float) -> Row:
    """Return a figure that must not exceed a limit."""
    return row(name, value, unit, f"<= {limit:g}", value <= limit)


def at_least(name: str, value: float, unit: str, limit: float) -> Row:
    """Return a figure that must reach a limit."""
    return row(name, value, unit, f">= {limit:g}", value >= limit)


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Return the median wall time of some runs after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


# -- sections


def mixing() -> Iterator[Row]:
    """Mixing 8 neighbors' adapters of 10M values against one memory copy per contribution."""
    import torch

    from gossip.mixing import weighted_sum

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
    from gossip.codecs import CODECS

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
    """1,000 nodes x 20 rounds of 8 values, and how memory grows with nodes."""
    from gossip.quadratic import Quadratic

    def run(peers: int) -> None:
        Quadratic(peers=peers).simulation().run()

    started = time.perf_counter()
    run(1000)
    yield at_most("simulation: 1,000 nodes x 20 rounds", time.perf_counter() - started, "s", 10.0)
    small, large = (_in_fresh_process(f"simulate {peers}") for peers in (500, 2000))
    yield at_most("simulation: memory of 2,000 / 500 nodes", large / small, "x", 4.5)


def _simulate(peers: str) -> None:
    """Print the memory, in bytes, that a network of nodes takes beyond what was there before."""
    import tracemalloc

    from gossip.quadratic import Quadratic

    Quadratic(peers=8).simulation().run()
    gc.collect()
    tracemalloc.start()
    Quadratic(peers=int(peers), rounds=4).simulation().run()
    print(tracemalloc.get_traced_memory()[1])


def _in_fresh_process(command: str) -> float:
    return float(subprocess.check_output([sys.executable, __file__, "child", *command.split()], text=True))


def transport() -> Iterator[Row]:
    """The network beside TLS and beside the library's default path; see bench_transport.py."""
    import bench_transport

    yield from bench_transport.rows()


def topology() -> Iterator[Row]:
    """Consensus and spectra of 10,000 peers, and the real protocol with 256; see bench_topology.py."""
    import bench_topology

    yield from bench_topology.rows()


def rounds() -> Iterator[Row]:
    """Four peers' processes on a ring, 4.4 MB of float32 each, no training: a round, before and after a kill -9."""
    import bench_rounds

    yield from bench_rounds.rows()


def methods() -> Iterator[Row]:
    """A round of every kind of method beside the local steps of the default demo; see bench_methods.py."""
    import bench_methods

    yield from bench_methods.rows()


def memory() -> Iterator[Row]:
    """Private memory of a local peer with SmolLM2-135M, before its first step, while a second one runs beside it."""
    import bench_memory

    yield from bench_memory.rows()


def learning() -> Iterator[Row]:
    """The default demo: gossip against local-only and centralized training."""
    from peer.testnet import TestnetConfig, run_testnet

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


def main(names: list[str]) -> int:
    """Run sections, print the table, append JSON lines."""
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


if __name__ == "__main__":
    if sys.argv[1:3] == ["child", "simulate"]:
        _simulate(sys.argv[3])
    else:
        sys.exit(main(sys.argv[1:]))
