"""The gradient of each sequence of a batch by itself, at about the cost of their sum.

In place of a trained linear module's own backward pass stands one that keeps, for each sequence b, what the module adds
to its gradient: the sum over positions of (gradient of the output)_bt (input)_bt^T. For LoRA's factors that is a batch
of small matrices; the large weights between them are frozen and cost nothing more. (Book-keeping: Bu et al., arXiv
2210.00038, without its ghost norms, which pay for large weights alone; measured, scripts/bench.py dp.)

Sequences must not touch one another: a module that mixes the rows of a batch would hide one's gradient in another's.
``Recorder`` refuses what it can see of that, and ``check_apart`` tries the whole model on made-up text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gossip.errors import LocalError
from peer.training.local_steps import Parameters
from peer.training.lora_xs import CoreFactor

WAY_OUT = "use --adapter lora, rslora or lora-xs on linear modules (or no --dp-epsilon)"

Keep: TypeAlias = Callable[[str, Tensor], None]
"""Told of a parameter's gradient: its name in its module, and float[B, ...] of one part for each sequence."""


class Recorder:
    """Gradients of the sequences of one batch.

    Args:
        model: whose modules are watched while ``recording``.
        parameters: the trained ones, by the names that files use.

    Raises:
        LocalError: there is no rule for a module that holds one of them.
    """

    def __init__(self, model: torch.nn.Module, parameters: Parameters) -> None:
        names = {id(parameter): name for name, parameter in parameters.items()}
        self._parameters = parameters
        self._kept: dict[str, Tensor] = {}
        self._sequences = 0
        self._forwards: list[tuple[torch.nn.Module, Callable[[Tensor], Tensor]]] = []
        for path, module in model.named_modules():
            owned = {
                own: names[id(parameter)]
                for own, parameter in module.named_parameters(recurse=False)
                if id(parameter) in names
            }
            if not owned:
                continue
            if type(module) not in RULES:
                raise LocalError(
                    f"differential privacy needs the gradient of each row by itself, and there is no rule for {path} "
                    f"({type(module).__name__}): {WAY_OUT}"
                )
            self._forwards.append((module, RULES[type(module)](module, self._keeping(owned))))

    @contextmanager
    def recording(self, sequences: int) -> Iterator[None]:
        """Keep the gradients of one batch of so many sequences, whose backward pass happens meanwhile."""
        self._kept, self._sequences = {}, sequences
        try:
            for module, forward in self._forwards:
                module.__dict__["forward"] = forward  # before the class's own, and gone without a trace
            yield
        finally:
            for module, _ in self._forwards:
                del module.__dict__["forward"]

    def gradients(self, names: Sequence[str]) -> Tensor:
        """Return float[B, P]: the gradients of the sequences of the last batch, the parameters in this order.

        Raises:
            LocalError: a parameter was used where nobody watched.
        """
        for name in names:
            if self._parameters[name].grad is not None:
                raise LocalError(
                    f"differential privacy: {name} is used outside of its module, where the gradient of each row "
                    f"cannot be told apart: {WAY_OUT}"
                )
        parts = [self._kept.get(name, self._nothing(name)) for name in names]
        self._kept = {}
        return torch.cat([part.reshape(self._sequences, -1) for part in parts], dim=1)

    def _nothing(self, name: str) -> Tensor:
        parameter = self._parameters[name]
        return parameter.new_zeros(()).expand(self._sequences, parameter.numel())

    def _keeping(self, owned: Mapping[str, str]) -> Keep:
        def keep(own: str, gradient: Tensor) -> None:
            if gradient.shape[0] != self._sequences:
                raise LocalError(
                    f"differential privacy: a module of the model takes {gradient.shape[0]} rows where the batch has "
                    f"{self._sequences} sequences, so they cannot be told apart: use another model, or adapt other "
                    "modules (--lora-target-modules)"
                )
            name = owned[own]
            self._kept[name] = self._kept[name] + gradient if name in self._kept else gradient

        return keep


class _Linear(torch.autograd.Function):
    """x W^T + b, whose backward pass hands W's and b's gradients to ``keep``, a part for each sequence."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, keep: Keep) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.keep = keep
        return torch.nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        outs = gradient.reshape(gradient.shape[0], -1, gradient.shape[-1])
        if of_weight:
            ins = x.reshape(x.shape[0], -1, x.shape[-1])
            ctx.keep("weight", torch.bmm(outs.transpose(1, 2), ins))
        if of_bias:
            ctx.keep("bias", outs.sum(1))
        return gradient @ weight if of_x else None, None, None, None


def _linear(module: torch.nn.Module, keep: Keep) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        out: Tensor = _Linear.apply(x, module.weight, module.bias, keep)  # type: ignore[no-untyped-call]  # torch's own
        return out

    return forward


def _core(module: torch.nn.Module, keep: Keep) -> Callable[[Tensor], Tensor]:
    """Of lora-xs: x -> B0 R x, with R trained."""

    def forward(x: Tensor) -> Tensor:
        inner = _Linear.apply(x, module.core, None, lambda own, gradient: keep("core", gradient))  # type: ignore[no-untyped-call]
        return torch.nn.functional.linear(inner, module.basis)  # type: ignore[arg-type]  # a buffer

    return forward


RULES: dict[type[torch.nn.Module], Callable[[torch.nn.Module, Keep], Callable[[Tensor], Tensor]]] = {
    torch.nn.Linear: _linear,
    CoreFactor: _core,
}
"""Modules whose gradients can be told apart, with what takes the place of their forward pass. Of exactly these classes:
one derived from them may compute otherwise."""
