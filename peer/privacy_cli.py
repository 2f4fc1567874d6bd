# ruff: noqa: T201 - printing is what a command line is for
"""``peer privacy``: what training has spent of the privacy of your data, what is left, and what is promised to whom."""

from __future__ import annotations

import json as json_text
from pathlib import Path


def show_privacy(home: Path, *, as_json: bool) -> None:
    """Print a statement on each data set of a home; reads the ledger only, and waits for nobody who writes it.

    Raises:
        LedgerError: the ledger is not as it was written.
    """
    from peer.privacy.statement import promise_in_words, statements

    found = statements(home)
    if as_json:
        print(json_text.dumps([statement.fields() for statement in found]))
    elif not found:
        print(
            f"Nothing is counted in {home}: no run in it has trained with --dp-epsilon. Adapters that are trained "
            "without it tell neighbors which rows they were trained on."
        )
    else:
        for statement in found:
            print("\n".join(statement.lines()) + "\n")
        print(promise_in_words(found))
