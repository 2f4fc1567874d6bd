"""Events of the journal as lines of JSON, and back: what a program reads that has started a peer with ``--json``."""

from __future__ import annotations

import itertools
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from peer.journal_events import EVENTS, JournalEvent

FIELD_TYPES: Mapping[type[JournalEvent], Mapping[str, Any]] = {
    event: {field.name: typing.get_type_hints(event)[field.name] for field in fields(event)}
    for event in EVENTS.values()
}
"""The fields of every event with their types (which have no common type of their own)."""


@dataclass(frozen=True, slots=True)
class Record:
    """An event and when it was told, seconds since 1970."""

    at: float
    event: JournalEvent

    def json_line(self) -> str:
        """Return the record as one JSON object; numbers that are not finite are null, because JSON has none."""
        values = {name: _to_json(getattr(self.event, name)) for name in FIELD_TYPES[type(self.event)]}
        return json.dumps({"event": self.event.kind, "at": self.at, **values}, ensure_ascii=False)


def parse_record(line: str | bytes) -> Record:
    """Inverse of ``Record.json_line``, but that infinities have become NaN.

    Raises:
        ValueError: the line is no event of this version of the program.
    """
    try:
        values: dict[str, Any] = json.loads(line)
        event = EVENTS[values["event"]]
        parsed = {name: _from_json(type_, values[name]) for name, type_ in FIELD_TYPES[event].items()}
        return Record(values["at"], event(**parsed))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not an event of a peer's journal: {line[:200]!r}") from error


def _to_json(value: object) -> object:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Path():
            return str(value)
        case tuple():
            return [_to_json(item) for item in value]
        case Mapping():
            return {key: _to_json(item) for key, item in value.items()}
        case _:
            return value


def _from_json(type_: Any, value: Any) -> Any:
    """Return what ``_to_json`` made this JSON value of, given the field's type."""
    origin, parts = typing.get_origin(type_), typing.get_args(type_)
    if origin is types.UnionType:
        return None if value is None else _from_json(parts[0], value)
    if origin is Mapping:
        return {key: _from_json(parts[1], item) for key, item in value.items()}
    if origin is tuple:
        item_types = itertools.repeat(parts[0], len(value)) if parts[-1] is ... else parts
        return tuple(_from_json(part, item) for part, item in zip(item_types, value, strict=True))
    if type_ is float:
        return math.nan if value is None else float(value)
    return Path(value) if type_ is Path else value
