"""Figures without a display and without global state, as PNG bytes; equal figures give equal bytes.

What many figures have in common stands here too: styles of curves, the place of the legend. It knows nothing of what is
drawn.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from gossip.errors import LocalError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVES_MAX = 12
"""Curves of one figure. Source: ours; more could not be told apart."""
LINE_STYLES = ("-", "--", ":")
"""Of curves, the next one where the ten colors come again."""


def new_figure(width: float, height: float, *, columns: int = 1, rows: int = 1) -> tuple[Figure, list[Axes]]:
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


def add_legend(figure: Figure, ax: Axes, fontsize: int = 8) -> None:
    """Put the legend of one of its axes to the right of the figure."""
    figure.legend(
        *ax.get_legend_handles_labels(), loc="outside right upper", fontsize=fontsize, frameon=False
    )


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
