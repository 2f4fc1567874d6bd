"""What a peer tells its user: one line per event, for people or (``--json``) for programs, and the same in a file.

Every number a peer reports goes through here: the terminal, ``journal.jsonl`` in the home folder, and the testnet's
table all read the same events. The events and their fields are listed in docs/events.md.
"""

from __future__ import annotations

import contextlib
import json
import math
import queue
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

WAITING_MAX = 10_000
"""Lines kept for a reader that does not read. Source: guess, some 3 MB."""
CLOSE_S = 2.0
"""How long the end waits for such a reader, seconds; leaving may take 10 s in all."""

Formatter = Callable[[dict[str, Any]], str | None]


class Journal:
    """Writes events, from a thread of its own: a terminal that is held must not hold the network loop.

    Args:
        path: file to append JSON lines to, or None.
        as_json: print JSON lines instead of sentences.
        out: where to print.
    """

    def __init__(self, path: Path | None = None, *, as_json: bool = False, out: TextIO | None = None) -> None:
        self._file = path.open("a", encoding="utf-8") if path else None
        self._as_json = as_json
        self._out = out or sys.stdout
        self._lines: queue.Queue[tuple[str | None, str | None] | None] = queue.Queue(WAITING_MAX)
        self._writer = threading.Thread(target=self._write_all, daemon=True)
        self._writer.start()

    def emit(self, event: str, **fields: Any) -> None:
        """Queue one event; NaN and infinities become null, because JSON has none. Never blocks, never raises."""
        record = {"event": event, "at": round(time.time(), 3), **{k: _plain(v) for k, v in fields.items()}}
        line = json.dumps(record, ensure_ascii=False)
        said = line if self._as_json else SENTENCES[event](record)
        # Beyond the limit nobody has been reading for a long time: the newest lines are then not kept.
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait((None if event in TRANSIENT else line, said))

    def close(self) -> None:
        """Write what is left, waiting ``CLOSE_S`` for whoever reads it, and close the file."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=CLOSE_S)
        self._writer.join(CLOSE_S)
        if self._file and not self._writer.is_alive():
            self._file.close()

    def _write_all(self) -> None:
        while lines := self._lines.get():
            kept, said = lines
            if self._file and kept is not None:
                self._file.write(kept + "\n")
                self._file.flush()
            # A reader that has gone (peer run | head) ends the printing, not the peer.
            with contextlib.suppress(BrokenPipeError):
                if said is not None:
                    print(said, file=self._out, flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def megabytes(count: float) -> str:
    """Return a byte count as people read it, e.g. ``"4.4 MB"``."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _ready(e: dict[str, Any]) -> str:
    return (
        f"base model {e['model']} ({e['dtype']}, {e['base_parameters'] / 1e6:.1f} M parameters, on {e['device']}), "
        f"{e['adapter']} adapter of {e['adapter_values']:,} values\n"
        f"{e['data_report']}\n"
        f"{e['rows'] + e['rows_held_out']} rows: {e['rows']} to learn from ({e['sequences']} sequences), "
        f"{e['rows_held_out']} held out"
    )


def _listening(e: dict[str, Any]) -> str:
    return "\n".join(
        [
            "listening on " + ", ".join(e["addresses"]),
            "Your text stays on this machine. What travels are adapter weights; to those who read them they can",
            "reveal training text, so run with people you would trust with it.",
            "A friend joins with:",
            f"    {e['join']}",
        ]
    )


def _round(e: dict[str, Any]) -> str:
    mixed = ", ".join(e["mixed"]) or "nobody"
    missing = "".join(f"; {peer} {reason}" for peer, reason in e["failed"])
    what = "final merge" if e["merging"] else f"training loss {_loss(e['loss'])}"
    return (
        f"round {e['round'] + 1}/{e['rounds']}: {what}, mixed with {mixed}{missing} "
        f"({e['collect_s']:.1f} s), in {megabytes(e['bytes_in'])}, out {megabytes(e['bytes_out'])}"
    )


def _eval(e: dict[str, Any]) -> str:
    whole = f", over all files {_loss(e['all'])}" if e["all"] is not None else ""
    right = f"; right labels {e['accuracy']:.1%}" if e["accuracy"] is not None else ""
    if right and e["accuracy_all"] is not None:
        right += f", over all files {e['accuracy_all']:.1%}"
    return f"after round {e['round']}: held-out loss {_loss(e['own'])}{whole}{right}"


def _loss(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"


def _personal(e: dict[str, Any]) -> str:
    return (
        f"on our own held-out rows {100 * e['own_share']:.0f} % of our own adapter and the rest of the common one does "
        f"best: loss {_loss(e['loss'])} (common alone {_loss(e['common_loss'])}, own alone {_loss(e['own_loss'])}); "
        f"it is in {e['adapter']}"
    )


def _finished(e: dict[str, Any]) -> str:
    done = f"all {e['round']} rounds are done" if e["complete"] else f"stopped after {e['round']} rounds"
    if e["load"] is None:
        return f"{done}; nothing has been learned yet"
    return f"{done}; the adapter is {e['adapter']}. Load it in plain peft with\n    {e['load']}"


def _preparing(e: dict[str, Any]) -> str | None:
    # Called many times a second with a share between 0 and 1: only the beginning of each stage is a sentence.
    return f"{STAGES.get(e['stage'], e['stage'])} ..." if not e["done"] else None


STAGES = {
    "import": "loading libraries",
    "download": "downloading the base model",
    "verify": "checking its digest",
    "convert": "converting it once",
    "save": "saving it",
    "load": "loading the base model",
}


SENTENCES: dict[str, Formatter] = {
    "start": lambda e: f"peer {e['name']} ({e['peer_id']}), home {e['home']}",
    "preparing": _preparing,
    "ready": _ready,
    "resumed": lambda e: f"resumed at round {e['round']} from {e['checkpoint']}",
    "listening": _listening,
    "note": lambda e: e["text"],
    "step": lambda e: None,
    "round": _round,
    "eval": _eval,
    "personal": _personal,
    "finished": _finished,
}

TRANSIENT = {"preparing", "step"}
"""Not kept in the file: they are for a live view only."""
