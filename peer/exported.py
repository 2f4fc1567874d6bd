"""The folder that plain peft or transformers load: what a checkpoint says, brought up to date whenever it is not.

It holds nothing of its own, so nothing about it need be remembered: what its files should be is computed and compared
with what they are. A crash between a checkpoint and this, a disk that was full, a file that was lost or damaged are all
mended by the next call. It knows no checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from gossip.adapter import AdapterState
from peer.durable import (
    PARTIAL,
    Content,
    make_folder,
    publish_folder,
    remove_file,
    write_atomically,
    write_new,
)
from peer.tensor_file import tensor_pieces
from peer.training.frames import Export
from peer.training.lora_xs import export_tensors

COMPARED_BYTES = 1 << 20
"""Bytes that are compared at a time; weights that have changed mostly differ in the first. Source: guess."""


def bring_up_to_date(folder: Path, state: AdapterState, export: Export) -> bool:
    """Let ``folder`` hold an adapter as others load it; return whether anything had to be written.

    Whoever reads the folder meanwhile, or after a crash, finds the adapter as it was or as it is: a new folder appears
    whole, and of an old one nothing but the weights changes in a run. Files that are not ours stay.

    Args:
        folder: where; the folder it lies in exists.
        state: the adapter.
        export: how it is written.

    Raises:
        OSError: the disk refused, or a file of the base model that goes along is not there.
    """
    contents: dict[str, Content] = {Path(source).name: Path(source).read_bytes() for source in export.copies}
    contents |= {name: text.encode() for name, text in export.files.items()}
    contents[export.weights] = tensors_file(export_tensors(state, export.frozen))
    if not folder.is_dir():
        temporary = folder.with_name(f".{folder.name}{PARTIAL}")
        make_folder(temporary)
        for name, content in contents.items():
            write_new(temporary / name, content)
        publish_folder(temporary, folder)
        return True
    stale = [name for name, content in contents.items() if not _holds(folder / name, content)]
    if any(name != export.weights for name in stale):
        # Of another run, or robbed of a file: without weights nobody takes what is there for either adapter.
        remove_file(folder / export.weights)
        stale = [name for name in stale if name != export.weights] + [export.weights]
    for name in stale:
        write_atomically(folder / name, contents[name])
    return bool(stale)


def tensors_file(tensors: Mapping[str, Tensor]) -> Content:
    """Return the content of a safetensors file as others write it."""
    return tensor_pieces(tensors, {"format": "pt"})


def _holds(path: Path, content: Content) -> bool:
    """Whether a file has just this content."""
    pieces = [memoryview(piece) for piece in ((content,) if isinstance(content, bytes) else content)]
    try:
        if path.stat().st_size != sum(map(len, pieces)):
            return False
        with path.open("rb") as file:
            return all(
                file.read(len(part)) == part
                for piece in pieces
                for start in range(0, len(piece), COMPARED_BYTES)
                if (part := piece[start : start + COMPARED_BYTES])
            )
    except OSError:
        return False  # not there, or not readable: to be written anew
