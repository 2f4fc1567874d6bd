"""The training process: ``python -m peer.training.worker`` serves framed commands on its stdin and stdout.

Commands: start, train, evaluate, probe, row_losses, stop; answers: ready, progress, step, trained, evaluated, probed,
row_losses, error. It ends when its parent closes the pipe or dies, whatever it is doing. Heavy imports happen after
the pipes are safe, because a library that prints would corrupt them. It knows nothing of training itself: the parent
names who trains (``trainers.py``).
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import inspect
import io
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from gossip.adapter import AdapterSpec, AdapterState
    from peer.training.frames import Evaluated, Ready, Step, Trained
    from peer.training.trainers import Trainer

NICENESS = 5
"""Below the network loop, which must answer while we compute. Source: guess."""

Command = tuple[dict[str, Any], bytearray]
"""Header and payload of a frame."""


class Server:
    """Executes one command after another.

    Args:
        answers: the pipe to the parent.
        started: when this process began, by ``time.monotonic``.
    """

    def __init__(self, answers: IO[bytes], started: float):
        self._answers = answers
        self._started = started
        self._trainer: Trainer | None = None
        self._arguments: frozenset[str] = frozenset()  # of its ``train``
        self._spec: AdapterSpec | None = None

    def handle(self, command: dict[str, Any], payload: bytearray) -> None:
        """Execute one command and answer it.

        Raises:
            LocalError: as said by ``Trainer``.
        """
        match command:
            case {"kind": "start", "trainer": entry_point, "config": config, "resume": resume}:
                self._start(entry_point, config, resume)
            case {"kind": "train"}:
                self._train(command, payload)
            case {"kind": "evaluate"}:
                evaluated = self._running().evaluate(self._vectors(payload, 1)[0])
                give_back_memory()
                self._say("evaluated", evaluated)
            case {"kind": "probe", "rows": rows}:
                self._send(
                    {"kind": "probed", "loss": self._running().probe(self._vectors(payload, 1)[0], rows)}
                )
            case {"kind": "row_losses"}:
                self._send({"kind": "row_losses", "losses": self._row_losses(payload)})
                give_back_memory()
            case _:
                raise AssertionError(f"unknown command {command['kind']!r}")

    def fail(self, message: str, exit_code: int) -> None:
        """Tell the parent why we end."""
        self._send({"kind": "error", "message": message, "exit_code": exit_code})

    def _start(self, entry_point: str, config: str, resume: str | None) -> None:
        """Make the trainer that ``entry_point`` ("module:function") names, and tell the parent of it."""
        from peer.config import PeerConfig
        from peer.training import rates
        from peer.training.trainers import maker_at

        def progress(stage: str, done: float | None) -> None:
            self._send({"kind": "progress", "stage": stage, "done": done})

        progress("import", None)
        given = PeerConfig.from_json(config)
        trainer = maker_at(entry_point)(rates.with_rate(given), progress)
        if resume is not None:
            trainer.load(Path(resume))
        rate = rates.choose(trainer, given, progress)
        self._trainer = trainer
        # a user's own trainer may have a rate of its own, and no use for a position, or for rollouts
        self._arguments = frozenset(inspect.signature(trainer.train).parameters)
        gc.collect()
        gc.freeze()  # a million objects of imported libraries need no second look
        give_back_memory()
        ready = trainer.ready(time.monotonic() - self._started)
        ready = dataclasses.replace(ready, rate=rate, takes_rollouts="rollouts" in self._arguments)
        self._spec = ready.initial.spec
        frozen = ready.export.frozen
        self._send(_ready_header(ready), ready.initial, *([frozen] if frozen is not None else []))

    def _train(self, command: dict[str, Any], payload: bytearray) -> None:
        """Take a round's local steps; save the trainer's own state if told to, and send the adapter."""
        from gossip.rollouts import Received, Rollout
        from peer.training.schedules import Position

        trainer, save_to = self._running(), command["save_to"]
        state, correction = self._vectors(payload, 2 if command["correction"] else 1)
        came = (Received(sender, round, Rollout(*rollout)) for sender, round, rollout in command["rollouts"])
        extra: dict[str, Any] = {
            "position": Position(command["round"], command["rounds"]),
            "rollouts": tuple(came),
        }
        trained = trainer.train(
            state,
            command["trainable"],
            correction,
            lambda step: self._say("step", step),
            **{name: value for name, value in extra.items() if name in self._arguments},
        )
        if save_to is not None:
            trained = dataclasses.replace(trained, unsaved=_save(trainer, Path(save_to)))
        give_back_memory()
        self._say("trained", trained, trained.state)

    def _row_losses(self, payload: bytearray) -> dict[str, tuple[float, ...]] | None:
        """Return the fields of ``RowLosses``; None if this trainer cannot measure single rows."""
        from peer.training.trainers import MeasuresRows

        trainer = self._running()
        if not isinstance(trainer, MeasuresRows):
            return None
        return dataclasses.asdict(trainer.row_losses(self._vectors(payload, 1)[0]))

    def _running(self) -> Trainer:
        assert self._trainer is not None, "the first command must be start"
        return self._trainer

    def _vectors(self, payload: bytearray, count: int) -> tuple[AdapterState, Tensor | None]:
        """Return the adapter in a payload of ``count`` vectors, and the second vector if there is one."""
        import torch

        from gossip.adapter import AdapterState

        assert self._spec is not None, "the first command must be start"
        vectors = torch.frombuffer(payload, dtype=torch.float32).view(count, self._spec.size)
        return AdapterState(self._spec, vectors[0]), vectors[1] if count == 2 else None

    def _say(self, kind: str, outcome: Step | Trained | Evaluated, state: AdapterState | None = None) -> None:
        """Send a dataclass of ``frames.py``; its state, if it has one, goes as payload."""
        fields = {name: getattr(outcome, name) for name in outcome.__slots__ if name != "state"}
        self._send({"kind": kind, **fields}, *([state] if state is not None else []))

    def _send(self, header: dict[str, Any], *states: AdapterState) -> None:
        from peer.training.frames import encode

        self._answers.write(encode(header, sum(4 * state.spec.size for state in states)))
        for state in states:
            self._answers.write(state.flat.numpy().data.cast("B"))
        self._answers.flush()


def _save(trainer: Trainer, path: Path) -> str:
    """Save the trainer's state; return why it could not be saved (a full disk), empty if it was."""
    from gossip.errors import LocalError

    try:
        trainer.save(path)
    except LocalError as error:
        return str(error)
    return ""


def _ready_header(ready: Ready) -> dict[str, Any]:
    """Return what a frame says of ``ready``; its initial adapter and its frozen factors go as payload."""
    fields = {name: getattr(ready, name) for name in ready.__slots__ if name not in ("initial", "export")}
    fields["rate"] = dataclasses.asdict(ready.rate) if ready.rate else None
    export = {name: getattr(ready.export, name) for name in ready.export.__slots__}
    frozen = ready.export.frozen
    export["frozen"] = frozen.spec.entries if frozen is not None else None
    return {"kind": "ready", "entries": ready.initial.spec.entries, "export": export, **fields}


def give_back_memory() -> None:
    """Return freed heap to the system where libc can (glibc keeps hundreds of MB of activations otherwise)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def read_commands(pipe: io.BufferedReader, commands: queue.SimpleQueue[Command]) -> None:
    """Put each frame into the queue; at the pipe's end (our parent is gone) end the process at once."""
    from peer.training.frames import PREFIX_BYTES, decode_header, header_length

    while prefix := pipe.read(PREFIX_BYTES):
        header = decode_header(pipe.read(header_length(prefix)))
        payload = bytearray(header.pop("payload_bytes"))
        if pipe.readinto(payload) != len(payload):
            break
        commands.put((header, payload))
    os._exit(1)


def main() -> int:
    """Serve until told to stop."""
    started = time.monotonic()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to judge
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    pipe = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # from here on a print goes to stderr
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)

    from gossip.errors import LocalError
    from peer.training.memory import is_out_of_memory, out_of_memory

    commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
    threading.Thread(target=read_commands, args=(pipe, commands), daemon=True).start()
    server = Server(answers, started)
    while True:
        command, payload = commands.get()
        if command["kind"] == "stop":
            return 0
        try:
            server.handle(command, payload)
        except LocalError as error:
            server.fail(str(error), error.exit_code)
            return error.exit_code
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failure = out_of_memory(error)
            server.fail(str(failure), failure.exit_code)
            return failure.exit_code


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # nothing of ours is left to close, and tearing torch down takes a second
