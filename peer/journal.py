"""What a peer tells goes to several readers, none of which can hold the peer up: the file, the terminal, a live view.

``Journal`` is the publisher. Each reader has a thread and a bounded queue of its own: a terminal that is held must hold
neither the network loop nor the file. The events themselves are in ``peer/journal_events.py`` and docs/events.md.
"""

from __future__ import annotations

import queue
import threading
import time
from pathlib import Path
from typing import Protocol, TextIO

from peer.journal_events import JournalEvent
from peer.journal_lines import Record

WAITING_MAX = 10_000
"""Events kept for a reader that does not read; the newest are lost then. Source: guess, some 3 MB."""
CLOSE_S = 2.0
"""How long the end waits for such readers, seconds; leaving may take 10 s in all."""


class Reader(Protocol):
    """Takes events, in a thread of its own."""

    def read(self, record: Record) -> None:
        """Take the next event; may block.

        Raises:
            BrokenPipeError: nobody is there any more; nothing else will come then.
        """
        ...

    def close(self) -> None:
        """Nothing else will come."""
        ...


class JournalFile:
    """Appends events as JSON lines to a file that only its owner can read; transient events are not kept.

    Args:
        path: the file; its folder exists.
    """

    def __init__(self, path: Path) -> None:
        path.touch(mode=0o600)
        path.chmod(0o600)  # the line to join a closed group, which carries its secret, stands in it
        self._file = path.open("a", encoding="utf-8")

    def read(self, record: Record) -> None:
        """Write the event, so that it survives a crash of this process."""
        if not record.event.is_transient:
            self._file.write(record.json_line() + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class JsonPrinter:
    """Prints every event as a JSON line."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def read(self, record: Record) -> None:
        """Print the event's JSON line."""
        print(record.json_line(), file=self._out, flush=True)

    def close(self) -> None:
        """Leave ``out`` open: it is not ours."""


class SentencePrinter:
    """Prints every event that has a sentence for people."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def read(self, record: Record) -> None:
        """Print the event's sentence."""
        sentence = record.event.sentence()
        if sentence is not None:
            print(sentence, file=self._out, flush=True)

    def close(self) -> None:
        """Leave ``out`` open: it is not ours."""


class Journal:
    """Takes what a peer tells to whoever reads it."""

    def __init__(self, *readers: Reader) -> None:
        self._subscriptions: list[_Subscription] = []
        for reader in readers:
            self.subscribe(reader)

    def subscribe(self, reader: Reader) -> None:
        """Let ``reader`` have every event from now on."""
        self._subscriptions.append(_Subscription(reader))

    def emit(self, event: JournalEvent) -> None:
        """Tell an event to every reader. Never blocks, never raises."""
        record = Record(round(time.time(), 3), event)
        for subscription in self._subscriptions:
            subscription.put(record)

    def close(self) -> None:
        """Let the readers have what is left, waiting at most ``CLOSE_S`` for all of them."""
        for subscription in self._subscriptions:
            subscription.end()
        until = time.monotonic() + CLOSE_S
        for subscription in self._subscriptions:
            subscription.join(max(0.0, until - time.monotonic()))


class _Subscription:
    """One reader, its queue and its thread, which ends with the process if the reader is stuck."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._waiting: queue.SimpleQueue[Record | None] = queue.SimpleQueue()  # None: the end
        self._thread = threading.Thread(target=self._read_all, daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        # Beyond the limit nobody has been reading for a long time; what is put after the end is never read.
        if self._waiting.qsize() < WAITING_MAX:
            self._waiting.put(record)

    def end(self) -> None:
        self._waiting.put(None)

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def _read_all(self) -> None:
        try:
            while record := self._waiting.get():
                self._reader.read(record)
        except BrokenPipeError:
            pass  # a reader that has gone (peer run | head) ends the printing, not the peer
        finally:
            self._reader.close()
