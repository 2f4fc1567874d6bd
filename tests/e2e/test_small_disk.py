"""A disk that fills up under a running peer: real process, real file system, one of 8 MB in a namespace of its own."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peer.journal_lines import parse_record
from scripts.lab import corpus

DISK = "8m"
IN_NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
MOUNT = f'mount -t tmpfs -o size={DISK} tmpfs "$1"'


def may_mount(folder: Path) -> bool:
    if not shutil.which("unshare"):
        return False
    tried = subprocess.run([*IN_NAMESPACE, MOUNT, "sh", str(folder)], capture_output=True, check=False)
    return tried.returncode == 0


def events(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stdout
    for line in process.stdout:
        yield json.loads(line)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


@pytest.mark.timeout(200)
def test_a_disk_that_fills_up_stops_no_round_and_is_used_again_when_there_is_space(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    if not may_mount(folder):
        pytest.skip("this machine lets us mount no file system; tests/peer/test_saving.py has a made one")
    data = corpus.write(tmp_path, ("german",))["german"]
    command = [sys.executable, "-m", "peer", "run", "--json", "--home", str(folder / "home")]
    command += ["--data", str(data)]
    command += ["--model", "tiny", "--threads", "1", "--rounds", "100000", "--eval-every", "100000"]
    command += ["--learning-rate", "2e-3", "--listen", "/ip4/127.0.0.1/tcp/0"]
    mounting = [*IN_NAMESPACE, f'{MOUNT} && shift && exec "$@"', "sh", str(folder), *command]
    with subprocess.Popen(mounting, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            told = events(process)
            inside = Path(f"/proc/{process.pid}/root{folder}")
            next(event for event in told if event["event"] == "round" and event["round"] >= 2)
            with pytest.raises(OSError, match="No space"):
                fill(inside / "filler")
            refusal = next(event for event in told if event["event"] == "note" and "unsaved" in event["text"])
            unsaved = [event for event in (next(told) for _ in range(6)) if event["event"] == "round"]
            (inside / "filler").unlink()
            saved = next(event for event in told if event["event"] == "round" and event["saved"])
            *lines, _ = (inside / "home" / "journal.jsonl").read_text().split("\n")
            process.send_signal(signal.SIGINT)
            assert list(told)[-1]["event"] == "finished"
            assert process.wait() == 128 + signal.SIGINT
        finally:
            process.kill()
            assert process.stderr
            print(process.stderr.read())
    assert "No space left on device: free some space" in refusal["text"]
    assert len(unsaved) >= 2
    assert not any(event["saved"] for event in unsaved)
    assert saved["round"] > unsaved[-1]["round"]
    assert [parse_record(line) for line in lines]  # a torn one would be refused
