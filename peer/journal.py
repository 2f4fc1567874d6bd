"""What a peer tells its user: one line per event, for people or (``--json``) for programs, and the same in a file.

Every number a peer reports goes through here: the terminal, ``journal.jsonl`` in the home folder, and the testnet's
table all read the same events. The events and their fields are listed in docs/events.md.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

Formatter = Callable[[dict[str, Any]], str | None]


class Journal:
    """Writes events.

    Args:
        path: file to append JSON lines to, or None.
        as_json: print JSON lines instead of sentences.
        out: where to print.
    """

    def __init__(self, path: Path | None = None, *, as_json: bool = False, out: TextIO | None = None) -> None:
        self._file = path.open("a", encoding="utf-8") if path else None
        self._as_json = as_json
        self._out = out or sys.stdout

    def emit(self, event: str, **fields: Any) -> None:
        """Write one event; NaN and infinities become null, because JSON has none."""
        record = {"event": event, "at": round(time.time(), 3), **{k: _plain(v) for k, v in fields.items()}}
        line = json.dumps(record, ensure_ascii=False)
        if self._file and event not in TRANSIENT:
            self._file.write(line + "\n")
            self._file.flush()
        if self._as_json:
            print(line, file=self._out, flush=True)
        elif (text := SENTENCES[event](record)) is not None:
            print(text, file=self._out, flush=True)

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()


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
        f"{e['rows']} rows: {e['rows'] - e['rows_held_out']} to learn from ({e['sequences']} sequences), "
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
    return (
        f"round {e['round'] + 1}/{e['rounds']}: training loss {_loss(e['loss'])}, mixed with {mixed}{missing} "
        f"({e['collect_s']:.1f} s), in {megabytes(e['bytes_in'])}, out {megabytes(e['bytes_out'])}"
    )


def _eval(e: dict[str, Any]) -> str:
    whole = f", over all files {_loss(e['all'])}" if e["all"] is not None else ""
    return f"after round {e['round']}: held-out loss {_loss(e['own'])}{whole}"


def _loss(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"


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
    "finished": _finished,
}

TRANSIENT = {"preparing", "step"}
"""Not kept in the file: they are for a live view only."""
