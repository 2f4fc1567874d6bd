"""One thread for numerical libraries: sums then do not depend on how many cores there are, and processes share them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

ONE_THREAD_ENVIRONMENT: Mapping[str, str] = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"
)
"""Environment variables that libraries read once, when they are first imported."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one torch thread inside a ``with``."""
    import torch  # not above: a worker sets its environment before torch and numpy are imported

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
