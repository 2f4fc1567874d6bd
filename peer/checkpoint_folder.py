"""What a checkpoint is, and the files that it consists of: written, and read with every digest verified.

When it becomes visible, and for how long it is kept, is decided in ``checkpoints.py``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from gossip.adapter import AdapterState
from gossip.settings import NodeSnapshot
from peer.durable import write_new
from peer.exported import tensors_file
from peer.training.frames import Export

ADAPTER_WEIGHTS = "adapter_model.safetensors"
TRAINER_STATE = "trainer.safetensors"
NODE_STATE = "node.json"
NODE_TENSORS = "node.safetensors"
HEALTHY = "healthy"
"""An empty file in a checkpoint whose adapter had a held-out loss that was in order."""
MANIFEST = "MANIFEST.json"
PARTS = frozenset({ADAPTER_WEIGHTS, TRAINER_STATE, NODE_STATE, NODE_TENSORS})
"""What every checkpoint has, beside its manifest."""

RunFields = Mapping[str, str | int]
"""``RunManifest.fields()``."""


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


def complete_folder(
    folder: Path,
    state: AdapterState,
    snapshot: NodeSnapshot,
    run: RunFields,
    export: Export,
    *,
    is_healthy: bool,
) -> None:
    """Write what is missing of a checkpoint, the manifest last; the arguments are those of ``Home.commit``."""
    node = snapshot._asdict()
    contents = {
        ADAPTER_WEIGHTS: tensors_file(dict(state.tensors())),
        **{name: text.encode() for name, text in export.files.items()},
        NODE_TENSORS: tensors_file(node.pop("tensors")),
        NODE_STATE: json.dumps({"run": run, "node": node}).encode(),
        **({HEALTHY: b""} if is_healthy else {}),
    }
    for name, content in contents.items():
        write_new(folder / name, content)
    digests = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
    write_new(folder / MANIFEST, json.dumps(digests, indent=1).encode())


def load_folder(path: Path) -> Checkpoint:
    """Return a checkpoint, all of which has the digests that it was written with.

    Raises:
        OSError, ValueError, KeyError, TypeError, SafetensorError: it is damaged, or cannot be read.
    """
    digests = dict(json.loads((path / MANIFEST).read_text()))
    if missing := sorted(PARTS - digests.keys()):
        raise ValueError(f"its {MANIFEST} does not name {', '.join(missing)}")
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
