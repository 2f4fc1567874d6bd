"""What survives a crash: one folder per peer, locked by one process, with complete checkpoints or none.

A checkpoint is a folder that becomes visible by one rename after every byte of it has reached the disk; a manifest with
the SHA-256 of each file tells a good one from a damaged one. A checkpoint holds the adapter as it travels, and
``adapter/`` the newest as plain peft or transformers load it. Tensors are safetensors, all else JSON: nothing is
pickled.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from gossip.adapter import AdapterState
from gossip.errors import LocalError
from gossip.settings import NodeSnapshot
from peer.durable import sync, write_atomically
from peer.training.frames import Export
from peer.training.lora_xs import export_tensors

ADAPTER_WEIGHTS = "adapter_model.safetensors"
TRAINER_STATE = "trainer.safetensors"
NODE_STATE = "node.json"
NODE_TENSORS = "node.safetensors"
HEALTHY = "healthy"
"""An empty file in a checkpoint whose adapter had a held-out loss that was in order."""
MANIFEST = "MANIFEST.json"
PEERS = "peers.json"

RunFields = Mapping[str, str | int]
"""``RunManifest.fields()``."""


class HomeError(LocalError):
    """The home folder is in use, not writable, or holds no usable checkpoint."""

    exit_code = 7


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete, verified checkpoint.

    Args:
        path: its folder.
        round: rounds completed when it was made.
        state: the adapter after mixing.
        snapshot: the node's own state.
        run: fields of the run manifest under which it was made.
        trainer_state: the training process's file: optimizer, generators and sampler; None if training has come to
            nothing so far.
    """

    path: Path
    round: int
    state: AdapterState
    snapshot: NodeSnapshot
    run: RunFields
    trainer_state: Path | None


class Home:
    """A peer's folder. Use ``open_home``, which holds the lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.adapter = path / "adapter"
        self.journal = path / "journal.jsonl"
        self._checkpoints = path / "checkpoints"
        self._checkpoints.mkdir(exist_ok=True)
        for leftover in self._checkpoints.glob("*.tmp"):
            shutil.rmtree(leftover)  # of a process that was killed while writing: never complete, never used

    def remember_peers(self, addresses: Sequence[str]) -> None:
        """Keep addresses of the run's other peers: after a restart they may not know where we are, so we look."""
        write_atomically(self.path / PEERS, json.dumps(list(addresses)).encode())

    def remembered_peers(self) -> tuple[str, ...]:
        """Return the addresses kept last; nothing if there are none or the file is damaged (they are only hints)."""
        try:
            kept = json.loads((self.path / PEERS).read_text())
        except (FileNotFoundError, ValueError):
            return ()
        return tuple(address for address in kept if isinstance(address, str))

    def begin(self, round: int, trainer_state: Path | None = None) -> Path:
        """Return a fresh, invisible folder for the checkpoint after ``round`` rounds; the trainer writes into it.

        Args:
            trainer_state: the trainer's file of an earlier checkpoint, for a round in which it does nothing.
        """
        path = self._checkpoints / f"round-{round:06d}.tmp"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        if trainer_state is not None:
            os.link(trainer_state, path / TRAINER_STATE)  # files of checkpoints are never written again
        return path

    def commit(
        self,
        state: AdapterState,
        snapshot: NodeSnapshot,
        run: RunFields,
        export: Export,
        keep: int,
        is_healthy: bool = False,
    ) -> Checkpoint:
        """Complete the checkpoint begun for ``snapshot.round``, make it visible, and prune older ones to ``keep``.

        Besides those, the newest one is kept whose adapter was found in order.

        When this returns, the checkpoint survives kill -9 and power loss.

        Args:
            state: the adapter after mixing.
            snapshot: the node's own state.
            run: fields of the run manifest.
            export: how the adapter is written for others to load.
            keep: how many checkpoints to keep, at least 1.
            is_healthy: the adapter was found in order.

        Raises:
            HomeError: the disk refused; earlier checkpoints are unharmed.
        """
        final = self._checkpoints / f"round-{snapshot.round:06d}"
        temporary = final.with_name(final.name + ".tmp")
        try:
            if is_healthy:
                (temporary / HEALTHY).touch()
            _complete(temporary, state, snapshot, run, export)
            if final.exists():  # a damaged one of the same round, put aside before
                shutil.rmtree(final)
            temporary.rename(final)
            sync(self._checkpoints)
            _export(self.adapter, state, export)
            for path in self._superfluous(keep):
                shutil.rmtree(path)
        except OSError as error:
            raise HomeError(
                f"cannot write the checkpoint of round {snapshot.round} to {temporary}: {error.strerror}; "
                "earlier checkpoints are unharmed. Free some space and start again"
            ) from error
        return Checkpoint(final, snapshot.round, state, snapshot, run, _trainer_state(final))

    def export_personal(self, state: AdapterState, export: Export) -> Path:
        """Write our personal adapter to ``personal/`` and return the folder.

        Raises:
            HomeError: the disk refused.
        """
        try:
            _export(self.path / "personal", state, export)
        except OSError as error:
            raise HomeError(
                f"cannot write {self.path / 'personal'}: {error.strerror}; free some space"
            ) from error
        return self.path / "personal"

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """Return the newest checkpoint that is whole, and a line for each newer one that is not.

        Damaged ones are renamed to ``*.damaged`` and kept for inspection.

        Raises:
            HomeError: there are checkpoints, but none is whole.
        """
        complaints: list[str] = []
        for path in self._newest_first():
            try:
                return _load(path), complaints
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                aside = path.with_suffix(".damaged")
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
                complaints.append(f"checkpoint {path.name} is damaged ({error}); kept as {aside.name}")
        if complaints:
            raise HomeError(
                "; ".join([*complaints, "no whole checkpoint is left"]) + f" in {self._checkpoints}"
            )
        return None, []

    def healthy(self) -> AdapterState | None:
        """Return the adapter of the newest whole checkpoint that was found in order; None if there is none."""
        for path in self._newest_first():
            if (path / HEALTHY).exists():
                try:
                    return _load(path).state
                except (OSError, ValueError, KeyError, TypeError, SafetensorError):
                    continue  # damaged: an older one will do
        return None

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is something to go on from."""
        return bool(self._newest_first())

    def _superfluous(self, keep: int) -> list[Path]:
        """Return all checkpoints but the newest ``keep`` and the newest that was found in order."""
        paths = self._newest_first()
        healthy = [path for path in paths if (path / HEALTHY).exists()][:1]
        return [path for path in paths[keep:] if path not in healthy]

    def _newest_first(self) -> list[Path]:
        """Return the folders of checkpoints that were completed."""
        return sorted((path for path in self._checkpoints.glob("round-*") if not path.suffix), reverse=True)


@contextmanager
def open_home(path: Path) -> Iterator[Home]:
    """Create the folder if needed, lock it for this process, and yield it.

    Raises:
        HomeError: another process has it (its pid is named), or it cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise HomeError(
            f"cannot write to the home folder {path}: {error.strerror}; choose another --home"
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(lock, 32).decode(errors="replace").strip() or "unknown"
            raise HomeError(
                f"{path} is in use by process {pid}: stop that one, or give this peer another --home"
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield Home(path)
    finally:
        os.close(lock)  # releases it; so does any death of the process


def _complete(
    folder: Path, state: AdapterState, snapshot: NodeSnapshot, run: RunFields, export: Export
) -> None:
    """Write what is missing of a checkpoint, the manifest last, and bring all of it to the disk."""
    (folder / ADAPTER_WEIGHTS).write_bytes(_tensors_file(dict(state.tensors())))
    for name, text in export.files.items():
        (folder / name).write_text(text)
    node = snapshot._asdict()
    (folder / NODE_TENSORS).write_bytes(_tensors_file(node.pop("tensors")))
    (folder / NODE_STATE).write_text(json.dumps({"run": run, "node": node}))
    digests = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps(digests, indent=1))
    for path in folder.iterdir():
        sync(path)
    sync(folder)


def _export(folder: Path, state: AdapterState, export: Export) -> None:
    """Bring a folder up to date file by file; all but the weights never change in a run, so no mix is torn."""
    if not folder.exists():
        folder.mkdir()
        for source in export.copies:
            shutil.copy(source, folder)
    for name, text in export.files.items():
        write_atomically(folder / name, text.encode())
    write_atomically(folder / export.weights, _tensors_file(export_tensors(state, export.frozen)))


def _tensors_file(tensors: Mapping[str, Tensor]) -> bytes:
    contents: bytes = save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"format": "pt"})
    return contents


def _load(path: Path) -> Checkpoint:
    digests = json.loads((path / MANIFEST).read_text())
    for name, digest in digests.items():
        if _sha256(path / name) != digest:
            raise ValueError(f"{name} does not have the digest it was written with")
    node = json.loads((path / NODE_STATE).read_text())
    state = AdapterState.from_tensors(load_file(path / ADAPTER_WEIGHTS))
    snapshot = NodeSnapshot(**node["node"], tensors=load_file(path / NODE_TENSORS))
    return Checkpoint(path, snapshot.round, state, snapshot, node["run"], _trainer_state(path))


def _trainer_state(path: Path) -> Path | None:
    """Return the training process's file in a checkpoint, if it has one."""
    file = path / TRAINER_STATE
    return file if file.exists() else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
