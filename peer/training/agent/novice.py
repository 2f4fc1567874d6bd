"""The alias ``novice``: a byte-level Llama of 0.1 million parameters that answers some questions right, and most wrong.

It is briefly taught by right answers to the questions of four environments. Who learns by trial must be right now and
then, and learns from others only what it has some beginnings of. Everything is seeded and runs on one thread: the same
machine makes the same bytes.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from pathlib import Path

from peer.training.agent.environment import HELD_OUT_EVERY, INDICES
from peer.training.agent.strings import STRINGS, solution
from peer.training.frames import Progress
from peer.training.libraries import Tokenizer
from peer.training.schedules import factor
from peer.training.sequences import Tokens, collate
from peer.training.tiny_model import byte_tokenizer, fresh_model

TAUGHT = ("reverse", "sort", "shift", "swap")
"""What it is taught: the demo's skills."""

STEPS = 400
BATCH = 32
LEARNING_RATE = 4e-3
WARMUP = 50


def make(folder: Path, progress: Progress) -> None:
    """Write model and tokenizer into ``folder``; the same bytes each time on one machine."""
    teach(folder, progress, TAUGHT, STEPS)


def teach(folder: Path, progress: Progress, taught: Sequence[str], steps: int, seed: int = 0) -> None:
    """Write a model that has been taught some environments of ``strings.py`` for so many steps, and its tokenizer."""
    import torch

    torch.set_num_threads(1)
    tokenizer = byte_tokenizer()
    model = fresh_model(tokenizer, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    draw = random.Random(seed)
    for step in range(steps):
        if step % 25 == 0:
            progress("convert", step / steps)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * factor("linear", WARMUP, step, steps)
        batch = collate(_rows(draw, taught, tokenizer), tokenizer.pad_token_id or 0)
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    progress("save", None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _rows(draw: random.Random, taught: Sequence[str], tokenizer: Tokenizer) -> list[Tokens]:
    """Return a batch of questions with right answers."""
    end = tokenizer.eos_token_id
    assert end is not None, "byte_tokenizer has one"
    rows = []
    for name in draw.choices(taught, k=BATCH):
        environment = next(one for one in STRINGS if one.name == name)
        index = HELD_OUT_EVERY * draw.randrange(INDICES // HELD_OUT_EVERY) + 1
        question = tokenizer(environment.prompt(index))["input_ids"]
        answer = tokenizer(solution(environment, index))["input_ids"]
        rows.append(Tokens(array("i", [*question, *answer, end]), prompt=len(question)))
    return rows
