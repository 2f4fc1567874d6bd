"""Tensors as the content of a file: the bytes of the library that reads them, and none of them copied."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save

from peer.durable import write_new
from peer.tensor_file import DTYPES, tensor_pieces


def test_the_bytes_are_the_librarys_for_all_types_shapes_and_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {f"{number}.{dtype}": torch.randn(3, 5).to(dtype) for number, dtype in enumerate(DTYPES)}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 4), "\u00e9 name": torch.arange(7)}
    tensors["turned"] = torch.randn(4, 6).T
    metadata = {"trainer": '{"a": 1}'}
    plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
    pieces = tensor_pieces(tensors, metadata)
    assert b"".join(pieces) == save(plain, metadata)
    write_new(tmp_path / "file", pieces)
    loaded = load_file(tmp_path / "file")
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_what_is_written_is_the_tensors_own_memory() -> None:
    tensor = torch.zeros(1000)
    pieces = tensor_pieces({"x": tensor}, {"format": "pt"})
    tensor.fill_(1.0)
    assert bytes(pieces[1]) == torch.ones(1000).numpy().tobytes()
