"""Our masks, as the streams use them: what others get of ours, and what they are told so that their sums can be read.

One thing at a time, in a thread: masking takes milliseconds for each million values. What may be told to whom is
decided in ``gossip/masked_sums.py``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from gossip.errors import RemoteError
from gossip.masked_sums import MaskingPublisher
from gossip.messages import MaskKey, MaskKeyQuery, Message, Refusal, SumAgreed, SumProposal, SumSigned
from gossip.published import PublishedAdapter
from gossip.roster import Rows
from peer.exchange import Traffic, receive_question, send_message
from peer.mask_keys import MaskSecrets
from peer.network.transport import Stream


class Masks:
    """What masks a peer's payloads in one life.

    Args:
        run: fingerprint of our run.
        roster: digest of roster and W.
        rows: everybody's rows of W.
        secrets: our keys of this life.
    """

    def __init__(self, run: bytes, roster: bytes, rows: Rows, secrets: MaskSecrets) -> None:
        self.run, self.roster, self.rows, self.secrets = run, roster, rows, secrets
        self._publisher = MaskingPublisher(run, roster, rows, secrets)
        self._lock = trio.Lock()

    async def masked(
        self, reader: str, published: PublishedAdapter, keys: tuple[MaskKey, ...]
    ) -> PublishedAdapter:
        """Return what a reader gets of an adapter of ours; see ``MaskingPublisher.masked``."""
        async with self._lock:
            return await trio.to_thread.run_sync(self._publisher.masked, reader, published, keys)

    async def serve(
        self, stream: Stream, is_welcome: Callable[[str], Awaitable[bool]], traffic: Traffic
    ) -> None:
        """Answer a question about masks.

        Args:
            is_welcome: see ``Publisher``.

        Raises:
            RemoteError: what came was no such question.
            Unreachable: the reader went away.
        """
        counted = Traffic()
        try:
            question = await receive_question(stream, counted)
            if not await is_welcome(stream.peer):
                answer: Message = Refusal("hello", "exchange a hello of this run first")
            else:
                answer = await self._answer(stream.peer, question)
            await send_message(stream, answer, counted)
            await stream.finish()
        finally:
            traffic.add_of_masks(counted)

    async def _answer(self, reader: str, question: Message) -> Message:
        if not isinstance(question, MaskKeyQuery | SumProposal | SumSigned):
            raise RemoteError("malformed", "a question about masks was expected")
        if question.run != self.run:
            return Refusal("run", "this peer takes part in another run")
        try:
            match question:
                case MaskKeyQuery():
                    return self.secrets.key
                case SumProposal():
                    async with self._lock:
                        return SumAgreed(self._publisher.agree(reader, question))
                case SumSigned():
                    async with self._lock:
                        return self._publisher.reveal(reader, question)
        except RemoteError as error:
            return Refusal("mask", error.detail)
