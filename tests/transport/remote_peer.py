"""A libp2p peer in a process of its own, to be stopped and killed: prints its address, echoes until stdin closes."""

from __future__ import annotations

import sys

import trio
from networks import SETUPS, Network, echo


async def main() -> None:
    async with Network(SETUPS["tcp"]).start(int(sys.argv[1]), {"/test/echo/1": echo}) as transport:
        print(transport.addresses[0], flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


trio.run(main)
