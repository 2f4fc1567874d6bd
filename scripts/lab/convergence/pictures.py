"""What ``show`` draws and writes of one topology: heat map of W, graph and spectrum; GraphML and GEXF.

A schedule is drawn as the union of one sweep (of some rounds, where it never repeats) and by the mean of its W. It
measures nothing; ``topology.analysis`` does.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from scripts.lab.figures import new_figure, png
from scripts.lab.files import write_file
from topology.analysis import DRAWS
from topology.links import Topology
from topology.spectral import SPECTRUM_MAX, spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Values = NDArray[np.float64]

DRAWN_MAX = 400
"""More nodes than this are not drawn as a graph: nothing could be seen, and the layout takes minutes."""
LAYOUT_MAX = 130
"""Up to so many nodes the layout minimizes path-length stress, which takes n^3. Source: about 1 s."""


def sweep_of(topology: Topology, n: int) -> list[csr_array]:
    """Return W of every round of one sweep, or of some rounds of a schedule that never repeats."""
    return [topology.matrix(n, round) for round in range(topology.period(n) or DRAWS)]


def draw_topology(topology: Topology, n: int, target: Path) -> None:
    """Write one PNG: W, the graph, and the eigenvalues of W (of one sweep's product, for a schedule).

    Raises:
        LocalError: the file cannot be written, or matplotlib is not installed.
    """
    sweep = sweep_of(topology, n)
    figure, (heat, drawing, spectral) = new_figure(13.5, 4.4, columns=3)
    draw_matrix(heat, sweep, n)
    draw_graph(drawing, topology, n)
    _draw_spectrum(spectral, sweep, topology.period(n))
    figure.suptitle(f"{topology.name}, {n} peers")
    write_file(target, png(figure))


def draw_matrix(ax: Axes, sweep: list[csr_array], n: int) -> None:
    """Draw W (its mean over the sweep) as a heat map: row = reader, column = whom it reads."""
    mean = sum(sweep[1:], start=sweep[0]) / len(sweep)
    ax.grid(visible=False)
    if n <= SPECTRUM_MAX:
        dense = mean.toarray()
        image = ax.imshow(np.where(dense != 0, dense, np.nan), cmap="viridis", interpolation="nearest")
        ax.figure.colorbar(image, ax=ax, shrink=0.8)
    else:
        ax.spy(mean, markersize=0.5)
    ax.set_title("W" if len(sweep) == 1 else f"mean of W over {len(sweep)} rounds", fontsize=10)
    ax.set_xlabel("read")
    ax.set_ylabel("reader")


def draw_graph(
    ax: Axes, topology: Topology, n: int, *, size: float = 45.0, random_rounds: int = DRAWS
) -> None:
    """Draw who reads whom; arcs of a schedule are colored by the first round in which they are used.

    Args:
        size: of a node, points squared, at most.
        random_rounds: rounds drawn of a schedule that never repeats.
    """
    from matplotlib.collections import LineCollection

    ax.set_axis_off()
    if n > DRAWN_MAX:
        ax.set_title(f"{n} nodes are too many to draw", fontsize=10)
        return
    graph = union_graph(topology, n, random_rounds)
    place = _places(graph, is_schedule=topology.period(n) != 1)
    first = [int(str(rounds).partition(" ")[0]) for _, _, rounds in graph.edges(data="rounds", default="0")]
    lines = [(place[reader], place[read]) for reader, read in graph.edges()]
    width = float(np.clip(60 / max(len(lines), 1), 0.25, 1.2))
    collection = LineCollection(lines, array=np.asarray(first), cmap="viridis", linewidths=width, alpha=0.7)
    ax.add_collection(collection)
    spots = np.asarray(list(place.values()))
    ax.scatter(spots[:, 0], spots[:, 1], s=min(size, 2000 / n), color="#333333", zorder=3, linewidths=0)
    ax.set_aspect("equal")
    ax.margins(0.06)
    ax.set_title("graph" if topology.period(n) == 1 else "all rounds of a sweep", fontsize=10)


def _places(graph: Any, *, is_schedule: bool) -> dict[Any, Values]:
    """Return where each node of a networkx graph is drawn: a hub in the middle, dense or directed ones on a circle."""
    import networkx as nx

    undirected = nx.Graph(graph)
    n = undirected.number_of_nodes()
    hubs = [node for node, degree in undirected.degree if degree == n - 1]
    places: dict[Any, Values]
    if len(hubs) == 1:
        places = nx.shell_layout(undirected, [hubs, [node for node in undirected if node != hubs[0]]])
    elif undirected.number_of_edges() == n * (n - 1) // 2 or graph.is_directed() or is_schedule:
        places = nx.circular_layout(undirected)
    elif n <= LAYOUT_MAX:
        places = nx.kamada_kawai_layout(undirected)
    else:
        places = nx.spring_layout(undirected, seed=0, k=2 / np.sqrt(n))
    return places


def _draw_spectrum(ax: Axes, sweep: list[csr_array], period: int) -> None:
    n = sweep[0].shape[0]
    if n > SPECTRUM_MAX:
        ax.set_axis_off()
        ax.set_title(f"no whole spectrum beyond {SPECTRUM_MAX} peers", fontsize=10)
        return
    values: NDArray[Any]
    if period == 1:
        values, name = spectrum(sweep[0]), "eigenvalues of W"
    else:
        product = np.eye(n)
        for matrix in sweep:
            product = matrix @ product
        values, name = np.linalg.eigvals(product), f"eigenvalues of the product of {len(sweep)} rounds"
    ax.set_title(name, fontsize=10)
    if np.abs(np.imag(values)).max() < 1e-9:
        ax.plot(np.sort(np.real(values))[::-1], ".-", markersize=4, linewidth=0.8)
        ax.set_xlabel("number")
        ax.axhline(0, color="#999999", linewidth=0.8)
        return
    angle = np.linspace(0, 2 * np.pi, 200)
    ax.plot(np.cos(angle), np.sin(angle), color="#999999", linewidth=0.8)
    ax.plot(np.real(values), np.imag(values), ".", markersize=5)
    ax.set_aspect("equal")
    ax.set_xlabel("real")
    ax.set_ylabel("imaginary")


def union_graph(topology: Topology, n: int, random_rounds: int = DRAWS) -> Any:
    """Return the networkx graph of one sweep: edges with ``weight`` (mean over the sweep) and, for schedules, the
    ``rounds`` in which they are used, as text.
    """
    import networkx as nx

    count = topology.period(n) or random_rounds
    graphs = [topology.graph(n, round) for round in range(count)]
    directed = any(graph.is_directed() for graph in graphs)
    union = (nx.DiGraph if directed else nx.Graph)(name=topology.name)
    union.add_nodes_from(graphs[0].nodes)
    for round, graph in enumerate(graphs):
        whole = graph.to_directed() if directed else graph
        for reader, read, weight in whole.edges(data="weight"):
            before = union.get_edge_data(reader, read, {"weight": 0.0, "rounds": ""})
            rounds = f"{before['rounds']} {round}".strip()
            union.add_edge(reader, read, weight=before["weight"] + weight / count, rounds=rounds)
    if count == 1:
        for _, _, data in union.edges(data=True):
            del data["rounds"]
    return union


def write_graph(topology: Topology, n: int, target: Path, kind: str) -> None:
    """Write the union of one sweep as ``"graphml"`` or ``"gexf"``; GEXF of a schedule has time spells, one a round.

    Raises:
        LocalError: the file cannot be written.
    """
    import networkx as nx

    graph, buffer = union_graph(topology, n), io.BytesIO()
    if kind == "gexf" and topology.period(n) != 1:
        graph.graph["mode"] = "dynamic"
        for _, _, data in graph.edges(data=True):
            data["spells"] = [(float(round), float(round) + 1.0) for round in data["rounds"].split()]
    (nx.write_graphml if kind == "graphml" else nx.write_gexf)(graph, buffer)
    write_file(target, buffer.getvalue())
