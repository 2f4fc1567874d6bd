"""What a local peer with SmolLM2-135M costs in memory that it shares with nobody, before its first step.

Two peers run side by side, because only then can the kernel show what is shared (the base weights are mapped from the
file). ``scripts/bench.py memory`` prints the figures.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import psutil

from peer.child_python import child_environment, python_module
from scripts.lab import corpus


def rows() -> list[dict[str, Any]]:
    """Start two peers up to the point where they wait for each other, and look at them."""
    with tempfile.TemporaryDirectory() as folder:
        files = list(corpus.write(Path(folder)).values())[:2]
        processes = [_start(Path(folder) / f"home{index}", file) for index, file in enumerate(files)]
        try:
            for process in processes:
                _until_listening(process)
            return _look(processes[0].pid)
        finally:
            for process in processes:
                process.kill()
                process.communicate()


def _start(home: Path, data: Path) -> subprocess.Popen[str]:
    command = python_module("peer", "run", "--json", "--home", str(home), "--data", str(data))
    command += [
        "--threads",
        "1",
        "--wait-peers",
        "1",
        "--wait-peers-s",
        "600",
        "--listen",
        "/ip4/127.0.0.1/tcp/0",
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=child_environment())


def _until_listening(process: subprocess.Popen[str]) -> None:
    assert process.stdout
    for line in process.stdout:
        if json.loads(line)["event"] == "listening":
            return
    raise RuntimeError("a peer of the bench ended early")


def _look(pid: int) -> list[dict[str, Any]]:
    network = psutil.Process(pid)
    (training,) = network.children()
    sizes = {
        name: process.memory_full_info() for name, process in (("network", network), ("training", training))
    }
    private = sum(size.uss for size in sizes.values()) / 1e6
    made = [_row(f"memory: {name} process, private", size.uss / 1e6) for name, size in sizes.items()]
    made.append({**_row("memory: a whole peer, private", private), "target": "<= 350", "met": private <= 350})
    made.append(_row("memory: training process, resident with shared weights", sizes["training"].rss / 1e6))
    return made


def _row(name: str, value: float) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": "MB", "target": "", "met": None}
