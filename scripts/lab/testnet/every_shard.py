"""The trainer of central training: it draws as often from every file as from any other, as peers do together.

Drawing from all sequences alike would favor files with much text, which neither gossip nor what is measured favors.
Differential privacy and canaries keep the usual trainer: the one draws in secret, the others are planted in all text.
"""

from __future__ import annotations

from collections.abc import Callable

from peer.config import PeerConfig
from peer.training.adapted_model import AdaptedModel
from peer.training.frames import Progress
from peer.training.local_trainer import LocalTrainer
from peer.training.sequences import BatchSampler, Tokens
from peer.training.trainers import Trainer


def make_trainer(config: PeerConfig, progress: Progress) -> Trainer:
    """Return a trainer that draws from all files of ``--data`` in turns."""
    if config.privacy.dp_epsilon or config.privacy.canaries:
        return LocalTrainer(config, progress=progress)
    model = AdaptedModel(config, progress)
    return LocalTrainer(config, model, progress, draw=draw_in_turns(config, model))


def draw_in_turns(config: PeerConfig, model: AdaptedModel) -> Callable[[], list[Tokens]]:
    """Return what gives the next batch of training sequences: one of every file, then again, in a new seeded order.

    Args:
        model: whose tokenizer there is to be; it is not changed.
    """
    alone = config.with_options(eval_data=(), batch_size=1, audit=False)
    files = [LocalTrainer(alone.with_options(data=(file,)), model) for file in config.data.data]
    turns = BatchSampler(len(files), config.training.batch_size, config.run.seed)
    return lambda: [sequence for index in turns.draw() for sequence in files[index].draw_batch()]
