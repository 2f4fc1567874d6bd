"""docs/events.md, written from the events' own declarations: ``python -m peer.journal_page > docs/events.md``.

The first paragraph of an event's docstring is its description, the text under a field is the field's. A test compares
the page with what this file writes.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

from peer.journal_events import EVENTS, JournalEvent
from peer.journal_lines import FIELD_TYPES

INTRODUCTION = """\
# Events of `peer run --json`

One JSON object per line on stdout, and (without the transient events) in `HOME/journal.jsonl`. Every event has
`event`, its name, and `at`, the time in seconds since 1970; its other fields are below, in their order. Losses are
nats per token (of a classification, per text); a number that is not finite is null.

This page is written from `peer/journal_events.py` by `python -m peer.journal_page > docs/events.md`.
"""

JSON_TYPES: Mapping[object, str] = {
    str: "text",
    Path: "text",
    int: "integer",
    float: "number",
    bool: "boolean",
}
"""Type of a field -> what it is in JSON; of containers, see ``json_type``."""


def page() -> str:
    """Return the text of docs/events.md."""
    return "\n".join([INTRODUCTION, *(_section(event) for event in EVENTS.values())])


def json_type(type_: object) -> str:
    """Return what a field of this type is in JSON, in words."""
    origin, parts = typing.get_origin(type_), typing.get_args(type_)
    if origin is types.UnionType:
        return " or ".join("null" if part is types.NoneType else json_type(part) for part in parts)
    if origin is Mapping:
        return f"object of {json_type(parts[1])}"
    if origin is tuple:
        if parts[-1] is ...:
            return f"list of {json_type(parts[0])}"
        return f"[{', '.join(map(json_type, parts))}]"
    return JSON_TYPES[type_]


def field_texts(event: type[JournalEvent]) -> dict[str, str]:
    """Return the text under each field in the source of an event; every field has one."""
    (declaration,) = ast.parse(textwrap.dedent(inspect.getsource(event))).body
    assert isinstance(declaration, ast.ClassDef)
    return dict(_documented(declaration))


def _documented(declaration: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, text in pairwise(declaration.body):
        match field, text:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(value=ast.Constant(value=str(said))):
                yield name, inspect.cleandoc(said)


def _section(event: type[JournalEvent]) -> str:
    description = inspect.cleandoc(event.__doc__ or "")
    transient = " Transient." if event.is_transient else ""
    texts = field_texts(event)
    rows = [
        f"| `{name}` | {json_type(type_)} | {texts[name]} |" for name, type_ in FIELD_TYPES[event].items()
    ]
    title = [f"## `{event.kind}`", "", f"{description}{transient}", ""]
    return "\n".join([*title, "| field | is | meaning |", "| --- | --- | --- |", *rows, ""])


if __name__ == "__main__":
    sys.stdout.write(page())
