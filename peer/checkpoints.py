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
from gossip.membership_limits import REMEMBERED
from gossip.settings import NodeSnapshot
from peer.durable import sync, write_atomically
from peer.network.catalogue import peer_of
from peer.training.frames import Export
from peer.training.lora_xs import export_tensors

ADAPTER_WEIGHTS = "adapter_model.safetensors"
TRAINER_STATE = "trainer.safetensors"
NODE_STATE = "node.json"
NODE_TENSORS = "node.safetensors"
MANIFEST = "MANIFEST.json"
PEERS = "peers.json"
PEERS_BYTES_MAX = 64 * 1024
"""So much of that file is read; it holds 16 addresses of at most 256 letters. Source: ours."""

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
        trainer_state: the training process's file: optimizer, generators and sampler.
    """

    path: Path
    round: int
    state: AdapterState
    snapshot: NodeSnapshot
    run: RunFields
    trainer_state: Path


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

    def remembered_peers(self) -> tuple[tuple[str, ...], list[str]]:
        """Return the addresses kept last, and for people what is wrong with the file: they are only hints."""
        path = self.path / PEERS
        try:
            with path.open("rb") as file:
                kept = json.loads(file.read(PEERS_BYTES_MAX))
        except FileNotFoundError:
            return (), []
        except (OSError, ValueError, RecursionError) as error:
            return (), [f"{path} is damaged ({error}): the peers that it held are not looked for"]
        entries = kept if isinstance(kept, list) else [kept]
        addresses = tuple(entry for entry in entries if isinstance(entry, str) and _is_address(entry))
        bad = len(entries) - len(addresses)
        return addresses[:REMEMBERED], [f"{path}: skipped {bad} entries that are no addresses"] if bad else []

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
    ) -> Checkpoint:
        """Complete the checkpoint begun for ``snapshot.round``, make it visible, and prune older ones to ``keep``.

        When this returns, the checkpoint survives kill -9 and power loss.

        Args:
            state: the adapter after mixing.
            snapshot: the node's own state.
            run: fields of the run manifest.
            export: how the adapter is written for others to load.
            keep: how many checkpoints to keep, at least 1.

        Raises:
            HomeError: the disk refused; earlier checkpoints are unharmed.
        """
        final = self._checkpoints / f"round-{snapshot.round:06d}"
        temporary = final.with_name(final.name + ".tmp")
        try:
            _complete(temporary, state, snapshot, run, export)
            if final.exists():  # a damaged one of the same round, put aside before
                shutil.rmtree(final)
            temporary.rename(final)
            sync(self._checkpoints)
            _export(self.adapter, state, export)
            for path in self._newest_first()[keep:]:
                shutil.rmtree(path)
        except OSError as error:
            raise HomeError(
                f"cannot write the checkpoint of round {snapshot.round} to {temporary}: {error.strerror}; "
                "earlier checkpoints are unharmed. Free some space and start again"
            ) from error
        return Checkpoint(final, snapshot.round, state, snapshot, run, final / TRAINER_STATE)

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

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is something to go on from."""
        return bool(self._newest_first())

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


def _is_address(text: str) -> bool:
    try:
        peer_of(text)
    except LocalError:
        return False
    return True


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
    return Checkpoint(path, snapshot.round, state, snapshot, node["run"], path / TRAINER_STATE)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
