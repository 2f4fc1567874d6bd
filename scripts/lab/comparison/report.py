"""The report of a comparison: tables (also as Markdown), plots, and one HTML file with all of it.

What the numbers mean is said in ``statistics.py``.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path

from scripts.lab.comparison.plots import figures
from scripts.lab.comparison.statistics import ComparisonResults, read_comparison_results
from scripts.lab.comparison.tables import Table, record, tables
from scripts.lab.figures import png
from scripts.lab.files import write_file
from scripts.lab.page import (
    html_manifest,
    html_page,
    html_pictures,
    html_table,
    html_verbatim,
    markdown_table,
    text_table,
)


def write_report(folder: Path) -> tuple[Path, list[str]]:
    """Write ``report.html``, ``table.md``, ``record.json`` and PNG files into the folder of a comparison.

    Returns:
        The HTML file, and the first table as lines of text.

    Raises:
        LocalError: no results there.
    """
    comparison = read_comparison_results(folder)
    shown = tables(comparison)
    pictures = {name: png(figure) for name, figure in figures(comparison)}
    for name, content in pictures.items():
        write_file(folder / f"{name}.png", content)
    write_file(folder / "table.md", _markdown(comparison, shown).encode())
    write_file(folder / "record.json", (json.dumps(record(comparison), indent=1) + "\n").encode())
    target = folder / "report.html"
    write_file(target, _page(comparison, shown, pictures).encode())
    return target, text_table(shown[0].rows)


def _introduction(comparison: ComparisonResults) -> list[str]:
    request = comparison.manifest["spec"]["comparison"]
    runs = [run for method in comparison.methods for run in method.runs.values()]
    seeds = {seed for method in comparison.methods for seed in method.runs}
    split = f", split {request['partition']}" if request["partition"] else ""
    tokens = max(run["tokens_per_peer"] for run in runs)
    tuned = "each its own learning rate, tuned on validation rows of other seeds"
    rates = tuned if comparison.grid else "all one learning rate, which was not tuned here"
    return [
        f"Workload {request['workload']}{split}: {request['peers']} peers, {tokens * 1e-3:.4g} thousand tokens each, "
        f"{len(seeds)} {'seeds' if len(seeds) > 1 else 'seed'}. All methods have the same text, splits, initial "
        f"adapters and number of training sequences, and {rates}.",
        f"Time is virtual: {request['step_s']:g} s a step of a peer (of fewer sequences: in proportion), links of "
        f"{request['bandwidth_mbit']:g} Mbit/s and {request['latency_s'] * 1000:g} ms. Bytes are those that a peer "
        "reads, the final merge included; with a server, one adapter down and one up a round.",
    ]


def _commands(comparison: ComparisonResults) -> str:
    command: str = comparison.manifest["spec"]["command"]
    out = command.rpartition("--out ")[2]
    return f"{command}\npython scripts/compare.py report --out {out}"


def _markdown(comparison: ComparisonResults, shown: Sequence[Table]) -> str:
    paragraphs = [" ".join(_introduction(comparison))]
    for table in shown:
        head, *body = table.rows
        rows = [head, *([f"`{row[0]}`", *row[1:]] for row in body)]
        paragraphs += [f"**{table.title}.** {table.doc}", "\n".join(markdown_table(rows))]
    paragraphs.append(f"Made again by:\n\n```bash\n{_commands(comparison)}\n```")
    return "\n\n".join(paragraphs) + "\n"


def _page(comparison: ComparisonResults, shown: Sequence[Table], pictures: dict[str, bytes]) -> str:
    finished, runs = comparison.manifest["finished"], comparison.manifest["cells"]
    parts = [
        *(f"<p>{html.escape(text)}</p>\n" for text in _introduction(comparison)),
        f"<p>{finished} of {runs} runs are finished.</p>\n",
        *(
            f"<h2>{html.escape(table.title)}</h2><p>{html.escape(table.doc)}</p>\n{html_table(table.rows)}"
            for table in shown
        ),
        html_pictures(pictures),
        html_manifest(comparison.manifest) + "\n",
        html_verbatim("Made again by", _commands(comparison)),
    ]
    return html_page("Comparison", "".join(parts))
