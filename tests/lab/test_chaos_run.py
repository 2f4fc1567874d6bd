"""Chaos with real processes: one short run of everything together, the proxies, and those who mean harm."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import trio

from gossip.byzantine import Cheater
from gossip.fault_kinds import Byzantine, Partition, Restart, Strangers
from gossip.messages import Pull
from gossip.offers import RunShape
from gossip.published import PublishedAdapter
from peer.exchange import ADAPTER, Traffic, pull
from peer.network.memory import MemoryNetwork
from peer.network.transport import Stream
from peer.publisher import Publisher
from scripts.lab.chaos import hostile
from scripts.lab.chaos.judge import judge, rejoins
from scripts.lab.chaos.namespaces import missing
from scripts.lab.chaos.proxies import open_proxies
from scripts.lab.chaos.report import write_report
from scripts.lab.chaos.run import run_chaos
from scripts.lab.chaos.spec import read_spec

SPECS = Path(__file__).parents[2] / "scripts" / "lab" / "chaos" / "specs"


def test_real_peers_live_through_a_kill_a_partition_and_strangers(tmp_path: Path) -> None:
    spec = read_spec(SPECS / "short.toml")
    record = run_chaos(spec, tmp_path / "run", "auto", print)
    if not missing():
        assert "namespace" in record.backend
    kinds = {type(injection.kind) for _, _, injection in record.happened}
    assert kinds == {Restart, Partition, Strangers}
    (rejoin,), undone = rejoins(record)
    assert (rejoin.peer, undone) == ("p01", 0)
    figures = judge(record)
    # How long a start takes says how busy the machine is, so it is no matter of this test.
    missed = [figure for figure in figures if figure.holds is False and "first exchange" not in figure.name]
    assert not missed
    assert {life.exit_code for peer in record.peers.values() for life in peer.lives} == {-9, 143}
    write_report(record, None, figures, tmp_path / "report.html")
    assert "restart p01" in (tmp_path / "report.html").read_text()


SERVER = """
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listens", flush=True)
connection, _ = listener.accept()
print(connection.recv(100), flush=True)
connection.sendall(b"answer")
print("answered", flush=True)
connection.recv(1)
"""
CLIENT = """
import socket, sys
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
connection.sendall(b"question")
print(connection.recv(100), flush=True)
"""


def test_a_proxy_keeps_back_what_a_cut_way_carries_and_only_that() -> None:
    """The question goes from a to b; the answer waits until the way from b to a has healed."""

    def started(name: str, script: str, port: str) -> subprocess.Popen[str]:
        command = proxies.inside(name, [sys.executable, "-c", script, port])
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def port_of(address: str) -> str:
        return address.rpartition("/")[2]

    with open_proxies(["a", "b"], seed=0) as proxies:
        proxies.tell("cut", [("b", "a")])
        with started("b", SERVER, port_of(proxies.listen("b"))) as server:
            assert server.stdout
            assert server.stdout.readline() == "listens\n"
            with started("a", CLIENT, port_of(proxies.announced("b"))) as client:
                assert client.stdout
                assert server.stdout.readline() == "b'question'\n"
                assert server.stdout.readline() == "answered\n"
                assert client.poll() is None
                proxies.tell("heal", [("b", "a")])
                assert client.stdout.readline() == "b'answer'\n"
                assert client.wait() == 0
            assert server.wait() == 0


def test_a_member_that_cheats_tells_each_reader_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Publisher, "_send", Publisher._send)  # put back afterwards
    hostile.cheat_readers(Cheater(Byzantine(behavior="equivocate"), "seed"))
    run = bytes(16)
    got: dict[str, bytes] = {}

    shape = RunShape(1, {"round": [{16}], "merge": [{16}], "initial": [{16}]}, False)

    async def everybody(peer: str) -> bool:
        return True

    async def main() -> None:
        publisher, network = Publisher(run, shape, Traffic(), everybody, lambda offer: offer), MemoryNetwork()
        publisher.publish(PublishedAdapter(0, 1, "float32", bytes(range(1, 17))))

        async def serve(stream: Stream) -> None:
            await publisher.serve(stream)

        quiet = {"topic": "t", "on_announced": lambda *_: None, "on_connection": lambda *_: None}
        async with network.factory("server")(handlers={ADAPTER: serve}, **quiet) as server:
            for name in ("one", "two"):
                async with network.factory(name)(handlers={}, **quiet) as reader:
                    await reader.dial(server.addresses[0])
                    request = Pull(run, None, -1, 0.0)
                    published = await pull(reader, "server", request, shape, Traffic(), lambda offer: None)
                    got[name] = bytes(published.payload)

    trio.run(main)
    assert got["one"] != got["two"]


@pytest.mark.parametrize("conduct", hostile.CONDUCTS)
def test_strangers_come_again_and_again_whatever_is_done_to_them(conduct: str) -> None:
    """Each of three is thrown out, and is back; whoever says nothing first is thrown out all the same."""

    async def main() -> None:
        visits = 0
        enough = trio.Event()

        async def throw_out(stream: trio.SocketStream) -> None:
            nonlocal visits
            visits += 1
            if visits == 9:
                enough.set()
            await stream.aclose()

        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, throw_out, [listener])
            address = f"127.0.0.1:{listener.socket.getsockname()[1]}"
            nursery.start_soon(hostile.be_stranger, conduct, "3", address)
            with trio.fail_after(60):
                await enough.wait()
            nursery.cancel_scope.cancel()

    trio.run(main)
