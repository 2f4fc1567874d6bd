"""Optimizers against theory: dense networks of quadratic losses in float64, and the stability of outer momentum.

Peer i minimizes the sum over coordinates of h_i (x - b_i)^2 / 2 by exact gradient steps; W comes from the topologies
themselves.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from gossip.errors import LocalError
from gossip.methods.catalogue import find
from gossip.methods.optimizer_stage import Optimizer
from gossip.methods.optimizers import OPTIMIZERS
from gossip.methods.outer_steps import ADAM_STEP_MAX, momentum_in
from gossip.methods.requirements import State
from gossip.methods.stability import Outer, random_bound, random_rate, static_bound
from topology.links import parse_topology
from topology.quadratic import fixed_point

N, P = 16, 3
ETA = 0.1


def optimizer(text: str) -> Optimizer:
    return find("optimizer", text, OPTIMIZERS)


def weights(topology: str, n: int = N, rule: str = "metropolis-hastings", round: int = 0) -> Tensor:
    return torch.from_numpy(parse_topology(topology, seed=0, weights=rule).matrix(n, round).toarray())


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(
    method: Optimizer,
    rounds: int,
    w: Callable[[int], Tensor],
    optima: Tensor,
    *,
    curvature: Tensor | float = 1.0,
    eta: float = ETA,
    steps: int = 1,
    start: Tensor | None = None,
    lossy: Callable[[Tensor], Tensor] = lambda vectors: vectors,
) -> tuple[Tensor, State]:
    """Run a dense network; return float64[n, P] and the state, its tensors alike: rules go value by value."""
    x = torch.zeros_like(optima, dtype=torch.float64) if start is None else start.clone()
    curvature = torch.as_tensor(curvature, dtype=torch.float64).expand(len(optima))[:, None]
    state = method.init(x.numel())
    for round in range(rounds):
        correction = method.correction(state)
        trained = x
        for _ in range(steps):
            trained = (
                trained - eta * curvature * (trained - optima) + (0.0 if correction is None else correction)
            )
        own = torch.stack(method.publish(x, trained, steps, state))
        decoded = lossy(own)
        mixed = own + w(round) @ decoded - decoded
        if method.of_row:
            state = state | of_rows(method.of_row, w(round), own, decoded)
        in_turn = method.ramp(round) if method.ramp else method
        x, state = in_turn.update(x, trained, list(mixed), steps, state)
    return x, state


def of_rows(
    of_row: Callable[[Sequence[float], Sequence[Tensor]], State], w: Tensor, own: Tensor, decoded: Tensor
) -> State:
    """Return what an optimizer finds of the rows of all peers: name -> float64[n, 1]; vectors are float64[K, n, P]."""
    rows = []
    for peer, row in enumerate(w):
        others = [index for index in range(len(row)) if index != peer and row[index] > 0]
        vectors = [own[:, peer].flatten(), *(decoded[:, other].flatten() for other in others)]
        rows.append(of_row([float(row[index]) for index in (peer, *others)], vectors))
    return {name: torch.stack([found[name] for found in rows]) for name in rows[0]}


def static(matrix: Tensor) -> Callable[[int], Tensor]:
    return lambda round: matrix


RING, LAZY = weights("ring"), weights("ring", rule="lazy")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_first_vector_is_the_adapter_and_all_are_as_many_as_declared(name: str) -> None:
    method = optimizer(name)
    start, trained = normal(P), normal(P, seed=1)
    sent = method.publish(start, trained, 3, method.init(P))
    assert torch.equal(sent[0], trained)
    assert [tuple(each.shape) for each in sent] == [(P,)] * method.vectors
    assert method.correction(method.init(P)) is None


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_inputs_and_states_are_never_written(name: str) -> None:
    method = optimizer(name)
    state = method.init(P)
    for seed in range(3):
        start, trained, mixed = normal(P, seed=seed), normal(P, seed=9), normal(method.vectors, P, seed=8)
        before = [each.clone() for each in (start, trained, mixed, *state.values())]
        method.correction(state)
        method.publish(start, trained, 2, state)
        _, after = method.update(start, trained, list(mixed), 2, state)
        for old, new in zip(before, (start, trained, mixed, *state.values()), strict=True):
            assert torch.equal(old, new)
        state = after
        assert all(value.dtype == start.dtype for value in state.values())


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("lossy", [False, True], ids=["exact", "lossy"])
def test_mixing_alone_keeps_the_mean(name: str, steps: int, lossy: bool) -> None:
    """Nothing to learn, doubly stochastic W: the mean stays, also if readers see roughly rounded values."""
    start = normal(N, P)
    x, _ = run(
        optimizer(name),
        25,
        static(LAZY),
        torch.zeros(N, P),
        eta=0.0,
        steps=steps,
        start=start,
        lossy=(lambda v: (v * 8).round() / 8) if lossy else (lambda v: v),
    )
    assert not torch.allclose(x, start)
    torch.testing.assert_close(x.mean(dim=0), start.mean(dim=0), atol=1e-10, rtol=0)


def test_none_returns_what_was_mixed() -> None:
    mixed = normal(P)
    method = optimizer("none")
    assert method.update(normal(P), normal(P), [mixed], 1, method.init(P))[0] is mixed


@pytest.mark.parametrize("steps", [1, 20])
def test_d_psgd_stands_still_where_theory_says(steps: int) -> None:
    """(I - aW)^-1 (1 - a) W b, a = (1 - eta)^H: not the mean of the optima."""
    optima = normal(N, P)
    x, _ = run(optimizer("none"), 400, static(RING), optima, steps=steps)
    w = parse_topology("ring", seed=0).matrix(N)
    expected = fixed_point(w, optima.numpy(), ETA, steps)
    np.testing.assert_allclose(x.numpy(), expected, atol=1e-10)
    assert float((x - optima.mean(dim=0)).abs().max()) > 0.01


@pytest.mark.parametrize("name", ["d2", "k-gt"])
@pytest.mark.parametrize("steps", [1, 20])
@pytest.mark.parametrize("equal", [True, False], ids=["equal-curvature", "curvatures-1-to-3"])
def test_corrected_optimizers_reach_the_minimum_of_all(name: str, steps: int, equal: bool) -> None:
    """Where D-PSGD is biased, these are exact: x = sum h_i b_i / sum h_i at every peer, corrections that sum to 0."""
    optima, curvature = normal(8, P), torch.linspace(1.0, 1.0 if equal else 3.0, 8, dtype=torch.float64)
    eta, network = 0.02, static(weights("ring", 8, "lazy" if name == "d2" else "metropolis-hastings"))
    best = (curvature[:, None] * optima).sum(dim=0) / curvature.sum()
    x, state = run(optimizer(name), 1200, network, optima, curvature=curvature, eta=eta, steps=steps)
    assert float((x - best).abs().max()) < 1e-8
    (correction,) = state.values()
    assert float(correction.sum(dim=0).abs().max()) < 1e-10
    plain, _ = run(optimizer("none"), 1200, network, optima, curvature=curvature, eta=eta, steps=steps)
    assert float((plain - best).abs().max()) > 0.01


@pytest.mark.parametrize("name", ["d2", "k-gt"])
def test_corrections_sum_to_zero_in_every_round(name: str) -> None:
    for rounds in range(1, 6):
        _, state = run(optimizer(name), rounds, static(LAZY), normal(N, P), steps=7)
        (correction,) = state.values()
        assert float(correction.sum(dim=0).abs().max()) < 1e-12
        assert float(correction.abs().max()) > 1e-3


def test_k_gt_also_works_over_pairs_that_change() -> None:
    optima = normal(N, P)
    x, _ = run(
        optimizer("k-gt"),
        600,
        lambda round: weights("random-matching", round=round),
        optima,
        eta=0.02,
        steps=5,
    )
    assert float((x - optima.mean(dim=0)).abs().max()) < 1e-8


@pytest.mark.parametrize(("name", "rule"), [("k-gt", "metropolis-hastings"), ("d2", "lazy")])
def test_corrected_optimizers_bear_a_lossy_codec(name: str, rule: str) -> None:
    """Rounded to 8 bits, as in blocks of int8, they end far nearer to the minimum than exact D-PSGD; no bias at all."""

    def rounded(vectors: Tensor) -> Tensor:
        scale = vectors.abs().amax(dim=-1, keepdim=True).clamp_min(1e-300) / 127
        return (vectors / scale).round() * scale

    optima, network = normal(8, 64), static(weights("ring", 8, rule))
    best = optima.mean(dim=0)
    x, _ = run(optimizer(name), 1200, network, optima, steps=20, eta=0.02, lossy=rounded)
    plain, _ = run(optimizer("none"), 1200, network, optima, steps=20, eta=0.02)
    assert float((x - best).norm()) < 0.02 * float((plain - best).norm())
    assert float((x.mean(dim=0) - best).abs().max()) < 1e-8


def test_d2_diverges_on_the_hypercube_unless_weights_are_lazy() -> None:
    """Metropolis-Hastings on 16 peers: smallest eigenvalue -0.6, below -1/3."""
    optima = normal(N, P)
    assert float(torch.linalg.eigvalsh(weights("hypercube"))[0]) == pytest.approx(-0.6)
    apart, _ = run(optimizer("d2"), 100, static(weights("hypercube")), optima)
    assert float((apart - optima.mean(dim=0)).abs().max()) > 1e3
    together, _ = run(optimizer("d2"), 400, static(weights("hypercube", rule="lazy")), optima)
    assert float((together - optima.mean(dim=0)).abs().max()) < 1e-8


def test_d2_diverges_below_minus_a_third_and_not_above() -> None:
    """Small steps; W with eigenvalues 1 and l on disagreement: W = J + l (I - J)."""
    optima, mean = normal(N, P), torch.full((N, N), 1.0 / N, dtype=torch.float64)
    for eigenvalue, converges in ((-0.32, True), (-0.35, False)):
        w = mean + eigenvalue * (torch.eye(N, dtype=torch.float64) - mean)
        x, _ = run(optimizer("d2"), 3000, static(w), optima, eta=0.01)
        assert (float((x - x.mean(dim=0)).abs().max()) < 1e-6) == converges


def test_momentum_zero_of_qg_is_none_bitwise() -> None:
    optima = normal(N, P)
    x, _ = run(optimizer("qg:0"), 30, static(RING), optima, steps=4)
    plain, _ = run(optimizer("none"), 30, static(RING), optima, steps=4)
    assert torch.equal(x, plain)


def test_qg_alone_is_its_closed_recursion() -> None:
    """One peer, H = 1: m' = mu m + (1 - mu)(x - x'), x' = x - eta (x - b) - mu m, in the paper's form with eta m^."""
    mu, optimum = 0.9, normal(1, P)
    x, _ = run(optimizer(f"qg:{mu}"), 50, static(torch.ones(1, 1, dtype=torch.float64)), optimum)
    position, m_hat = torch.zeros(1, P, dtype=torch.float64), torch.zeros(1, P, dtype=torch.float64)
    for _ in range(50):
        after = position - ETA * (mu * m_hat + (position - optimum))
        m_hat = mu * m_hat + (1 - mu) * (position - after) / ETA
        position = after
    torch.testing.assert_close(x, position, atol=1e-12, rtol=0)


def test_qg_helps_over_d_psgd_in_getting_there() -> None:
    optima = normal(N, P) + 5
    best, left = optima.mean(dim=0), []
    for name in ("qg", "none"):
        x, _ = run(optimizer(name), 30, static(RING), optima, steps=2, eta=0.01)
        left.append(float((x.mean(dim=0) - best).norm()))
    assert left[0] < 0.8 * left[1]


def test_noloco_s_population_mean_is_heavy_ball_on_the_mean() -> None:
    """Random pairs keep the mean, so it follows one heavy ball driven by the mean displacement, to rounding."""
    mu, gamma, optima = 0.5, 0.7, normal(N, P)
    x, _ = run(
        optimizer("noloco"), 40, lambda round: weights("random-matching", round=round), optima, steps=3
    )
    shrink, best = (1 - ETA) ** 3, optima.mean(dim=0)
    phi, m = torch.zeros(P, dtype=torch.float64), torch.zeros(P, dtype=torch.float64)
    for _ in range(40):
        m = mu * m + gamma * (shrink - 1) * (phi - best)
        phi = phi + m
    torch.testing.assert_close(x.mean(dim=0), phi, atol=1e-12, rtol=0)


def test_diloco_over_the_complete_graph_is_data_parallel_sgd() -> None:
    optima = normal(N, P)
    x, _ = run(optimizer("diloco:0:1"), 30, static(weights("complete")), optima)
    position = torch.zeros(P, dtype=torch.float64)
    for _ in range(30):
        position = position - ETA * (position - optima).mean(dim=0)
    torch.testing.assert_close(x, position.expand(N, P), atol=1e-13, rtol=0)


def test_diloco_is_torch_s_nesterov_on_the_outer_gradient() -> None:
    optima = normal(N, P)
    x, _ = run(optimizer("diloco:0.9"), 20, static(weights("complete")), optima, steps=5)
    phi = torch.zeros(P, dtype=torch.float64, requires_grad=True)
    outer = torch.optim.SGD([phi], lr=0.7, momentum=0.9, nesterov=True)
    for _ in range(20):
        phi.grad = (1 - (1 - ETA) ** 5) * (phi.detach() - optima.mean(dim=0))
        outer.step()
    torch.testing.assert_close(x, phi.detach().expand(N, P), atol=1e-12, rtol=0)


def test_the_momentum_of_diloco_grows_with_the_rounds_unless_it_is_given() -> None:
    assert [momentum_in(turn) for turn in (0, 50, 100, 10**9)] == pytest.approx([0.5, 0.7, 0.9, 0.9])
    optima = normal(N, P)
    x, _ = run(optimizer("diloco"), 120, static(weights("complete")), optima, eta=0.01)
    phi = torch.zeros(P, dtype=torch.float64, requires_grad=True)
    outer = torch.optim.SGD([phi], lr=0.7, momentum=0.5, nesterov=True)
    for round in range(120):
        outer.param_groups[0]["momentum"] = momentum_in(round)
        phi.grad = 0.01 * (phi.detach() - optima.mean(dim=0))
        outer.step()
    torch.testing.assert_close(x, phi.detach().expand(N, P), atol=1e-12, rtol=0)
    assert optimizer("diloco:0.9").ramp is None
    assert optimizer("diloco").outer == Outer(0.9, 0.7, nesterov=True), (
        "what is stable at its largest is stable"
    )


@pytest.mark.parametrize(
    "text",
    [
        "qg:1",
        "qg:-0.1",
        "qg:nan",
        "noloco:0.5:0",
        "noloco:0.5:5",
        "d2:1",
        "diloco:x",
        "fedexp:0",
        "fedadam:2",
        "fedadam:nan",
    ],
)
def test_parameters_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(LocalError, match=r"must be|takes 0"):
        optimizer(text)


# -- steps that are not linear: starts are mixed, and the step is taken on mixed displacements


@pytest.mark.parametrize("name", ["fedexp", "fedadam"])
@pytest.mark.parametrize("topology", ["random-matching", "epidemic:3", "hypercube"])
def test_with_nothing_to_learn_a_step_that_is_not_linear_is_plain_mixing(name: str, topology: str) -> None:
    """However far apart peers begin, and whether or not W keeps the mean: disagreement is not taken for progress."""
    start, nothing = 100.0 * normal(N, P), torch.zeros(N, P)
    found = [
        run(optimizer(each), 12, lambda round: weights(topology, round=round), nothing, eta=0.0, start=start)[
            0
        ]
        for each in (name, "none")
    ]
    torch.testing.assert_close(*found, atol=1e-11, rtol=0)


def displacement(x: Tensor, optima: Tensor, steps: int) -> Tensor:
    """Return what so many exact gradient steps change, float64[n, P]."""
    return (1.0 - (1.0 - ETA) ** steps) * (optima - x)


def test_fedexp_over_the_complete_graph_is_fedexp_at_a_server() -> None:
    """The paper's eta = max(1, sum |d_j|^2 / (2 n (|mean d|^2 + eps))), as long as it is below our bound of n / 2."""
    optima, eps = normal(N, P) + 1.5, 1e-3
    x, _ = run(optimizer(f"fedexp:{eps}"), 4, static(weights("complete")), optima, steps=3)
    position, etas = torch.zeros(P, dtype=torch.float64), []
    for _ in range(4):
        d = displacement(position, optima, 3)
        etas.append(max(1.0, float(d.square().sum() / (2 * N * (d.mean(dim=0).square().sum() + eps)))))
        position = position + etas[-1] * d.mean(dim=0)
    torch.testing.assert_close(x, position.expand(N, P), atol=1e-12, rtol=0)
    assert etas[0] == 1.0
    assert 3.0 < max(etas) < N / 2


def test_fedexp_takes_no_step_of_its_own_where_all_learn_the_same() -> None:
    optima = normal(1, P).expand(N, P)
    found = [run(optimizer(name), 10, static(RING), optima)[0] for name in ("fedexp", "none")]
    torch.testing.assert_close(*found, atol=1e-12, rtol=0)


def eta_of(displacements: Tensor, row: Sequence[float]) -> float:
    """Return how far fedexp takes the mean displacement of a row, ours first."""
    method, zero = optimizer("fedexp:1e-12"), torch.zeros_like(displacements[0])
    assert method.of_row
    mean = torch.tensor(row, dtype=torch.float64) @ displacements
    found = method.of_row(row, [torch.cat([each, each]) for each in displacements])
    after, _ = method.update(zero, displacements[0], [mean, mean], 1, method.init(len(zero)) | found)
    return float(after.norm() / mean.norm())


@pytest.mark.parametrize("k", [1, 2, 5])
def test_fedexp_goes_by_how_unlike_displacements_are_and_no_liar_takes_it_farther(k: int) -> None:
    row, apart = [1.0 / k] * k, torch.eye(k, dtype=torch.float64)
    assert eta_of(apart, row) == pytest.approx(max(1.0, k / 2))
    assert eta_of(torch.ones(k, 3, dtype=torch.float64), row) == pytest.approx(1.0)
    opposed = torch.ones(k, 3, dtype=torch.float64)
    opposed[: k // 2] = -0.999
    assert eta_of(opposed, row) <= max(1.0, k / 2) + 1e-9
    liar = torch.ones(k, 3, dtype=torch.float64)
    liar[-1] = torch.tensor([1e6, -1e6, 0.0])
    assert eta_of(liar, row) <= max(1.0, k / 2) + 1e-9


def test_fedadam_over_the_complete_graph_is_fedadam_at_a_server() -> None:
    optima, lr, tau = normal(N, P), 0.05, 1e-3
    x, state = run(optimizer(f"fedadam:{lr}:{tau}"), 30, static(weights("complete")), optima, steps=3)
    position, m = torch.zeros(P, dtype=torch.float64), torch.zeros(P, dtype=torch.float64)
    v = torch.full((P,), tau**2, dtype=torch.float64)
    for _ in range(30):
        d = displacement(position, optima, 3).mean(dim=0)
        m, v = 0.9 * m + 0.1 * d, 0.99 * v + 0.01 * d**2
        position = position + lr * m / (v.sqrt() + tau)
    torch.testing.assert_close(x, position.expand(N, P), atol=1e-12, rtol=0)
    torch.testing.assert_close(state["v"], v.expand(N, P), atol=1e-12, rtol=0)


def test_fedadam_moves_no_value_farther_than_its_bound_whatever_comes() -> None:
    """The sequence that makes the most of the moments, d_t = (beta_2 / beta_1)^t, and values at random."""
    lr, zero = 0.05, torch.zeros(2, dtype=torch.float64)
    method, reached = optimizer(f"fedadam:{lr}:1e-9"), 0.0
    state, noise = method.init(2), 10.0 ** normal(300, seed=3) * normal(300)
    for round in range(300):
        came = torch.tensor([(0.99 / 0.9) ** round, noise[round]], dtype=torch.float64)
        after, state = method.update(zero, zero, [came, came], 1, state)
        assert float(after.abs().max()) <= ADAM_STEP_MAX * lr * (1 + 1e-9)
        reached = float(after[0])
    assert reached > 0.99 * ADAM_STEP_MAX * lr


# -- stability of outer momentum


def outer_bound(mu: float) -> float:
    """Heavy ball over random pairs among many peers is stable below it (algorithms.md section 2)."""
    return 2.0 * (1.0 - mu * mu)


def static_rate(outer: Outer, eigenvalue: float) -> float:
    """Return the factor of disagreement per round in an eigenvector of a static W: the oracle of its bound."""
    p, q, r, s = outer.recursion
    pull = eigenvalue - 1.0
    return float(np.abs(np.linalg.eigvals(np.array([[1.0 + p * pull, q], [r * pull, s]]))).max())


def test_plain_averaging_of_pairs_halves_disagreement() -> None:
    assert random_rate(Outer(0.0, 1.0)) == pytest.approx(0.5, abs=1e-12)
    assert random_rate(Outer(0.0, 1.0, nesterov=True)) == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize(("mu", "gamma", "rate"), [(0.5, 0.7, 0.700), (0.5, 1.6, 1.05), (0.9, 0.7, 1.10)])
def test_rates_over_random_pairs(mu: float, gamma: float, rate: float) -> None:
    """algorithms.md section 2, simulated there with 4000 peers."""
    assert random_rate(Outer(mu, gamma)) == pytest.approx(rate, abs=0.002)


@pytest.mark.parametrize("mu", [0.0, 0.3, 0.5, 0.9, 0.99])
def test_the_closed_bound_is_where_the_rate_is_one(mu: float) -> None:
    assert random_bound(mu) == pytest.approx(outer_bound(mu), abs=1e-7)
    assert (
        random_rate(Outer(mu, 0.999 * outer_bound(mu))) < 1 < random_rate(Outer(mu, 1.001 * outer_bound(mu)))
    )


@pytest.mark.parametrize("nesterov", [False, True], ids=["heavy-ball", "nesterov"])
@pytest.mark.parametrize("eigenvalue", [-1.0, -0.6, 0.0, 0.5])
def test_the_static_bound_is_where_the_rate_is_one(nesterov: bool, eigenvalue: float) -> None:
    for mu in (0.0, 0.5, 0.9):
        bound = static_bound(mu, eigenvalue, nesterov=nesterov)
        assert static_rate(Outer(mu, 0.999 * bound, nesterov), eigenvalue) < 1
        assert static_rate(Outer(mu, 1.001 * bound, nesterov), eigenvalue) > 1


def log_rate_of_pairs(name: str, n: int = 1000, rounds: int = 40) -> float:
    """Return the mean log change of squared disagreement per round, over the later half, from the optimizer itself."""
    method, x, squares = optimizer(name), normal(n, 1), []
    state = method.init(n)
    generator = torch.Generator().manual_seed(1)
    for _ in range(rounds):
        order = torch.randperm(n, generator=generator)
        partner = torch.empty_like(order)
        partner[order[0::2]], partner[order[1::2]] = order[1::2], order[0::2]
        x, state = method.update(x, x, [(x + x[partner]) / 2], 1, state)
        squares.append(float((x - x.mean()).square().sum()))
    return float(np.log(squares[-1] / squares[rounds // 2 - 1]) / (rounds // 2))


@pytest.mark.parametrize(
    "name", ["noloco:0.5:0.7", "noloco:0.5:1.6", "noloco:0.9:0.7", "diloco:0.9:0.7", "diloco:0.9:0.9"]
)
def test_simulated_pairs_agree_with_the_rate(name: str) -> None:
    """Also that they diverge where it says so: noloco:0.5:1.6, noloco:0.9:0.7 and diloco:0.9:0.9."""
    outer = optimizer(name).outer
    assert outer is not None
    measured = log_rate_of_pairs(name)
    assert measured == pytest.approx(np.log(random_rate(outer)), abs=0.03)
    assert (measured > 0) == (name in ("noloco:0.5:1.6", "noloco:0.9:0.7", "diloco:0.9:0.9"))
