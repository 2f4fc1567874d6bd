"""What a local peer costs in memory that it shares with nobody, before its first step.

Two peers run side by side, because only then can the kernel show what is shared (the base weights are mapped from the
file).
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from peer.child_python import child_environment, python_module
from scripts.benchmarks.rows import Row, at_most, row
from scripts.lab import corpus

PRIVATE_MB_MAX = 350.0
"""Target for a whole peer. Source: the project's own."""
WAIT_FOREVER = ("--wait-peers", "1", "--wait-peers-s", "600")
"""Neither gets to know the other, so that neither takes a step while we look."""


def rows(quick: bool = False) -> Iterator[Row]:
    """Start two peers up to the point where they wait for each other, and look at one; quick: with the tiny model."""
    model = "tiny" if quick else "smollm2-135m"
    with tempfile.TemporaryDirectory() as folder:
        files = list(corpus.write(Path(folder)).values())[:2]
        processes = [_start(Path(folder) / f"home{index}", file, model) for index, file in enumerate(files)]
        try:
            for process in processes:
                _until_listening(process)
            yield from _look(processes[0].pid)
        finally:
            for process in processes:
                process.kill()
                process.communicate()


def _start(home: Path, data: Path, model: str) -> subprocess.Popen[str]:
    command = python_module("peer", "run", "--json", "--home", str(home), "--data", str(data))
    command += ["--model", model, "--threads", "1", "--listen", "/ip4/127.0.0.1/tcp/0", *WAIT_FOREVER]
    command += ["--learning-rate", "2e-3"]  # no trial of rates
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=child_environment())


def _until_listening(process: subprocess.Popen[str]) -> None:
    assert process.stdout
    for line in process.stdout:
        if json.loads(line)["event"] == "listening":
            return
    raise RuntimeError("a peer of the bench ended early")


def _look(pid: int) -> Iterator[Row]:
    network = psutil.Process(pid)
    (training,) = network.children()
    sizes = {
        name: process.memory_full_info() for name, process in (("network", network), ("training", training))
    }
    for name, size in sizes.items():
        yield row(f"memory: {name} process, private", size.uss / 1e6, "MB")
    private = sum(size.uss for size in sizes.values()) / 1e6
    yield at_most("memory: a whole peer, private", private, "MB", PRIVATE_MB_MAX)
    shared_too = sizes["training"].rss / 1e6
    yield row("memory: training process, resident with shared weights", shared_too, "MB")
