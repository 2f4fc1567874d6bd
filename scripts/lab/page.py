"""Tables as text, Markdown and HTML, and one HTML page that holds its pictures, so that nothing is fetched for it.

A table is rows of cells, the first row its heading. It knows nothing of what is told.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence

Rows = Sequence[Sequence[str]]
"""Cells of a table, row by row, the heading first; rows are equally long."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid #ddd; padding: .25rem .7rem; text-align: right }
th:first-child, td:first-child { text-align: left }
img { max-width: 100% } pre { background: #f6f6f6; padding: 1rem; overflow: auto }"""
"""CSS of every page."""


def text_table(rows: Rows) -> list[str]:
    """Return rows as aligned lines."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def markdown_table(rows: Rows) -> list[str]:
    """Return rows as lines of Markdown, all columns but the first aligned to the right."""
    head, *body = ("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    return [head, "| --- |" + " ---: |" * (len(rows[0]) - 1), *body]


def html_table(rows: Rows) -> str:
    """Return rows as HTML."""

    def line(row: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in row)}</tr>\n"

    return f"<table>{line(rows[0], 'th')}{''.join(line(row, 'td') for row in rows[1:])}</table>\n"


def html_pictures(pictures: Mapping[str, bytes]) -> str:
    """Return PNG files under their names, as part of the page itself."""
    return "".join(
        f'<h2>{html.escape(name)}</h2><img alt="{html.escape(name)}" '
        f'src="data:image/png;base64,{base64.b64encode(content).decode()}">\n'
        for name, content in pictures.items()
    )


def html_verbatim(title: str, text: str) -> str:
    """Return text as it stands, under a title."""
    return f"<h2>{html.escape(title)}</h2><pre>{html.escape(text)}</pre>"


def html_manifest(manifest: Mapping[str, object]) -> str:
    """Return where results come from."""
    return html_verbatim("Manifest", json.dumps(manifest, indent=1))


def html_page(title: str, body: str) -> str:
    """Return a whole page."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head><body>
<h1>{title}</h1>
{body}</body></html>
"""
