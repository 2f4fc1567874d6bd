"""Whole peers with a trainer that theory can follow, in one process, for tests of what surrounds the node."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import trio

from gossip.adapter import AdapterSpec, AdapterState
from gossip.errors import Diverged
from gossip.rollouts import Received
from peer.checkpoints import Home
from peer.config import PeerConfig
from peer.journal import Journal
from peer.journal_events import JournalEvent, Listening
from peer.journal_lines import Record
from peer.leaving import Leaving
from peer.network.catalogue import transport_for
from peer.network.identity import peer_id
from peer.network.memory import MemoryNetwork
from peer.network.transport import TransportFactory
from peer.run_plan import plan_run
from peer.runtime import live
from peer.training.frames import Evaluated, Export, OnStep, Progress, Ready, RowLosses, Trained
from peer.training.process import TrainerDied

SPEC = AdapterSpec((("x", (4,)),))


class Quadratic:
    """A training process that pulls halfway toward its own optimum; may be told to die."""

    def __init__(
        self, optimum: float, deaths: list[int] | None = None, diverges: Container[int] = ()
    ) -> None:
        self.optimum = optimum
        self.diverges = diverges
        self.deaths = deaths or []
        self.starts = 0

    async def start(
        self, config: PeerConfig, resume: Path | None, progress: Progress
    ) -> tuple[Quadratic, Ready]:
        self.starts += 1
        await trio.lowlevel.checkpoint()
        manifest = dict.fromkeys(
            (
                "base_digest",
                "base_dtype",
                "tokenizer_digest",
                "adapter_digest",
                "adapter_spec",
                "adapter_frozen",
            ),
            "same",
        )
        base = json.dumps({"base_model_name_or_path": "none"})
        initial = AdapterState(SPEC, torch.zeros(4))
        self.export = Export("adapter_model.safetensors", {"adapter_config.json": base})
        return self, Ready(initial, manifest, "none", "cpu", "none", 2, 1, 1, 0, 0.0, self.export)

    async def train(
        self,
        state: AdapterState,
        round: int,
        save_to: Path | None,
        on_step: OnStep,
        trainable: str,
        correction: object,
        rollouts: Sequence[Received],
    ) -> Trained:
        await trio.lowlevel.checkpoint()
        if round in self.diverges:
            raise Diverged("the loss is no number any more")
        if self.deaths and round == self.deaths[0]:
            self.deaths.pop(0)
            raise TrainerDied("killed by SIGKILL")
        if save_to is not None:
            save_to.write_bytes(b"state")
        return Trained(AdapterState(SPEC, (state.flat + self.optimum) / 2), 0.0, 1, 1, 1, 0.0)

    async def evaluate(self, state: AdapterState) -> Evaluated:
        await trio.lowlevel.checkpoint()
        return Evaluated(float(state.flat.mean()), None, {})

    async def probe(self, state: AdapterState, rows: int) -> float:
        await trio.lowlevel.checkpoint()
        return 100.0 + float((state.flat - self.optimum).square().mean())

    async def row_losses(self, state: AdapterState) -> RowLosses | None:
        await trio.lowlevel.checkpoint()
        return None

    async def stop(self) -> None:
        await trio.lowlevel.checkpoint()


Told = TypeVar("Told", bound=JournalEvent)


class Heard:
    """A reader of the journal: what a peer has told so far. It is read in a thread of its own."""

    def __init__(self) -> None:
        self.events: list[JournalEvent] = []
        self._token = trio.lowlevel.current_trio_token()
        self._more = trio.Event()

    def read(self, record: Record) -> None:
        self._token.run_sync_soon(self._take, record.event)

    def close(self) -> None:
        pass

    async def first(self, is_it: Callable[[JournalEvent], bool]) -> JournalEvent:
        """Return the first event of which this is true, once it has been told."""
        while True:
            for event in self.events:
                if is_it(event):
                    return event
            await self._more.wait()

    def _take(self, event: JournalEvent) -> None:
        self.events.append(event)
        self._more.set()
        self._more = trio.Event()


class Running:
    """A peer of the test and what it has told."""

    def __init__(self, seed: int, home: Home, optimum: float, **settings: Any) -> None:
        self.key = bytes([seed]) * 32
        self.id = peer_id(self.key)
        self.heard = Heard()
        self.trainer = Quadratic(optimum, settings.pop("deaths", None), settings.pop("diverges", ()))
        defaults: dict[str, Any] = {"rounds": 12, "topology": "complete", "eval_every": 100, "merge": "none"}
        self.config = PeerConfig.of(**(defaults | {"name": f"p{seed}"} | settings))
        self.home = home
        self.journal = Journal(self.heard)
        self.leaving = Leaving(self.journal)

    async def run(self, factory: TransportFactory) -> None:
        plan = plan_run(self.config)
        try:
            await live(plan, self.home, self.key, factory, self.journal, self.trainer.start, self.leaving)
        finally:
            with trio.CancelScope(shield=True):  # what the reader got before the end is then in ``heard``
                await trio.to_thread.run_sync(self.journal.close)

    def events(self, kind: type[Told]) -> list[Told]:
        return [event for event in self.heard.events if isinstance(event, kind)]

    async def addresses(self) -> tuple[str, ...]:
        """Return where the peer listens, once it does."""
        event = await self.heard.first(lambda event: isinstance(event, Listening))
        assert isinstance(event, Listening)
        return event.addresses[:1]


def memory() -> Callable[[bytes], TransportFactory]:
    return MemoryNetwork().factory


def libp2p() -> Callable[[bytes], TransportFactory]:
    return lambda key: transport_for("/ip4/127.0.0.1/tcp/0", private_key=key)


def limited(body: Callable[[], Any]) -> None:
    async def main() -> None:
        with trio.fail_after(60):
            await body()

    trio.run(main)
