"""What a checkpoint's folder holds, written and read; a manifest with SHA-256 of each file tells damage.

Tensors are safetensors, all else JSON: nothing is pickled. When a folder is written, which ones are kept and what to
do about a damaged one, ``peer/checkpoints.py`` says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from gossip.adapter import AdapterState
from gossip.errors import LocalError
from gossip.settings import NodeSnapshot
from peer.durable import Content, remove_file, write_atomically, write_new
from peer.exported import tensors_file
from peer.training.frames import Export

ADAPTER_WEIGHTS = "adapter_model.safetensors"
TRAINER_STATE = "trainer.safetensors"
NODE_STATE = "node.json"
NODE_TENSORS = "node.safetensors"
MANIFEST = "MANIFEST.json"
PARTS = frozenset({ADAPTER_WEIGHTS, NODE_STATE, NODE_TENSORS})
"""What every checkpoint has, beside its manifest."""
HEALTHY = "healthy"
"""An empty file in a checkpoint whose adapter had a held-out loss that was in order."""

RunFields = Mapping[str, str | int]
"""``RunManifest.fields()``."""


class OtherVersion(LocalError):
    """A whole checkpoint that this version of the program cannot read."""

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


def complete(
    folder: Path, state: AdapterState, snapshot: NodeSnapshot, run: RunFields, export: Export
) -> None:
    """Write what is missing of a checkpoint, the manifest last; nothing of it need be on the disk when this returns.

    Raises:
        OSError: the disk refused.
    """
    node = snapshot._asdict()
    contents: dict[str, Content] = {
        ADAPTER_WEIGHTS: tensors_file(dict(state.tensors())),
        **{name: text.encode() for name, text in export.files.items()},
        NODE_TENSORS: tensors_file(node.pop("tensors")),
        NODE_STATE: json.dumps({"run": run, "node": node}).encode(),
    }
    for name, content in contents.items():
        write_new(folder / name, content)
    digests = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
    write_new(folder / MANIFEST, json.dumps(digests, indent=1).encode())


def load(path: Path) -> Checkpoint:
    """Return a checkpoint after a look at every byte of it.

    Raises:
        OSError, ValueError: it is damaged.
        OtherVersion: it is whole, but was written by another version of the program.
    """
    _verify(path)
    try:
        node = json.loads((path / NODE_STATE).read_text())
        state = AdapterState.from_tensors(load_file(path / ADAPTER_WEIGHTS))
        snapshot = NodeSnapshot(**node["node"], tensors=load_file(path / NODE_TENSORS))
        return Checkpoint(path, snapshot.round, state, snapshot, node["run"], trainer_state_in(path))
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise OtherVersion(
            f"the checkpoint {path} is whole, but this version of the program cannot read it ({error}): go on with "
            "the version that wrote it, or start anew with another --home"
        ) from error


def forget_trainer(path: Path) -> None:
    """Remove the training process's file from a checkpoint; whatever a crash leaves of this is whole.

    Raises:
        OSError: the disk refused.
        ValueError: the manifest is damaged.
    """
    if trainer_state_in(path) is None:
        return
    digests = dict(json.loads((path / MANIFEST).read_text()))
    digests.pop(TRAINER_STATE, None)
    write_atomically(path / MANIFEST, json.dumps(digests, indent=1).encode())
    remove_file(path / TRAINER_STATE)


def trainer_state_in(path: Path) -> Path | None:
    """Return the training process's file in a checkpoint, if it has one."""
    file = path / TRAINER_STATE
    return file if file.exists() else None


def _verify(path: Path) -> None:
    """Do nothing if all files of a checkpoint are there and have the digests they were written with.

    Raises:
        OSError, ValueError: they have not.
    """
    digests = dict(json.loads((path / MANIFEST).read_text()))
    if missing := sorted(PARTS - digests.keys()):
        raise ValueError(f"its {MANIFEST} does not name {', '.join(missing)}")
    for name, digest in digests.items():
        if _sha256(path / name) != digest:
            raise ValueError(f"{name} does not have the digest it was written with")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
