"""Making a folder in the user's cache once, whoever asks for it first: a model, or a corpus as tokens.

It is made under a file lock (several peers may start at once), in a temporary folder that is renamed when all of it is
on disk: a folder that exists is whole. A model is made by a process of its own, whose memory is given back and which
has one thread, so that sums come out alike on every machine size. It knows nothing of what is made.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from gossip.errors import LocalError
from peer.child_python import child_environment, python_module
from peer.durable import sync
from peer.training.frames import Progress


def silent(stage: str, done: float | None) -> None:
    """Report to nobody."""


def make_once(folder: Path, make: Callable[[Path], None], report: Progress, mode: int = 0o755) -> None:
    """Let exactly one process make ``folder``; the others wait and find it.

    Args:
        make: fills the empty folder that it is given.
        mode: of the folder; 0o700 keeps what is private from other users.

    Raises:
        LocalError: the cache cannot be written; and what ``make`` raises.
    """
    if folder.is_dir():
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LocalError(
            f"cannot write the cache {folder.parent}: {error}. Set GOSSIP_PEER_CACHE."
        ) from error
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        report("wait", None)
        lock.acquire()
    try:
        if folder.is_dir():
            return
        for stale in folder.parent.glob(f".{folder.name}.*.partial"):
            shutil.rmtree(stale, ignore_errors=True)  # its maker is dead: we hold the lock
        partial = Path(
            tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".partial"),
        )
        try:
            make(partial)
            partial.chmod(mode)
            for file in [*partial.iterdir(), partial]:
                sync(file)
            partial.rename(folder)
            sync(folder.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    finally:
        lock.release()


def make_in_process(
    module: str, arguments: Sequence[str], name: str, partial: Path, report: Progress
) -> None:
    """Run ``python -m <module> <arguments> <partial>``, which ends in ``serve``, passing its progress on.

    Args:
        name: of the model, for people.

    Raises:
        LocalError: it failed.
    """
    with (
        tempfile.TemporaryFile() as stderr,
        subprocess.Popen(
            python_module(module, *arguments, str(partial)),
            stdin=subprocess.PIPE,  # held open: the maker ends when we do
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=child_environment(OMP_NUM_THREADS="1"),  # one thread: the same sums on every machine size
            start_new_session=True,
        ) as maker,
    ):
        failure = None
        try:
            for line in maker.stdout or ():
                message = json.loads(line)
                failure = message.get("failure", failure)
                if "stage" in message:
                    report(message["stage"], message["done"])
            code = maker.wait()
        except BaseException:
            maker.kill()
            raise
        if failure is not None:
            raise LocalError(failure)
        if code != 0:
            stderr.seek(0)
            words = stderr.read().decode(errors="replace").strip().splitlines()[-8:]
            raise LocalError("\n".join([f"making the model {name} failed (exit code {code})", *words]))


def serve(partial: str, make: Callable[[Path, Progress], None]) -> int:
    """Fill a folder as the process that ``make_in_process`` starts; progress and a failure go to stdout as JSON lines.

    Returns:
        the exit code.
    """
    pipe = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not mix with our lines
    _end_with_parent()

    def report(stage: str, done: float | None) -> None:
        pipe.write(json.dumps({"stage": stage, "done": done}) + "\n")

    try:
        make(Path(partial), report)
    except LocalError as error:
        pipe.write(json.dumps({"failure": str(error)}) + "\n")
        return 2
    return 0


def _end_with_parent() -> None:
    """End this process as soon as the one that started it is gone (stdin is a pipe that it holds open)."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
