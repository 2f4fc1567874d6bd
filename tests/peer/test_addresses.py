"""Names are resolved apart from everything else: slow ones hold up neither the node nor its end."""

from __future__ import annotations

import socket
import threading

import pytest
import trio
import trio.testing

from peer.network.addresses import RESOLVE_S, Resolver
from peer.network.identity import peer_id

PEER = peer_id(bytes(32))


class SlowResolver:
    """Stands in for the system's resolver: answers nobody until released."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.asked = 0
        self.all_busy = threading.Event()

    def getaddrinfo(self, host: str, port: int, kind: int, type: int) -> list[object]:
        self.asked += 1
        if self.asked == 4:
            self.all_busy.set()
        assert self.released.wait(60)
        return [(socket.AF_INET, type, 6, "", ("192.0.2.7", port))]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> SlowResolver:
    slow = SlowResolver()
    monkeypatch.setattr(socket, "getaddrinfo", slow.getaddrinfo)
    return slow


def test_slow_names_take_few_threads_and_none_of_the_nodes(slow: SlowResolver) -> None:
    """Two hundred slow names once took all threads, also those in which the node decides: 33 rounds became 1."""

    async def main() -> None:
        resolver = Resolver()
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for number in range(200):
                    nursery.start_soon(resolver.resolve, f"/dns4/slow-{number}.example.org/tcp/1/p2p/{PEER}")
                assert await trio.to_thread.run_sync(slow.all_busy.wait, 20)
                assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
                assert await trio.to_thread.run_sync(lambda: "the node decides") == "the node decides"
                nursery.cancel_scope.cancel()  # returns at once, although no name has been resolved
        assert slow.asked == 4
        slow.released.set()

    trio.run(main)


def test_a_name_that_is_never_resolved_fails_in_time(slow: SlowResolver) -> None:
    async def main() -> None:
        started = trio.current_time()
        with pytest.raises(trio.TooSlowError):
            await Resolver().resolve(f"/dns4/slow.example.org/tcp/1/p2p/{PEER}")
        assert trio.current_time() - started == pytest.approx(RESOLVE_S)
        slow.released.set()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.05))


def test_a_name_becomes_its_ips_and_an_ip_stays(slow: SlowResolver) -> None:
    async def main() -> None:
        slow.released.set()
        name, ip = f"/dns/example.org/tcp/5/p2p/{PEER}", f"/ip4/192.0.2.7/tcp/5/p2p/{PEER}"
        assert await Resolver().resolve(name) == [ip]
        assert await Resolver().resolve(ip) == [ip]
        assert slow.asked == 1

    trio.run(main)
