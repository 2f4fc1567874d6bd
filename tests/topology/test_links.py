"""Names, files and errors of topologies: what a user types, and what the answer says when it cannot be."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

from topology.errors import TopologyError
from topology.links import Links, Topology, catalogue, describe, numbered, parse_topology, weight_catalogue


def parse(text: str, **options: object) -> Topology:
    return parse_topology(text, seed=1, **options)  # type: ignore[arg-type]


RNG = random.Random(0)


# ---- names


def test_names_are_canonical_and_read_back() -> None:
    for text, name in {
        " Ring ": "ring",
        "random-regular:04": "random-regular:4",
        "watts-strogatz:4:0.10": "watts-strogatz:4:0.1",
        "torus:04X6": "torus:4x6",
        "erdos-renyi": "erdos-renyi",
        "erdos-renyi:0.123456789": "erdos-renyi:0.123456789",
        "round-robin: ring + base:1": "round-robin:ring+base:1",
    }.items():
        assert parse(text).name == name
        assert parse(name).name == name


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rign", "Did you mean 'ring'?"),
        ("smallworld", "Known: barabasi-albert, barbell, base, complete"),
        ("", "unknown topology"),
        ("random-regular", "Write 'random-regular:K' with K = neighbors of each peer"),
        ("random-regular:1", "at least 2, not '1'"),
        ("random-regular:x", "whole number"),
        ("random-regular:4:5", "takes 1 parameter"),
        ("ring:3", "takes 0 parameter"),
        ("torus:4", "rows x columns such as 4x6"),
        ("erdos-renyi:1.5", "above 0 to 1, not '1.5'"),
        ("erdos-renyi:nan", "above 0 to 1"),
        ("watts-strogatz:4", "takes 2 parameter"),
        ("epidemic:0", "at least 1"),
        ("equistatic:20000", "at most 10000"),
        ("epidemic:-3", "at least 1"),
        ("matrix", "matrix:FILE"),
        ("graph:", "graph:FILE"),
        ("graph:x.doc", "known: .graphml"),
        ("matrix:/nowhere/W.csv", "cannot read the matrix file '/nowhere/W.csv'"),
        ("round-robin:ring", "at least two topologies"),
        ("round-robin:ring+epidemic:2", "drawn by each"),
    ],
)
def test_a_bad_name_says_what_would_be_valid(text: str, says: str) -> None:
    with pytest.raises(TopologyError) as caught:
        parse(text)
    assert says in str(caught.value)


def test_weight_rules_are_named() -> None:
    with pytest.raises(
        TopologyError, match=r"unknown weight rule 'metropolis'.*Did you mean 'metropolis-hastings'"
    ):
        parse("ring", weights="metropolis")
    with pytest.raises(TopologyError, match="above 0 to 1"):
        parse("ring", weights="lazy:2")
    assert not parse("ring", weights="uniform").is_doubly_stochastic
    assert isinstance(TopologyError("x"), ValueError)


@pytest.mark.parametrize(
    ("text", "n", "says"),
    [
        ("random-regular:4", 4, "needs at least 5 peers; for 4 take K up to 3"),
        ("random-regular:3", 5, "take K = 2 or 4, or one peer more or less"),
        ("torus", 7, "n = rows x columns"),
        ("torus:3x4", 16, "has 12 places"),
        ("hypercube", 12, "power of two, e.g. 8 or 16"),
        ("dimension-exchange", 6, "e.g. 4 or 8"),
        ("watts-strogatz:3:0.1", 10, "take 2 or 4"),
        ("watts-strogatz:4:0.1", 4, "at least 5 peers"),
        ("barabasi-albert:5", 5, "at least 6 peers"),
        ("erdos-renyi:0.001", 50, "at least 2 ln n / n = 0.156"),
        ("epidemic-oracle:3", 3, "take S up to 2"),
        ("hyper-hypercube:2", 10, "'base:2' is exact"),
        ("round-robin:ring+hypercube", 12, "power of two"),
        ("ring", 0, "at least 1, not 0"),
    ],
)
def test_an_impossible_count_says_what_would_be_valid(text: str, n: int, says: str) -> None:
    with pytest.raises(TopologyError) as caught:
        parse(text).check(n)
    assert says in str(caught.value)


def test_possible_counts_pass() -> None:
    for text, n in (
        ("ring", 1),
        ("torus", 12),
        ("hypercube", 16),
        ("random-regular:3", 8),
        ("epidemic:3", 4),
    ):
        parse(text).check(n)
        parse(text).check([f"peer{i}" for i in range(n)])


def test_directed_graphs_refuse_rules_that_need_equal_degrees(tmp_path: Path) -> None:
    file = tmp_path / "arcs.csv"
    file.write_text("0,1,1\n1,0,0\n1,1,0\n")
    given = parse(f"graph:{file}")
    with pytest.raises(TopologyError, match="'sinkhorn'"):
        given.check(3)
    links = given("b", ("a", "b", "c"), 0, RNG)  # a running peer mixes on with uniform rows
    assert links == Links((("a", 0.5),), 0.5)
    scaled = parse(f"graph:{file}", weights="sinkhorn")
    scaled.check(3)
    np.testing.assert_allclose(scaled.matrix(3).sum(axis=0), 1, atol=1e-12)


def test_the_catalogue_describes_itself() -> None:
    text = describe()
    assert len(text.splitlines()) == len(catalogue())
    assert "random-regular:K" in text
    assert "torus[:RxC]" in text
    rules = weight_catalogue()
    assert next(iter(rules)) == "metropolis-hastings"
    assert all(line.endswith(".") for line in rules.values())
    assert "lazy[:BETA]" in describe(rules)


def test_help_does_not_wait_for_scipy_or_networkx() -> None:
    code = "import sys, topology.links as t; t.describe(); print('scipy' in sys.modules or 'networkx' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


# ---- links


def test_members_must_be_sorted_and_hold_me() -> None:
    ring = parse("ring")
    with pytest.raises(TopologyError, match="'z' is not among the 2 members"):
        ring("z", ("a", "b"), 0, RNG)
    with pytest.raises(TopologyError, match="sorted"):
        ring("a", ("b", "a"), 0, RNG)
    with pytest.raises(TopologyError, match="duplicates"):
        ring("a", ("a", "a"), 0, RNG)


def test_one_and_two_members() -> None:
    for written in catalogue():
        text = {"epidemic": "epidemic:3"}.get(written, written)
        if "FILE" in text or "round-robin" in text:
            continue
        text = text.replace(":SIZE[:BETWEEN]", ":3")
        for letter in ("K", "S", "M"):
            text = text.replace(f":{letter}", ":3")
        topology = parse(
            text.replace("[:T]", "")
            .replace(":P", ":0.5")
            .replace("[:RxC]", "")
            .replace("[:0.5]", "")
            .replace("[:ETA]", "")
        )
        assert topology("me", ("me",), 0, RNG) == Links((), 1.0)
        for round in range(3):
            pair = topology("me", ("me", "you"), round, RNG)
            assert sum(weight for _, weight in pair.read_from) + pair.self_weight == pytest.approx(
                1, abs=1e-12
            )
            if topology.is_doubly_stochastic and pair.read_from:
                assert pair.read_from[0][0] == "you"


def test_links_are_values() -> None:
    links = parse("ring")("b", ("a", "b", "c", "d"), 3, RNG)
    assert links == Links((("a", 1 / 3), ("c", 1 / 3)), pytest.approx(1 / 3))
    assert hash(Links((), 1.0)) == hash(Links((), 1.0))


def test_caches_stay_small() -> None:
    topology = parse("random-matching")
    members = numbered(1000)
    import topology.links as module

    for round in range(2 * module.EDGES_CACHED_MAX // 2_000_00):
        topology(members[0], members, round, RNG)
    kept = sum(matrix.nnz for matrix in topology._matrices.values())
    assert kept <= module.EDGES_CACHED_MAX
    for n in range(2, 200):
        topology(members[0], members[:n], 0, RNG)
    assert len(topology._rosters) <= module.ROSTERS_CACHED_MAX


def test_churn_falls_back_to_what_exists() -> None:
    members = numbered(16)
    for text in ("hypercube", "torus:4x4", "random-regular:5", "dimension-exchange", "hyper-hypercube:3"):
        topology = parse(text)
        topology.check(16)
        for gone in range(1, 15):
            there = members[gone:]
            matrix = topology.matrix(there)
            np.testing.assert_allclose(matrix.sum(axis=0), 1, atol=1e-12)
            assert topology(there[0], there, 0, RNG).self_weight >= 0
    ring_of_7 = parse("torus").matrix(7).toarray()
    np.testing.assert_array_equal(ring_of_7, parse("ring").matrix(7).toarray())


# ---- matrix:FILE

ROWS = [[0.5, 0.5, 0.0], [0.25, 0.5, 0.25], [0.0, 0.5, 0.5]]


def write(path: Path, content: object) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return f"matrix:{path}"


def test_matrix_forms_agree(tmp_path: Path) -> None:
    body = "\n".join(",".join(map(str, row)) for row in ROWS)
    labeled = "\n".join(",".join([name, *map(str, row)]) for name, row in zip("abc", ROWS, strict=True))
    for number, (suffix, content) in enumerate(
        [
            (".csv", body),
            (".csv", "a,b,c\n" + body + "\n\n"),
            (".csv", ",a,b,c\n" + labeled),
            (".csv", "\ufeffa\tb\tc\n" + body.replace(",", "\t")),
            (".json", ROWS),
            (".json", {"peers": ["a", "b", "c"], "matrix": ROWS}),
        ]
    ):
        topology = parse(write(tmp_path / f"{number}{suffix}", content))
        topology.check(["a", "b", "c"])
        assert topology("b", ("a", "b", "c"), 4, RNG) == Links((("a", 0.25), ("c", 0.25)), 0.5)
        assert topology("a", ("a", "b", "c"), 0, RNG) == Links((("b", 0.5),), 0.5)
        assert topology.is_static
        assert not topology.is_symmetric
        assert not topology.is_doubly_stochastic


def test_rows_follow_names_not_places(tmp_path: Path) -> None:
    topology = parse(write(tmp_path / "w.json", {"peers": ["c", "a", "b"], "matrix": ROWS}))
    topology.check(3)  # a number asks for the size only
    np.testing.assert_array_equal(topology.matrix(3).toarray(), topology.matrix(("a", "b", "c")).toarray())
    assert topology.matrix(3).nnz == 7
    with pytest.raises(TopologyError, match="for 3 peers, the roster has 4"):
        topology.check(4)
    assert topology("a", ("a", "b", "c"), 0, RNG) == Links((("b", 0.25), ("c", 0.25)), 0.5)


def test_numeric_names_in_a_header(tmp_path: Path) -> None:
    topology = parse(write(tmp_path / "w.csv", "10,20\n0.5,0.5\n0.25,0.75\n"))
    assert topology("20", ("10", "20"), 0, RNG) == Links((("10", 0.25),), 0.75)


def test_who_is_away_gives_the_weight_back(tmp_path: Path) -> None:
    named = parse(write(tmp_path / "w.json", {"peers": ["a", "b", "c"], "matrix": ROWS}))
    assert named("b", ("b", "c"), 0, RNG) == Links((("c", 0.25),), 0.75)
    assert named("a", ("a",), 0, RNG) == Links((), 1.0)
    assert named("x", ("a", "b", "c", "x"), 0, RNG) == Links((), 1.0)  # a newcomer has no row
    unnamed = write(tmp_path / "w.csv", "0.5,0.5,0\n0.25,0.5,0.25\n0,0.5,0.5\n")
    assert parse(unnamed, roster=["c", "a", "b"])("b", ("b", "c"), 0, RNG) == Links((("c", 0.25),), 0.75)
    assert parse(unnamed)("b", ("b", "c"), 0, RNG) == Links((), 1.0)  # whose rows they are cannot be known


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("w.csv", "0.5,0.5\n0.5,0.4\n", "row 2 sums to 0.9"),
        ("w.csv", "a,b\n0.5,0.5\n0.5,0.4\n", "row 2 (b) sums to 0.9"),
        ("w.csv", "0.5,0.5,0\n0.5,0.5\n1,0,0\n", "row 2 has 2 columns"),
        ("w.csv", "0.5,0.5\n0.5,0.5\n0.5,0.5\n1,0\n", "not square: 4 rows, but row 1 has 2 columns"),
        ("w.csv", "1.5,-0.5\n0.5,0.5\n", "row 1, column 2: weights must not be negative"),
        ("w.csv", "nan,0.5\n0.5,0.5\n", "row 1, column 1: 'nan' is not finite"),
        ("w.csv", "0.5,0.5\n0.5,inf\n", "row 2, column 2: 'inf' is not finite"),
        ("w.csv", "a,b\n0.5,0.5\n0.5,half\n", "row 2, column 2: 'half' is not a number"),
        ("w.csv", "a,a\n0.5,0.5\n0.5,0.5\n", "peers named twice: a"),
        ("w.csv", ",a,b\nb,0.5,0.5\na,0.5,0.5\n", "first column's names"),
        ("w.csv", "", "holds no rows"),
        ("w.json", "[[1", "not JSON"),
        ("w.json", '{"matrix": 3}', "expected a list of rows"),
        ("w.json", '{"peers": [1], "matrix": [[1]]}', '"peers" must be a list of names'),
        (
            "w.json",
            '{"peers": ["a"], "matrix": [[0.5, 0.5], [0.5, 0.5]]}',
            "1 peer names for a matrix of 2 rows",
        ),
        ("w.json", "[[true]]", "row 1, column 1: True is not a number"),
    ],
)
def test_a_bad_matrix_names_file_and_place(tmp_path: Path, name: str, content: str, says: str) -> None:
    with pytest.raises(TopologyError) as caught:
        parse(write(tmp_path / name, content))
    assert says in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def test_row_sums_may_be_off_by_rounding_only(tmp_path: Path) -> None:
    parse(write(tmp_path / "good.csv", "0.3333333333,0.6666666667\n0.5,0.5000000009\n"))
    with pytest.raises(TopologyError, match=r"row 2 sums to 1\.000000002"):
        parse(write(tmp_path / "bad.csv", "0.5,0.5\n0.5,0.500000002\n"))
    no_self = parse(write(tmp_path / "zero.csv", "0,1.0000000005\n1,0\n"))
    assert no_self("a", ("a", "b"), 0, RNG) == Links((("b", 1.0),), 0.0)


def test_a_matrix_for_another_roster_is_refused(tmp_path: Path) -> None:
    named = write(tmp_path / "w.json", {"peers": ["a", "b", "c"], "matrix": ROWS})
    with pytest.raises(TopologyError, match="for 3 peers, the roster has 4"):
        parse(named, roster=["a", "b", "c", "d"])
    with pytest.raises(TopologyError, match=r"not in the roster: b; missing in the file: x"):
        parse(named, roster=["a", "x", "c"])
    with pytest.raises(TopologyError, match="for 3 peers, the roster has 2"):
        parse(named).check(["a", "b"])


# ---- graph:FILE


def test_graph_files_of_all_formats(tmp_path: Path) -> None:
    graph = nx.relabel_nodes(nx.cycle_graph(5), dict(enumerate("abcde")))
    nx.write_graphml(graph, tmp_path / "g.graphml")
    nx.write_gexf(graph, tmp_path / "g.gexf")
    (tmp_path / "g.edges").write_text("# a ring\na b 1.0\nb,c\nc d\nd e\ne a\na b\n")
    table = nx.to_numpy_array(graph).astype(int).tolist()
    (tmp_path / "g.csv").write_text("a,b,c,d,e\n" + "\n".join(",".join(map(str, row)) for row in table))
    members = tuple("abcde")
    for suffix in ("graphml", "gexf", "edges", "csv"):
        topology = parse(f"graph:{tmp_path}/g.{suffix}")
        topology.check(members)
        np.testing.assert_array_equal(
            topology.matrix(members).toarray(), parse("ring").matrix(members).toarray()
        )
        without_c = topology.matrix(("a", "b", "d", "e")).toarray()  # a path is left: b - a - e - d
        assert without_c[1].tolist() == [pytest.approx(1 / 3), pytest.approx(2 / 3), 0, 0]
        assert (without_c == without_c.T).all()
        assert nx.is_isomorphic(topology.graph(members), graph)


def test_numbered_graph_belongs_to_the_sorted_roster(tmp_path: Path) -> None:
    (tmp_path / "g.txt").write_text("1 2\n2 3\n3 4\n")
    topology = parse(f"graph:{tmp_path}/g.txt")
    np.testing.assert_array_equal(topology.matrix(4).toarray(), parse("path").matrix(4).toarray())
    assert topology("a", ("a", "b"), 0, RNG) == Links((), 1.0)
    with pytest.raises(TopologyError, match="has 4 nodes, the roster 5 peers"):
        topology.check(5)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("g.txt", "a b\nc d\n", "not connected"),
        ("g.txt", "a b\nc\n", "line 2: expected two names"),
        ("g.txt", "", "holds no nodes"),
        ("g.graphml", "<graphml", "not a graphml file"),
        ("g.gexf", "<gexf></gexf>", "not a gexf file"),
        ("g.csv", "0,1\n1\n", "row 2 has 1 columns"),
    ],
)
def test_a_bad_graph_names_the_file(tmp_path: Path, name: str, content: str, says: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(TopologyError) as caught:
        parse(f"graph:{tmp_path / name}")
    assert says in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)
