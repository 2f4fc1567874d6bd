"""Those who mean harm, a program of its own: ``python -m scripts.lab.chaos.hostile``.

    stranger CONDUCT COUNT ADDRESS...   floods HOST:PORTs, says nothing, or sends what is no message, until killed
    member BYZANTINE-AS-JSON FLAGS...   a ``peer run`` with these flags that cheats its readers (gossip/byzantine.py)

Strangers know an address and no secret; what they open is bounded by COUNT. They speak no libp2p: bytes are enough.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from gossip.fault_kinds import Byzantine

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gossip.byzantine import Cheater, Look

PAUSE_S = 0.05
"""Between two connections of one of the ``count``. Source: ours; 200 of them are 4,000 attempts a second."""
PREFACE = b"\x13/multistream/1.0.0\n\x07/noise\n"
GARBAGE_BYTES = 4096
Conduct = Callable[[trio.SocketStream], Coroutine[Any, Any, None]]


async def flood(stream: trio.SocketStream) -> None:
    """Begin a handshake, break it off, and come again at once."""
    await stream.send_all(PREFACE + os.urandom(64))


async def silent(stream: trio.SocketStream) -> None:
    """Say nothing until the other side has enough."""
    await stream.receive_some(1)


async def liar(stream: trio.SocketStream) -> None:
    """Send what is no message, and a length of 4 GiB."""
    await stream.send_all(PREFACE + b"\xff\xff\xff\xff" + os.urandom(GARBAGE_BYTES))
    await stream.receive_some(GARBAGE_BYTES)


CONDUCTS: dict[str, Conduct] = {"flood": flood, "silent": silent, "liar": liar}


async def be_stranger(conduct: str, count: str, *addresses: str) -> None:
    """Attack all addresses with ``count`` connections at a time, until killed."""
    targets = itertools.cycle(addresses)
    async with trio.open_nursery() as nursery:
        for _ in range(int(count)):
            nursery.start_soon(_attack, CONDUCTS[conduct], next(targets))


async def _attack(conduct: Conduct, address: str) -> None:
    host, _, port = address.partition(":")
    while True:
        try:
            async with await trio.open_tcp_stream(host, int(port)) as stream:
                await conduct(stream)
        except (OSError, trio.BrokenResourceError):
            await trio.lowlevel.checkpoint()  # refused or thrown out: nothing is lost, come again
        await trio.sleep(PAUSE_S)


def be_member(kind: str, *words: str) -> None:
    """Run a peer whose readers get what a ``Byzantine`` of these fields gives them."""
    from gossip.byzantine import Cheater
    from peer.cli import main

    cheat_readers(Cheater(Byzantine(**json.loads(kind)), "hostile", watch_node()))
    main(["run", *words])


def watch_node() -> Look:
    """Look over the shoulder of this process's node from now on: what it began with, and what it reads of others."""
    import numpy as np

    from gossip.byzantine import Surroundings, values_of
    from gossip.events import Action, Event, Fetched
    from gossip.node import GossipNode
    from gossip.published import PublishedAdapter

    begun: list[NDArray[np.float64]] = []
    seen: dict[str, NDArray[np.float64]] = {}
    handle = GossipNode.handle

    def watched(self: GossipNode, event: Event, now: float) -> list[Action]:
        if not begun:
            begun.append(self.initial.flat.numpy().astype(np.float64))
        if isinstance(event, Fetched) and event.published.codec == "float32":
            seen[event.peer] = values_of(event.published)
        return handle(self, event, now)

    def look(reader: str, published: PublishedAdapter) -> Surroundings:
        return Surroundings(begun[0] if begun else None, dict(seen))

    GossipNode.handle = watched  # type: ignore[method-assign] # as below
    return look


def cheat_readers(cheater: Cheater) -> None:
    """Let every publisher of this process send what a cheater answers."""
    from gossip.published import PublishedAdapter
    from peer.network.transport import Stream
    from peer.publisher import Publisher

    send = Publisher._send

    async def cheat(self: Publisher, stream: Stream, published: PublishedAdapter, offset: int) -> None:
        answer = cheater.answer(stream.peer, published)
        if answer is None:
            await trio.sleep_forever()
        else:
            await send(self, stream, answer, offset)

    Publisher._send = cheat  # type: ignore[method-assign] # it is not ours to be kind to


if __name__ == "__main__":
    role, *arguments = sys.argv[1:]
    if role == "member":
        be_member(*arguments)
    else:
        trio.run(partial(be_stranger, *arguments))
