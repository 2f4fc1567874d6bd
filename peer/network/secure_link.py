"""Encrypted messages over a TCP socket, many of them per system call.

The form on the wire is that of a Noise transport message: two bytes of length, then ciphertext. The handshake that
made the two cipher functions is somebody else's work; so are streams, peers and addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import trio

MESSAGE_BYTES = 65535 - 16
"""Plaintext of one message: 65535 on the wire less 16 of authentication tag. Source: the Noise specification."""
BATCH_BYTES = 256 * 1024
"""Encrypted and sent in one system call; also what a small message waits behind. Source: our bench."""


class SecureLink:
    """Encrypted messages (2 bytes of length, then ciphertext) over a TCP socket, many per system call.

    Args:
        stream: connected socket; nothing else reads or writes it from now on.
        encrypt: plaintext of at most ``MESSAGE_BYTES`` -> ciphertext; called in sending order.
        decrypt: the reverse; raises for anything forged.
        early: plaintext that was read before we took over.
    """

    def __init__(
        self,
        stream: trio.SocketStream,
        encrypt: Callable[[bytes], bytes],
        decrypt: Callable[[memoryview], bytes],
        early: bytes = b"",
    ) -> None:
        self._socket = stream.socket
        self._encrypt = encrypt
        self._decrypt = decrypt
        self._early = early
        self._buffer = bytearray(BATCH_BYTES + 65537)
        self._filled = 0

    async def receive(self) -> list[bytes]:
        """Return the plaintext messages that have arrived, at least one; an empty list at the end of the connection."""
        if self._early:
            early, self._early = self._early, b""
            return [early]
        view = memoryview(self._buffer)
        while True:
            count = await self._socket.recv_into(view[self._filled :])
            if count == 0:
                return []
            self._filled += count
            if messages := self._take_complete(view):
                return messages

    def _take_complete(self, view: memoryview) -> list[bytes]:
        messages = []
        start, filled = 0, self._filled
        while filled - start >= 2:
            end = start + 2 + (self._buffer[start] << 8 | self._buffer[start + 1])
            if end > filled:
                break
            messages.append(self._decrypt(view[start + 2 : end]))
            start = end
        if start:
            self._buffer[: filled - start] = self._buffer[start:filled]
            self._filled = filled - start
        return messages

    async def send(self, messages: Iterable[bytes], stall_s: float) -> None:
        """Send all messages; raise ``trio.TooSlowError`` if the remote takes no byte for ``stall_s`` seconds."""
        wire = bytearray()
        for message in messages:
            sealed = self._encrypt(message)
            wire += len(sealed).to_bytes(2, "big")
            wire += sealed
        with memoryview(wire) as view:
            sent = 0
            while sent < len(view):
                with trio.fail_after(stall_s):
                    sent += await self._socket.send(view[sent:])

    def close(self) -> None:
        """Close the socket at once, even if a writer is stuck in it."""
        self._socket.close()
