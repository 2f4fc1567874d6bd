"""The parent's side of the training process: start it, give it an adapter and a round, take the result.

Training lives in a process of its own (``worker.py``) because importing peft takes seconds and a step holds the
interpreter: either would stall the network loop. This file speaks frames over the child's pipes, all of it async; it
knows nothing of models or data, and of who trains there only the name. A child that dies is not our bug but an event:
``TrainerDied``.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
import trio

from gossip.adapter import AdapterSpec, AdapterState
from gossip.errors import LocalError
from gossip.events import TrainableFactors
from gossip.rollouts import Received, Rollout
from peer.child_python import child_environment, python_module
from peer.config import PeerConfig
from peer.training import trainers
from peer.training.frames import (
    PREFIX_BYTES,
    Evaluated,
    Export,
    OnStep,
    Progress,
    RateChoice,
    Ready,
    RowLosses,
    Step,
    Trained,
    decode_header,
    encode,
    header_length,
)

STOP_S = 5.0
"""How long a polite stop may take before the child is killed, seconds. Source: guess."""

STDERR_BYTES_MAX = 1 << 20
"""A child that has written more to its stderr loses what it wrote before: libraries warn without end. Source: guess."""
STDERR_LINES = 12
"""Last lines of the child's stderr that are shown when it dies."""


class TrainerDied(Exception):
    """The training process ended by itself: killed, out of memory, crashed.

    Attributes:
        reason: how, with its last words.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"the training process died: {reason}")
        self.reason = reason


class TrainerProcess:
    """A running training process. One call at a time; a cancelled or failed call kills the child.

    Raises (every method): ``LocalError`` that the child reported, with its ``exit_code`` (the child has
    ended then); ``TrainerDied`` when it ended in any other way.
    """

    def __init__(self, process: trio.Process, stderr: IO[bytes], rounds: int) -> None:
        assert process.stdin is not None and process.stdout is not None  # noqa: PT018 - both are pipes
        self._process = process
        self._commands, self._answers = process.stdin, process.stdout
        self._stderr = stderr
        self._rounds = rounds
        self._spec: AdapterSpec | None = None

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    @staticmethod
    async def start(
        config: PeerConfig, resume: Path | None = None, on_progress: Progress | None = None
    ) -> tuple[TrainerProcess, Ready]:
        """Start the child and wait until model, data and adapter are ready.

        Args:
            config: settings of the run; the child reads its data, model, adapter and training fields.
            resume: a file written through ``save_to``; optimizer, generators and sampler continue from it.
            on_progress: told of download, conversion and loading.

        Raises:
            LocalError: also for a trainer that does not exist.
        """
        entry_point = trainers.entry_point(trainers.trainer_name(config))
        stderr = _last_words_file()
        process = await trio.lowlevel.open_process(
            python_module("peer.training.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=_environment(config),
            start_new_session=True,  # Ctrl-C in the terminal is the parent's to judge
        )
        trainer = TrainerProcess(process, stderr, config.run.rounds)
        command: dict[str, str | None] = {"kind": "start", "trainer": entry_point}
        command |= {"config": config.to_json(), "resume": str(resume) if resume else None}
        header, payload = await trainer._exchange(command, (), {"ready"}, on_progress=on_progress)
        trainer._spec = _spec(header.pop("entries"))
        own_bytes = 4 * trainer._spec.size
        initial = _state(trainer._spec, payload[:own_bytes])
        export = _export(header.pop("export"), payload[own_bytes:])
        label_rows, notes = tuple(header.pop("label_rows")), tuple(header.pop("notes"))
        told: dict[str, Any] = {"label_rows": label_rows, "notes": notes, "rate": _rate(header.pop("rate"))}
        return trainer, Ready(initial=initial, export=export, **told, **header)

    async def train(
        self,
        state: AdapterState,
        round: int,
        save_to: Path | None = None,
        on_step: OnStep | None = None,
        trainable: TrainableFactors = "all",
        correction: torch.Tensor | None = None,
        rollouts: Sequence[Received] = (),
    ) -> Trained:
        """Take ``config.training.local_steps`` steps from ``state``; then save the trainer's own state to the file
        ``save_to``.

        ``round``, from 0, is where in the run they stand.
        ``save_to`` is complete on disk (replaced atomically, fsynced) when this returns. ``trainable``,
        ``correction`` (float32[P]) and ``rollouts``: see ``Trainer.train``.
        """
        command = {"kind": "train", "round": round, "save_to": str(save_to) if save_to else None}
        command |= {"rounds": self._rounds, "trainable": trainable, "correction": correction is not None}
        command |= {"rollouts": list(rollouts)}
        payload = (
            [state.flat] if correction is None else [state.flat, AdapterState(state.spec, correction).flat]
        )
        header, answer = await self._exchange(command, payload, {"trained"}, on_step=on_step)
        own = tuple(Rollout(*rollout) for rollout in header.pop("rollouts"))
        return Trained(state=self._adapter(answer), rollouts=own, **header)

    async def evaluate(self, state: AdapterState) -> Evaluated:
        """Measure ``state`` on the held-out rows."""
        header, _ = await self._exchange({"kind": "evaluate"}, [state.flat], {"evaluated"})
        return Evaluated(**header)

    async def probe(self, state: AdapterState, rows: int) -> float:
        """Return the loss of ``state`` on so many of the held-out rows, perhaps not finite."""
        header, _ = await self._exchange({"kind": "probe", "rows": rows}, [state.flat], {"probed"})
        loss: float = header["loss"]
        return loss

    async def row_losses(self, state: AdapterState) -> RowLosses | None:
        """Return the loss of ``state`` on single rows; None if the trainer cannot measure them."""
        header, _ = await self._exchange({"kind": "row_losses"}, [state.flat], {"row_losses"})
        losses: dict[str, list[float]] | None = header["losses"]
        if losses is None:
            return None
        return RowLosses(**{rows: tuple(values) for rows, values in losses.items()})

    async def stop(self) -> None:
        """End the child: ask, wait ``STOP_S`` seconds, kill.

        Never raises for a child that is gone already.
        """
        with trio.CancelScope(shield=True):
            with trio.move_on_after(STOP_S):
                try:
                    await self._commands.send_all(encode({"kind": "stop"}))
                    await self._commands.aclose()
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass  # it is gone, which is what we want
                await self._process.wait()
            await self._kill()

    async def _exchange(
        self,
        command: Mapping[str, Any],
        vectors: Sequence[torch.Tensor],
        answers: set[str],
        *,
        on_step: OnStep | None = None,
        on_progress: Progress | None = None,
    ) -> tuple[dict[str, Any], bytearray]:
        """Send one command with float32 vectors as payload; return header (less kind and payload_bytes) and payload of
        its answer.
        """
        try:
            try:
                await self._commands.send_all(encode(command, 4 * sum(map(len, vectors))))
                for vector in vectors:
                    await self._commands.send_all(vector.numpy().data.cast("B"))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # the child may have left an error frame behind: read it below
            while True:
                header, answer = await self._receive()
                kind = header.pop("kind")
                if kind in answers:
                    return header, answer
                if kind == "error":
                    error = LocalError(header["message"])
                    error.exit_code = header["exit_code"]
                    raise error
                if kind == "step" and on_step is not None:
                    on_step(Step(**header))
                elif kind == "progress" and on_progress is not None:
                    on_progress(header["stage"], header["done"])
        except BaseException:
            # After a cancel nobody knows where in a frame the pipes are, so the child is of no more use.
            with trio.CancelScope(shield=True):
                await self._kill()
            raise

    async def _receive(self) -> tuple[dict[str, Any], bytearray]:
        """Return the next frame's header (less payload_bytes) and payload."""
        length = header_length(await self._receive_exactly(PREFIX_BYTES))
        header = decode_header(await self._receive_exactly(length))
        payload = await self._receive_exactly(header.pop("payload_bytes"))
        if os.fstat(self._stderr.fileno()).st_size > STDERR_BYTES_MAX:
            self._stderr.truncate(0)
        return header, payload

    async def _receive_exactly(self, count: int) -> bytearray:
        taken = bytearray(count)  # filled in place: an adapter may be large
        came = 0
        while came < count:
            try:
                piece = await self._answers.receive_some(min(1 << 20, count - came))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                piece = b""
            if not piece:
                raise TrainerDied(await self._post_mortem())
            taken[came : came + len(piece)] = piece
            came += len(piece)
        return taken

    def _adapter(self, payload: bytearray) -> AdapterState:
        assert self._spec is not None
        return _state(self._spec, payload)

    async def _post_mortem(self) -> str:
        with trio.move_on_after(STOP_S):
            await self._process.wait()
        code = self._process.returncode
        if code is None:
            how = "it closed its pipe but did not end"
        elif code < 0:
            how = f"killed by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                how += " (out of memory, or someone killed it)"
        else:
            how = f"exit code {code}"
        if self._stderr.closed:
            return how
        self._stderr.seek(max(0, self._stderr.seek(0, os.SEEK_END) - 8192))
        words = self._stderr.read().decode(errors="replace").strip().splitlines()[-STDERR_LINES:]
        return "\n".join([how, *words]) if words else how

    async def _kill(self) -> None:
        self._process.kill()
        await self._process.wait()
        for pipe in (self._commands, self._answers):
            await pipe.aclose()
        self._stderr.close()


def _last_words_file() -> IO[bytes]:
    """Return a nameless file that children write to at its end, wherever that is after it was cut."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
    fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_APPEND)
    return file


def _spec(entries: Sequence[tuple[str, Sequence[int]]]) -> AdapterSpec:
    return AdapterSpec(tuple((name, tuple(shape)) for name, shape in entries))


def _state(spec: AdapterSpec, payload: bytearray) -> AdapterState:
    """Read float32[P] out of a payload that nobody else holds."""
    return AdapterState(spec, torch.frombuffer(payload, dtype=torch.float32) if payload else torch.empty(0))


def _rate(fields: dict[str, Any] | None) -> RateChoice | None:
    if fields is None:
        return None
    tried = tuple((rate, gain) for rate, gain in fields.pop("tried"))
    return RateChoice(**fields, tried=tried)


def _export(fields: dict[str, Any], payload: bytearray) -> Export:
    """Return what a frame says of the export; ``payload`` holds its frozen factors, if it has any."""
    frozen = None if fields["frozen"] is None else _state(_spec(fields["frozen"]), payload)
    return Export(fields["weights"], fields["files"], tuple(fields["copies"]), frozen)


def _environment(config: PeerConfig) -> dict[str, str]:
    """The child's environment: what must be set before torch is imported there."""
    threads = str(config.model.threads or os.cpu_count() or 1)
    return child_environment(
        OMP_NUM_THREADS=threads,
        MKL_NUM_THREADS=threads,
        TOKENIZERS_PARALLELISM="false",  # its thread pool would ignore the limit above
        MALLOC_ARENA_MAX="2",  # glibc's arenas per thread hold freed activations: tens of MB a peer
    )
