"""Adapters of which only a small core travels: Delta W = (alpha / r) B0 R A0 with B0 and A0 taken from the base weight.

LoRA-XS (arXiv 2405.17604) trains nothing but R [r, r] between the leading singular vectors of the frozen weight. Peers
that hold the same base hold the same B0 and A0, so Delta W is linear in what they mix: the mean of cores is the mean of
updates (as Fed-SB says, arXiv 2502.15436), and a module costs r * r values. For others to load it, a core is written
as the ordinary LoRA pair A0, B0 R. This file knows torch, not peft.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import svd
from scipy.sparse.linalg import svds
from torch import Tensor

from gossip.adapter import AdapterState

CORE, DOWN, UP = ".lora_R.weight", ".lora_A.weight", ".lora_B.weight"
"""Endings of the names of R, A0 and B0 (or B0 R)."""

FULL_ABOVE = 0.25
"""Beyond this share of a weight's rank the whole SVD is computed: the iterative one would not be faster. Guess."""


class CoreFactor(torch.nn.Module):
    """Stands where peft has lora_B: x -> B0 R x, with R trained.

    Args:
        basis: float32[d, r], B0.
    """

    def __init__(self, basis: Tensor) -> None:
        super().__init__()
        self.basis: Tensor
        self.register_buffer("basis", basis, persistent=False)
        self.core = torch.nn.Parameter(torch.zeros(basis.shape[1], basis.shape[1]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(torch.nn.functional.linear(x, self.core), self.basis)

    @property
    def weight(self) -> Tensor:
        """B0 R, float32[d, r], as peft expects of a lora_B."""
        product: Tensor = self.basis @ self.core
        return product


def factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return (B0, A0), float32[d, rank] and float32[rank, k]: leading left and right singular vectors of ``weight``.

    Both are orthonormal but for their rounding. LoRA-XS multiplies B0 by the singular values. We do not: the largest
    differs 24-fold between modules of SmolLM2, and AdamW's equal steps of R would move modules as unequally. Our bench,
    15 steps of four rows on SmolLM2 from 4.88 nats, best of four or five learning rates: 4.43 without the values (at
    0.06), 4.54 with them (at 0.002; LoRA of the same rank, 120 times as many values: 4.17). On the tiny model, equal.

    They must come out alike to the bit on every machine, since their digest is compared. So they are computed in
    float64 (a second on a core for SmolLM2's 120 attention matrices: too little to be kept on disk), each vector's sign
    is such that the largest entry of A0's is positive, and they are rounded to float16: libraries differ by about
    1e-13, and hardly one of a million values lies that close to an edge of rounding, 1e-3 apart. Source: ours.

    Args:
        weight: [d, k] of any float dtype; rank at most min(d, k).
    """
    matrix = weight.detach().double().cpu().numpy()
    if rank > FULL_ABOVE * min(matrix.shape):
        left, _, right = svd(matrix, full_matrices=False)
        left, right = left[:, :rank], right[:rank]
    else:
        start = np.random.default_rng(0).standard_normal(min(matrix.shape))
        left, values, right = svds(matrix, k=rank, tol=0, v0=start)
        order = np.argsort(-values)
        left, right = left[:, order], right[order]
    largest = np.abs(right).argmax(axis=1)
    signs = np.sign(right[np.arange(rank), largest])
    rounded = (left * signs).astype(np.float16), (right * signs[:, None]).astype(np.float16)
    return torch.from_numpy(rounded[0]).float(), torch.from_numpy(rounded[1]).float()


def export_tensors(state: AdapterState, frozen: AdapterState | None) -> dict[str, Tensor]:
    """Return what an exported file holds: LoRA pairs in place of cores, all else as it is.

    Args:
        state: the adapter as it travels.
        frozen: ``frames.Export.frozen``: A0 and B0 of each core, under the names of lora_A and lora_B; None where the
            adapter has no cores.
    """
    if frozen is None:
        return dict(state.tensors())
    exported = dict(frozen.tensors())
    for name, values in state.tensors():
        if name.endswith(CORE):
            up = name.removesuffix(CORE) + UP
            exported[up] = exported[up] @ values
        else:
            exported[name] = values
    return exported
