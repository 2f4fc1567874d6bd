"""Reading the weighted sum of a row whose publishers mask what they send: keys, payloads, agreement, unmasking.

Whoever is gone before its payload is here is made up for by the others. Whoever goes after that, or does not answer,
makes the sum unreadable: its row's weight stays with us for this round. What is signed and checked stands in
``gossip/masked_sums.py``; how a payload is pulled is given.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import TypeVar

import trio

from gossip import fixed_point
from gossip.errors import RemoteError
from gossip.events import FetchSum
from gossip.masked_sums import CODEC, Sum, key_statement, keys_digest, minimum, unmasked
from gossip.messages import (
    MaskKey,
    MaskKeyQuery,
    MaskSeeds,
    Message,
    Pull,
    Refusal,
    SumAgreed,
    Summand,
    SumProposal,
    SumSigned,
)
from gossip.neighbor import Neighbor
from gossip.published import PublishedAdapter
from peer.exchange import MASKS, Traffic, ask
from peer.masks import Masks
from peer.network.transport import Transport

PULL_SHARE = 0.6
"""Payloads are waited for during this share of the time that there is, so that three short questions have the rest.
Source: guess."""
Answer = TypeVar("Answer", bound=Message)
PullFrom = Callable[[str, Pull], Awaitable[PublishedAdapter]]
"""``(peer, what) -> payload``, or ``RemoteError``; its digest and its sender's signature have been verified."""


class MaskedReading:
    """One peer as the reader of its row's sum.

    Args:
        masks: our own, and what they are bound to.
        transport: reaches the publishers.
        pull: see ``PullFrom``.
        until_down: returns once a peer is not up.
        failed: takes what a publisher did not do, to be counted; never blocks.
        traffic: where bytes are counted.
    """

    def __init__(
        self,
        masks: Masks,
        transport: Transport,
        pull: PullFrom,
        until_down: Callable[[str], Awaitable[None]],
        failed: Callable[[str, RemoteError], None],
        traffic: Traffic,
    ) -> None:
        self._masks = masks
        self._me = masks.secrets.peer
        self._transport = transport
        self._pull = pull
        self._until_down = until_down
        self._failed = failed
        self._traffic = traffic
        self._keys: dict[str, MaskKey] = {}  # of the publishers' present lives, as far as we know
        self._patience: dict[str, Neighbor] = {}  # who is worth waiting for

    async def read(self, action: FetchSum) -> tuple[PublishedAdapter, float]:
        """Return the mean of what could be read, as an adapter of its own, and its weight in our row.

        Raises:
            RemoteError: ``"few"``: fewer payloads came than masks need. ``"late"``: the time is over. Else what kept
                the sum from being unmasked.
        """
        with trio.move_on_after(action.wait_s):
            return await self._read(action)
        raise RemoteError("late", f"the sum could not be read within {action.wait_s:g} s")

    async def _read(self, action: FetchSum) -> tuple[PublishedAdapter, float]:
        row = self._masks.rows(self._me, action.kind, action.round)
        keys = await self._ask_for_keys(row)
        masks, kind, round = self._masks, action.kind, action.round
        sum_ = Sum(masks.run, masks.roster, round, kind, self._me, keys_digest(keys))
        payloads = await self._pull_all(sum_, keys, PULL_SHARE * action.wait_s)
        if len(payloads) < minimum(len(row)):
            raise RemoteError("few", f"{len(payloads)} payloads, {minimum(len(row))} are needed")
        seeds = await self._agree(sum_, payloads)
        gone = frozenset(one.peer for one in keys) - payloads.keys()
        bytes_of = {peer: published.payload for peer, published in payloads.items()}
        total = await trio.to_thread.run_sync(unmasked, bytes_of, seeds, gone, masks.secrets)
        weight = sum(row[peer] for peer in payloads)
        age = min(published.age for published in payloads.values())
        mean = PublishedAdapter(round, age, "float32", fixed_point.mean_of(total, weight), kind=kind)
        if kind == "merge":  # whoever has read the same peers, ourselves included, ends with the same adapter
            weight /= weight + 1.0 - sum(row.values())
        return mean, weight

    # -- keys

    async def _ask_for_keys(self, row: Mapping[str, float]) -> tuple[MaskKey, ...]:
        """Return the keys of the row's publishers that can be reached, in order of peers."""
        unknown = [peer for peer in row if peer not in self._keys]
        question = MaskKeyQuery(self._masks.run)
        async with trio.open_nursery() as nursery:
            for peer in unknown:
                nursery.start_soon(self._ask_for_key, peer, question)
        keys = tuple(self._keys[peer] for peer in sorted(row) if peer in self._keys)
        if len(keys) < minimum(len(row)):
            raise RemoteError("few", f"{len(keys)} publishers can be reached, {minimum(len(row))} are needed")
        return keys

    async def _ask_for_key(self, peer: str, question: MaskKeyQuery) -> None:
        try:
            key = await self._ask(peer, question, MaskKey)
            self._check_key(peer, key)
            self._keys[peer] = key
        except RemoteError as error:
            self._failed(peer, error)

    def _check_key(self, peer: str, key: MaskKey) -> None:
        """Refuse a key with which other publishers would not mask: one bad key must not close the row."""
        masks = self._masks
        statement = key_statement(masks.run, masks.roster, peer, key.key)
        if key.peer != peer or not masks.secrets.has_signed(peer, key.signature, statement):
            raise RemoteError("malformed", "the key is not signed by its peer for this run and roster")
        try:
            masks.secrets.pair_seed(key.key, b"")
        except RemoteError as error:
            raise RemoteError("malformed", error.detail) from error

    # -- payloads

    async def _pull_all(
        self, sum_: Sum, keys: tuple[MaskKey, ...], wait_s: float
    ) -> dict[str, PublishedAdapter]:
        """Return the payloads that come in time; whoever has not delivered for long is not waited for."""
        payloads: dict[str, PublishedAdapter] = {}
        patience = {one.peer: self._patience.setdefault(one.peer, Neighbor()) for one in keys}
        waiting = {peer for peer in patience if patience[peer].is_waited_for}
        pull = Pull(sum_.run, sum_.round, -1, wait_s, base=sum_.base, kind=sum_.kind, keys=keys)
        with trio.move_on_after(wait_s):
            async with trio.open_nursery() as nursery:

                async def pull_from(peer: str) -> None:
                    if published := await self._pull_from(peer, pull):
                        payloads[peer] = published
                    waiting.discard(peer)
                    if not waiting:
                        nursery.cancel_scope.cancel()

                for peer in patience:
                    nursery.start_soon(pull_from, peer)
        for peer, neighbor in patience.items():
            if peer in payloads:
                neighbor.delivered()
            else:
                neighbor.missed()
                self._keys.pop(peer, None)  # it may have begun a new life, with another key
        return payloads

    async def _pull_from(self, peer: str, pull: Pull) -> PublishedAdapter | None:
        published: PublishedAdapter | None = None
        async with trio.open_nursery() as nursery:

            async def give_up_if_down() -> None:
                await self._until_down(peer)
                nursery.cancel_scope.cancel()

            nursery.start_soon(give_up_if_down)
            try:
                published = await self._pull(peer, pull)
                if (published.round, published.base, published.codec) != (pull.round, pull.base, CODEC):
                    published = None
                    raise RemoteError("malformed", "not the payload of the sum asked for")
            except RemoteError as error:
                self._failed(peer, error)
            nursery.cancel_scope.cancel()
        return published

    # -- unmasking

    async def _agree(self, sum_: Sum, payloads: Mapping[str, PublishedAdapter]) -> dict[str, MaskSeeds]:
        """Let all publishers of the sum sign it, and then reveal what takes their masks off it."""
        peers = sorted(payloads)
        summands = tuple(Summand(peer, payloads[peer].digest) for peer in peers)
        which = (sum_.run, sum_.round, sum_.kind, sum_.keys)
        agreed = await self._ask_all(peers, SumProposal(*which, summands), SumAgreed)
        statement = sum_.signed_of(summands)
        for peer in peers:
            if not self._masks.secrets.has_signed(peer, agreed[peer].signature, statement):
                error = RemoteError("malformed", "the sum is not signed by its publisher")
                self._failed(peer, error)
                raise error
        signatures = tuple(agreed[peer].signature for peer in peers)
        return await self._ask_all(peers, SumSigned(*which, signatures), MaskSeeds)

    async def _ask_all(
        self, peers: Iterable[str], question: Message, wanted: type[Answer]
    ) -> dict[str, Answer]:
        """Return everybody's answer to a question, or raise the first failure."""
        answers: dict[str, Answer] = {}
        failures: list[RemoteError] = []

        async def ask_one(peer: str, cancel: Callable[[], None]) -> None:
            try:
                answers[peer] = await self._ask(peer, question, wanted)
            except RemoteError as error:
                self._failed(peer, error)
                failures.append(error)
                cancel()

        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(partial(ask_one, peer, nursery.cancel_scope.cancel))
        if failures:
            raise failures[0]
        return answers

    async def _ask(self, peer: str, question: Message, wanted: type[Answer]) -> Answer:
        counted = Traffic()
        try:
            answer = await ask(self._transport, peer, question, counted, MASKS)
        finally:
            self._traffic.add_of_masks(counted)
        if isinstance(answer, Refusal):
            raise RemoteError(answer.reason, answer.detail)
        if not isinstance(answer, wanted):
            raise RemoteError("malformed", f"a {wanted.__name__} was expected")
        return answer
