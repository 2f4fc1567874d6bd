"""What a peer tells goes to several readers, none of which can hold the peer up: the file, the terminal, a live view.

``Journal`` is the publisher. Each reader has a thread and a bounded queue of its own: a terminal that is held must hold
neither the network loop nor the file. What a reader loses (a full disk, a queue that ran over) is counted, and it is
told how much as soon as it reads again. The events themselves are in ``peer/journal_events.py`` and docs/events.md, the
file in ``peer/journal_file.py``.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import Protocol, TextIO

from peer.journal_events import JournalEvent, Note
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
            OSError: the event is lost, but the next one may be read.
        """
        ...

    def close(self) -> None:
        """Nothing else will come."""
        ...


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
        self._left_out = 0
        self._thread = threading.Thread(target=self._read_all, daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        # Beyond the limit nobody has been reading for a long time; what is put after the end is never read.
        if self._waiting.qsize() >= WAITING_MAX:
            self._left_out += 1
            return
        if self._left_out:
            self._waiting.put(_lost(record, self._left_out, "they came faster than they were read"))
            self._left_out = 0
        self._waiting.put(record)

    def end(self) -> None:
        self._waiting.put(None)

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def _read_all(self) -> None:
        try:
            self._read_until_the_end()
        except BrokenPipeError:
            pass  # a reader that has gone (peer run | head) ends the printing, not the peer
        finally:
            self._reader.close()

    def _read_until_the_end(self) -> None:
        lost, reason = 0, ""
        while record := self._waiting.get():
            try:
                if lost:
                    self._reader.read(_lost(record, lost, reason))
                    lost = 0
                self._reader.read(record)
            except BrokenPipeError:
                raise
            except OSError as error:
                lost, reason = lost + 1, error.strerror or str(error)


def _lost(record: Record, count: int, reason: str) -> Record:
    """Return what is told, just before ``record``, of events that a reader has lost."""
    return Record(record.at, Note(text=f"{count} events are missing here: {reason}"))
