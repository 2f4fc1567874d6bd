"""What running out of memory looks like, and what we end with when nothing helps against it."""

from __future__ import annotations

import torch

from gossip.errors import LocalError


class OutOfMemory(LocalError):
    """There is not enough memory for this model and these batches."""

    exit_code = 8


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception says that memory is short, on whatever device.

    A CPU's allocator raises a plain ``RuntimeError``; its words are those of torch's ``c10/core/impl/alloc_cpu.cpp``.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = str(error)
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in words or "not enough memory" in words
    )


def out_of_memory(error: BaseException) -> OutOfMemory:
    """Return what the user is told."""
    said = (str(error).splitlines() or ["no details"])[0]
    return OutOfMemory(
        f"out of memory: lower batch_size or max_length, or use a smaller model ({said}). The last complete checkpoint "
        "is unharmed."
    )


def release_cache() -> None:
    """Give back what torch keeps of freed memory on an accelerator."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
