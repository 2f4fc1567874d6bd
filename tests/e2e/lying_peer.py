"""A member that lies: ``python lying_peer.py run ...`` is ``peer run``, but what it publishes is 9.9 times its
adapter, which is within any bound by the readers' own norm."""

from __future__ import annotations

import dataclasses

from gossip.adapter import AdapterState
from gossip.methods.stage import RoundContext
from gossip.pipelines import Pipelines
from gossip.published import PublishedAdapter
from peer.cli import main

LIE = 9.9

_publish = Pipelines.publish


def publish_lie(pipelines: Pipelines, context: RoundContext) -> PublishedAdapter:
    """Publish a lie in place of the adapter."""
    lie = AdapterState(context.trained.spec, LIE * context.trained.flat)
    return _publish(pipelines, dataclasses.replace(context, trained=lie))


if __name__ == "__main__":
    Pipelines.publish = publish_lie  # type: ignore[method-assign]
    main()
