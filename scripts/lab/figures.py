"""Figures without a display and without global state, and files that appear whole.

Equal figures give equal bytes. It knows nothing of what is drawn.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gossip.errors import LocalError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float, *, columns: int = 1, rows: int = 1) -> tuple[Figure, list[Any]]:
    """Return an empty figure, inches, and its axes in reading order.

    Raises:
        LocalError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise LocalError(
            "pictures need the package matplotlib: pip install 'gossip-peer[research]'"
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25, linewidth=0.6)
    return figure, list(axes.flat)


def png(figure: Figure, dpi: int = 110, colors: int | None = None) -> bytes:
    """Return a figure as PNG bytes, with a palette of at most ``colors`` (a third of the size) if that is given."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    if colors is None:
        return buffer.getvalue()
    from PIL import Image  # matplotlib needs it too

    small = io.BytesIO()
    Image.open(buffer).convert("RGB").quantize(colors, dither=Image.Dither.NONE).save(
        small, "png", optimize=True
    )
    return small.getvalue()


def write_file(target: Path, content: bytes) -> None:
    """Write a file that others may read, whole or not at all, making its folder.

    Raises:
        LocalError: it cannot be written.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(target)
    except OSError as error:
        raise LocalError(f"cannot write {target}: {error.strerror or error}") from error
