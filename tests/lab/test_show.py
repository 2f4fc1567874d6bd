"""``show``: its JSON is an interface, its numbers are closed forms, its refusals say what would be valid."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]

KEYS = [
    "peers",
    "edges",
    "degree_max",
    "diameter",
    "spectral_gap",
    "slem",
    "lambda_min",
    "effective_neighbors",
    "rounds_to_1e-6",
    "doubly_stochastic",
    "symmetric",
    "sweep_length",
    "sweep_contraction",
]


def shown(convergence: Run, *words: object) -> dict[str, Any]:
    said = convergence("show", *words, "--json")
    assert said.code == 0, said.err
    record: dict[str, Any] = json.loads(said.out)
    assert list(record) == KEYS
    return record


def test_ring(convergence: Run) -> None:
    ring = shown(convergence, "ring", "--peers", 16)
    assert ring["spectral_gap"] == pytest.approx(2 / 3 * (1 - math.cos(2 * math.pi / 16)), abs=1e-9)
    assert round(ring["spectral_gap"], 5) == 0.05075
    assert ring["lambda_min"] == pytest.approx(-1 / 3)
    assert (ring["peers"], ring["edges"], ring["degree_max"], ring["diameter"]) == (16, 16, 2, 8)
    assert (ring["doubly_stochastic"], ring["symmetric"], ring["sweep_length"]) == (True, True, 1)
    assert ring["sweep_contraction"] == pytest.approx(ring["slem"])
    assert ring["rounds_to_1e-6"] == pytest.approx(math.log(1e6) / -math.log(ring["slem"]))
    assert list(ring["effective_neighbors"]) == ["0.5", "0.9", "0.99"]


def test_star_and_hypercube(convergence: Run) -> None:
    star = shown(convergence, "star", "--peers", 32)
    assert star["spectral_gap"] == pytest.approx(1 / 32)
    assert star["effective_neighbors"]["0.9"] == pytest.approx(1.67, abs=0.01)
    assert (star["degree_max"], star["diameter"], star["edges"]) == (31, 2, 31)
    hypercube = shown(convergence, "hypercube", "--peers", 16)
    assert hypercube["spectral_gap"] == pytest.approx(0.4)
    best = shown(convergence, "hypercube", "--peers", 16, "--weights", "best-constant")
    assert best["slem"] == pytest.approx(3 / 5)


def test_negative_weights_may_be_studied(convergence: Run) -> None:
    star = shown(convergence, "star", "--peers", 9, "--weights", "best-constant")
    assert star["slem"] == pytest.approx(8 / 10)
    assert "negative" in convergence("show", "star", "--peers", 9, "--weights", "best-constant").out


def test_schedules_have_no_static_figures(convergence: Run) -> None:
    base = shown(convergence, "base:1", "--peers", 12)
    for name in ("spectral_gap", "slem", "lambda_min", "effective_neighbors"):
        assert base[name] is None
    assert (base["sweep_length"], base["rounds_to_1e-6"]) == (5, 5.0)
    assert base["sweep_contraction"] == pytest.approx(0, abs=1e-12)
    epidemic = shown(convergence, "epidemic:3", "--peers", 12)
    for name in ("edges", "diameter", "spectral_gap", "sweep_length", "sweep_contraction"):
        assert epidemic[name] is None
    assert not epidemic["doubly_stochastic"]


def test_one_peer(convergence: Run) -> None:
    alone = shown(convergence, "ring", "--peers", 1)
    assert (alone["edges"], alone["degree_max"], alone["slem"], alone["rounds_to_1e-6"]) == (0, 0, 0.0, 1.0)


def test_the_table_says_what_is_not_guaranteed(convergence: Run) -> None:
    said = convergence("show", "ring", "--peers", 8)
    assert "spectral gap" in said.out
    assert "D^2 diverges" in said.out
    assert "drift of the mean" in convergence("show", "epidemic:2", "--peers", 8).out


@pytest.mark.parametrize("kind", ["graphml", "gexf"])
def test_graphs_are_written_and_read_back(convergence: Run, tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"torus.{kind}"
    assert convergence("show", "torus", "--peers", 16, f"--{kind}", file).code == 0
    again, first = (shown(convergence, name, "--peers", 16) for name in (f"graph:{file}", "torus"))
    assert again.pop("effective_neighbors") == pytest.approx(first.pop("effective_neighbors"))
    assert again == pytest.approx(first)


def test_a_schedule_has_its_rounds_in_the_files(convergence: Run, tmp_path: Path) -> None:
    graphml, gexf = tmp_path / "s.graphml", tmp_path / "s.gexf"
    words = ("show", "base:1", "--peers", 6, "--graphml", graphml, "--gexf", gexf)
    assert convergence(*words).code == 0
    assert 'attr.name="rounds"' in graphml.read_text()
    assert '<spell start="0.0" end="1.0"' in gexf.read_text()
    assert 'mode="dynamic"' in gexf.read_text()


@pytest.mark.parametrize("name", ["hypercube", "base:1", "exponential", "epidemic:2"])
def test_pictures(convergence: Run, tmp_path: Path, name: str) -> None:
    assert convergence("show", name, "--peers", 8, "--out", tmp_path).code == 0
    (picture,) = tmp_path.glob("*-8.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


BAD_FILES = {
    "apart.edges": "a b\nc d\n",
    "broken.graphml": "<graphml",
    "half.csv": "0,1\n1\n",
    "row.csv": "0.5,0.4\n0.5,0.5\n",
}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("show", "rng", "--peers", "4"), "Did you mean 'ring'? Known: "),
        (("show", "hypercube", "--peers", "12"), "needs a power of two, e.g. 8 or 16"),
        (("show", "ring", "--peers", "0"), "must be at least 1, not 0"),
        (("show", "random-regular:3", "--peers", "7"), "random-regular:3"),
        (("show", "ring", "--peers", "4", "--weights", "metropolys"), "metropolis-hastings"),
        (("show", "graph:{tmp}/apart.edges", "--peers", "4"), "the graph is not connected"),
        (("show", "graph:{tmp}/broken.graphml", "--peers", "4"), "not a graphml file"),
        (("show", "graph:{tmp}/half.csv", "--peers", "2"), "not square: 2 rows, but row 2 has 1"),
        (("show", "graph:{tmp}/none.edges", "--peers", "2"), "No such file"),
        (("show", "matrix:{tmp}/row.csv", "--peers", "2"), "row 1 sums to 0.9"),
        (
            ("consensus", "ring", "--peers", "8", "--loss", "-0.1"),
            "loss must be a probability from 0 to below 1",
        ),
        (("consensus", "ring", "torus:3x4", "--peers", "8"), "torus:3x4"),
        (("consensus", "graph:{tmp}/none.edges", "--peers", "2"), "No such file"),
        (("learn", "ring", "--peers", "8", "--codec", "int9"), "bfloat16, chunked, float32, int4"),
        (("learn", "ring", "--peers", "8", "--local-steps", "0"), "local_steps must be from 1"),
        (("learn", "star", "--peers", "8", "--weights", "best-constant"), "take 'fmmc'"),
        (("learn", "ring", "--peers", "8", "--churn", "1"), "churn must be a share from 0 to below 1"),
        (("report", "{tmp}"), "make some with sweep"),
        (("sweep", "{tmp}/none.toml"), "cannot read the sweep"),
    ],
)
def test_bad_input_is_refused_with_what_would_be_valid(
    convergence: Run, tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    for file, content in BAD_FILES.items():
        (tmp_path / file).write_text(content)
    said = convergence(*(word.format(tmp=tmp_path) for word in words))
    assert said.code == 2
    assert said.err.startswith("error: ")
    assert says in said.err
    assert "Traceback" not in said.err
    assert said.out == ""
