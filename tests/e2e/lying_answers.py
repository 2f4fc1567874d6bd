"""A member that lies: ``python lying_answers.py run ...`` is ``peer run``, but its rollouts promise what is missing."""

from __future__ import annotations

import dataclasses

from gossip.events import Publish
from gossip.rollout_exchange import RolloutExchange
from peer.cli import main

_publish = RolloutExchange.publish


def publish_bomb(exchange: RolloutExchange, round: int, age: int) -> list[Publish]:
    """Publish a list of four thousand million items in place of the rollouts."""
    honest = _publish(exchange, round, age)
    bomb = b"\xdd\xff\xff\xff\xff" + round.to_bytes(8, "big")
    return [Publish(dataclasses.replace(one.published, payload=bomb)) for one in honest]


if __name__ == "__main__":
    RolloutExchange.publish = publish_bomb  # type: ignore[method-assign]
    main()
