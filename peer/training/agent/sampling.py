"""Tokens drawn from a model, many texts at a time: what follows each of them, until it ends.

Draws come from a generator that is given, on the CPU: the same on every device up to the rounding of probabilities.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from gossip.errors import Diverged
from peer.training.libraries import BaseModel


@torch.no_grad()
def continued(
    model: BaseModel,
    texts: Sequence[Sequence[int]],
    room: Sequence[int],
    ends: Collection[int],
    pad: int,
    generator: torch.Generator | None,
) -> list[list[int]]:
    """Return what a model writes after each text.

    Args:
        model: in evaluation mode.
        texts: each at least one token.
        room: of each, how many tokens may be written, at least 1.
        ends: tokens after one of which a text is over; it is the last of what is returned.
        pad: fills up shorter texts, on their left.
        generator: draws each token by its probability; None = always the most probable one.

    Raises:
        Diverged: the model's probabilities are no numbers.
    """
    device = next(model.parameters()).device
    longest = max(map(len, texts))
    rows = [[pad] * (longest - len(text)) + list(text) for text in texts]
    masks = [[0] * (longest - len(text)) + [1] * len(text) for text in texts]
    tokens, mask = torch.tensor(rows, device=device), torch.tensor(masks, device=device)
    places = (mask.cumsum(dim=1) - 1).clamp(min=0)
    written: list[list[int]] = [[] for _ in texts]
    going = set(range(len(texts)))
    cache = None
    for _ in range(max(room)):
        output = model(
            input_ids=tokens, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True
        )
        cache = output.past_key_values
        drawn = _drawn(output.logits[:, -1].float().cpu(), generator)
        for row in sorted(going):
            written[row].append(int(drawn[row]))
            if written[row][-1] in ends or len(written[row]) == room[row]:
                going.remove(row)
        if not going:
            break
        tokens = drawn[:, None].to(device)
        mask = torch.cat([mask, mask.new_ones(len(texts), 1)], dim=1)
        places = places[:, -1:] + 1
    return written


def _drawn(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return a token of each row of float32[B, vocabulary]."""
    if not torch.isfinite(logits).all():
        raise Diverged(
            "the model's predictions are not finite any more. Lower learning_rate, or train in float32."
        )
    if generator is None:
        return logits.argmax(dim=-1)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]
