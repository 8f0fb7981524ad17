r"""Known learning coefficients λ with their multiplicities m, as functions: formulas, each with its reference.

$$ Z(t) = \int e^{-t K(w)}\, dw \sim c\, t^{-\lambda} (\log t)^{m-1} , $$

over a small neighbourhood of w*, K analytic, K ≥ 0 = K(w*). All values are local unless a name says `global`: published
values for models are often minima over all true parameters, and the point of interest has more. Constant factors of K
and changes of coordinates do not matter, and neither does replacing K by the sum of squares of any other generators of
the ideal of its squared terms (Watanabe 2009, §§ 2, 6), which is how the models below are reduced to polynomials.
"""

import functools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize


class Coefficient(NamedTuple):
    """λ, exactly, and its multiplicity m."""

    value: Fraction
    multiplicity: int


# Functions of the coordinates


def manifold(codimension: int) -> Coefficient:
    """Zero set a manifold along which K is non-degenerate (Morse–Bott): λ = codimension / 2 = rank / 2.

    Regular models are the case of codimension d. Kernel directions that lie in the zero set cost nothing.
    """
    return Coefficient(Fraction(codimension, 2), 1)


def weighted_homogeneous(weights: Sequence[int], degree: int) -> Coefficient:
    """K with a leading part K₀(s^q₁ w₁, …) = s^degree K₀(w) that is zero at the origin only: λ = Σ qᵢ / degree, m = 1.

    By compactness K ≍ Σ |wᵢ|^(degree/qᵢ), whose sublevel sets have volume c e^λ.
    """
    return Coefficient(Fraction(sum(weights), degree), 1)


def power_of_norm(dim: int, power: int) -> Coefficient:
    """K = (Σ wᵢ²)^k: λ = d / 2k."""
    return weighted_homogeneous([1] * dim, 2 * power)


def monomial(powers: Sequence[int]) -> Coefficient:
    """K = Π wᵢ^(2kᵢ): λ = min 1/(2kᵢ), m the number of minimisers: ∫ K^z = Π 1/(2kᵢz + 1) on [0, 1]^d."""
    largest = max(powers)
    return Coefficient(Fraction(1, 2 * largest), list(powers).count(largest))


def plane_branch(p: int, q: int) -> Coefficient:
    """K = (y^p − x^q)², p and q coprime and > 1: λ = (1/p + 1/q)/2, half the curve's threshold (Kollár 1997, § 8)."""
    return Coefficient((Fraction(1, p) + Fraction(1, q)) / 2, 1)


def disjoint_sum(*parts: Coefficient) -> Coefficient:
    """K = ΣKⱼ over disjoint variables: Z = ΠZⱼ, so λ = Σλⱼ and m = 1 + Σ(mⱼ − 1)."""
    return Coefficient(
        sum((part.value for part in parts), Fraction(0)), 1 + sum(part.multiplicity - 1 for part in parts)
    )


def disjoint_product(*parts: Coefficient) -> Coefficient:
    """K = ΠKⱼ over disjoint variables: the smallest λ; the m of those who have it add up (poles of Πζⱼ)."""
    smallest = min(part.value for part in parts)
    return Coefficient(smallest, sum(part.multiplicity for part in parts if part.value == smallest))


def newton_polyhedron(exponents: Sequence[Sequence[int]]) -> Coefficient:
    """K nondegenerate, such as any sum of even monomials w^s, s in S, with positive coefficients.

    1/λ = t with t(1, …, 1) on the boundary of conv(S) + R₊^d; m is the codimension of the smallest face there
    (Varchenko 1976; Arnold, Gusein-Zade & Varchenko 1988, § 8). By linear duality t = max min_s α·s over weights α ≥ 0
    with Σα = 1, and the optimal weights are the normals of that face: m − 1 is their dimension.

    For any other K with these exponents (real, possibly degenerate) the value is an upper bound on λ.
    """
    points = np.asarray(exponents, dtype=float)
    num_points, dim = points.shape
    simplex = {"A_eq": np.ones((1, dim)), "b_eq": [1.0], "bounds": [(0, None)] * dim}
    with_t = {"A_eq": [[1.0] * dim + [0.0]], "b_eq": [1.0], "bounds": [(0, None)] * dim + [(None, None)]}
    best = _solve(
        [0.0] * dim + [-1.0], A_ub=np.column_stack([-points, np.ones(num_points)]), b_ub=[0.0] * num_points, **with_t
    )
    t = Fraction(-best).limit_denominator(10_000)
    if t <= 0:
        raise ValueError("newton_polyhedron needs K(0) = 0, got an exponent that is zero in every variable.")
    # A constraint that no optimal α satisfies strictly holds with equality on all of them, and lowers the dimension.
    constraints = np.vstack([points, np.eye(dim)])
    levels = np.array([float(t)] * num_points + [0.0] * dim)
    optimal = {"A_ub": -points, "b_ub": [-float(t) + 1e-9] * num_points, **simplex}
    slack = np.array([-_solve(-row, **optimal) for row in constraints]) - levels
    tight = np.vstack([np.ones(dim), constraints[slack < 1e-6]])
    return Coefficient(1 / t, 1 + dim - int(np.linalg.matrix_rank(tight)))


def _solve(cost: Sequence[float], **problem: Any) -> float:
    result = scipy.optimize.linprog(cost, **problem)
    if not result.success:
        raise ArithmeticError(result.message)
    return float(result.fun)


# Linear networks. Inputs M = d₀, hidden H, outputs N = d_L; A: H×M, B: N×H.


def reduced_rank(inputs: int, hidden: int, outputs: int, rank: int = 0) -> Coefficient:
    """λ of y = BAx with true rank r, the minimum over all true (A, B) (Aoyagi & Watanabe 2005, main theorem).

    It is the local value at the deepest points, where A and B have rank r; at r = 0 that is A = B = 0.
    """
    m, h, n, r = inputs, hidden, outputs, rank
    if m + h < n + r:
        return Coefficient(Fraction(m * h - h * r + n * r, 2), 1)
    if n + h < m + r:
        return Coefficient(Fraction(n * h - h * r + m * r, 2), 1)
    if m + n < h + r:
        return Coefficient(Fraction(m * n, 2), 1)
    odd = (m + n + h + r) % 2
    return Coefficient(Fraction(2 * (h + r) * (m + n) - (m - n) ** 2 - (h + r) ** 2 + odd, 8), 1 + odd)


def two_layer(inputs: int, hidden: int, outputs: int, rank_a: int, rank_b: int, rank: int) -> Coefficient:
    """λ of y = BAx at a true (A, B) with a = rk A, b = rk B, r = rk BA, locally.

    The regular directions (`two_layer_rank`) split off; what remains is a product of size M−a, H−a−b+r, N−b at zero:
    λ = (Na + Mb − ab)/2 + λ_RRR(M − a, H − a − b + r, N − b; 0).
    """
    regular = manifold(two_layer_rank(inputs, outputs, rank_a, rank_b))
    rest = reduced_rank(inputs - rank_a, hidden - rank_a - rank_b + rank, outputs - rank_b)
    return disjoint_sum(regular, rest)


def two_layer_rank(inputs: int, outputs: int, rank_a: int, rank_b: int) -> int:
    """Rank of the Hessian at (A, B), the dimension of {dB A + B dA}: Na + Mb − ab."""
    return outputs * rank_a + inputs * rank_b - rank_a * rank_b


def deep_linear(widths: Sequence[int], rank: int) -> Coefficient:
    r"""W_L ⋯ W₁ of widths d₀, …, d_L and true rank r, the minimum over all true parameters (Aoyagi 2024, theorem 1).

    With Dᵢ = dᵢ − r, S the ℓ + 1 smallest with max S ≤ ΣS / ℓ < min Sᶜ, M = ⌈ΣS/ℓ⌉ and a = ΣS − (M − 1)ℓ:
    λ = r(d₀ + d_L − r)/2 + a(ℓ − a)/4ℓ − (ℓ − 1)(ΣS)²/4ℓ + ½ Σ_{i<j∈S} DᵢDⱼ, m = a(ℓ − a) + 1.
    It is the local value at the deepest points, where every Wᵢ has rank r.
    """
    excess = sorted(width - rank for width in widths)
    if excess[0] < 0:
        raise ValueError(f"deep_linear needs a rank up to the smallest width {min(widths)}, got {rank}.")
    for ell in range(1, len(excess)):
        small, rest = excess[: ell + 1], excess[ell + 1 :]
        total = sum(small)
        if total >= ell * small[-1] and (not rest or total < ell * rest[0]):
            break
    a = total - (math.ceil(Fraction(total, ell)) - 1) * ell
    pairs = Fraction(total**2 - sum(x * x for x in small), 2)
    regular = Fraction(rank * (widths[0] + widths[-1] - rank), 2)
    value = regular + Fraction(a * (ell - a) - (ell - 1) * total**2, 4 * ell) + pairs / 2
    return Coefficient(value, a * (ell - a) + 1)


def deep_linear_rank(weights: Sequence[np.ndarray], rtol: float = 1e-6) -> int:
    """Rank of the Hessian at W₁, …, W_L (Wᵢ: dᵢ × dᵢ₋₁): Σᵢ (uᵢ − uᵢ₋₁) vᵢ, u₀ = 0, the dimension of Σᵢ im Uᵢ ⊗ im Vᵢᵀ.

    uᵢ = rk Uᵢ, Uᵢ = W_L ⋯ Wᵢ₊₁ and vᵢ = rk Vᵢ, Vᵢ = Wᵢ₋₁ ⋯ W₁; singular values below `rtol` of the largest count as 0.
    """

    def rank(factors: Sequence[np.ndarray], width: int) -> int:
        product = functools.reduce(lambda below, weight: weight @ below, factors, np.eye(width))
        return int(np.linalg.matrix_rank(product, rtol=rtol))

    after = [0] + [rank(weights[i + 1 :], weight.shape[0]) for i, weight in enumerate(weights)]
    before = [rank(weights[:i], weights[0].shape[1]) for i in range(len(weights))]
    return sum((after[i + 1] - after[i]) * before[i] for i in range(len(weights)))


def factorization_of_squares(inputs: int, hidden: int, outputs: int) -> Coefficient:
    """Nonnegative factors (U∘U)(V∘V), U: N×H, V: H×M, at zero with true matrix zero: λ = H min(M, N)/4.

    Nothing cancels between nonnegative terms: K ≍ Σ_h (Σᵢ uᵢₕ⁴)(Σⱼ vₕⱼ⁴), a disjoint sum of disjoint products.
    """
    sides = [power_of_norm(size, 2) for size in (inputs, outputs)]
    return disjoint_sum(*[disjoint_product(*sides)] * hidden)


# Other models


def tanh_units(hidden: int) -> Coefficient:
    """Σ_h b_h tanh(a_h x), true function zero, at zero: λ = (H + i² + i)/(4i + 2) with i = max{j: j² ≤ H}.

    m = 2 where i² = H, else 1. It needs at least H inputs of distinct size. Aoyagi & Watanabe 2005, Resolution of
    singularities and the generalization error with Bayesian estimation for layered neural network.
    """
    i = math.isqrt(hidden)
    return Coefficient(Fraction(hidden + i * i + i, 4 * i + 2), 2 if i * i == hidden else 1)


def two_gaussians() -> Coefficient:
    """½N(a, 1) + ½N(b, 1), truth N(0, 1): K ≍ u² + v⁴ with u = (a + b)/2, v = (a − b)/2, first and second moments."""
    return weighted_homogeneous([2, 1], 4)


def gaussian_weight() -> Coefficient:
    """(1 − a)N(0, 1) + aN(b, 1) at a = b = 0: K ≍ a²b², λ = 1/2, m = 2 (Watanabe 2009)."""
    return monomial([1, 1])


def naive_bayes(features: int) -> Coefficient:
    """Two classes with independent binary features, truth independent features, at equal classes of interior weight p.

    In coordinates μᵢ (marginals), δᵢ (differences of the classes) and p, the central joint moments are cₖ(p) Π δᵢ, with
    c₂ = p(1 − p) ≠ 0, and those of three and more features lie in the ideal of the δᵢδⱼ. KL divergence being equivalent
    to the squared distance of probabilities, K ≍ Σ(μᵢ − μᵢ*)² + Σ_{i<j} δᵢ²δⱼ²: λ is n/2 more than that of a Newton
    polyhedron, which is 1/2 (m = 2) for n = 2 and n/4 above.
    """
    pairs = [[2 * (k in (i, j)) for k in range(features)] for i in range(features) for j in range(i)]
    return disjoint_sum(manifold(features), newton_polyhedron(pairs))


def superposition(columns: int, polygon: int | None = None, *, biased: bool = False) -> Coefficient:
    """Toy model of superposition with c columns at a k-gon, k = 5 or 6; None takes k = c. λ = (3k − 1)/2 or more.

    All is regular but the rotation. Columns beyond the polygon are zero: with a negative bias they are dead in a
    neighbourhood, and nothing depends on their 3 parameters each; a `biased` one, with a positive bias, has an output
    that depends on all of its 3. Chen et al. 2023, arXiv 2310.06301, table of critical points.
    """
    polygon = columns if polygon is None else polygon
    return manifold(3 * polygon - 1 + 3 * biased)


def one_head_attention(tokens: int, width: int, rank_unembedding: int = 0, rank_embedding: int = 0) -> Coefficient:
    """One-head softmax attention without residual stream, uniform truth, at E U P = 0: a two-layer linear network.

    E: v×e embeds, U: e×v unembeds, P removes the mean of the logits. The logits of a sequence are convex combinations
    of the rows of E U, and those of a constant sequence are a row, so that the ideal is that of the entries of E U P
    whatever the attention matrix, and K ≍ ‖E U P‖².
    """
    return two_layer(tokens - 1, width, tokens, rank_unembedding, rank_embedding, 0)


def factor_analysis_rank(variables: int, factors: int) -> int:
    """Dimension of the covariances with l factors, m + ml − l(l − 1)/2, within the Ledermann bound."""
    return variables * (factors + 1) - factors * (factors - 1) // 2


def factor_analysis(variables: int, factors: int, true_factors: int) -> Coefficient:
    """Gaussian factor analysis with k factors, l true ones, m variables: λ = ¼((k + 2)m + l(m − k + 1)), locally.

    At a loading with k − l zero columns, within the Ledermann bound (m − k)² >= m + k. It is r/2 + (d − D − r)/4 with
    r the rank of l factors, d = m(k + 1), and D = l(l − 1)/2 + l(k − l) the orbit of O(k): of the m(k − l) entries of
    the zero columns l(k − l) are rotations, and on the others K is quartic. Its multiplicity is 1 for k = 1, by the
    Newton polyhedron (2 for m = 2, outside of the bound), and is taken to be so for others.
    """
    if (variables - factors) ** 2 < variables + factors:
        raise ValueError(f"factor_analysis needs (m − k)² >= m + k, got m = {variables}, k = {factors}.")
    rest = Fraction((variables - true_factors) * (factors - true_factors), 4)
    return Coefficient(Fraction(factor_analysis_rank(variables, true_factors), 2) + rest, 1)


def latent_dirichlet_allocation(words: int, documents: int, topics: int, rank: int) -> Coefficient:
    """Topic model at interior points: (words − 1)/2 + λ_RRR of documents − 1, topics − 1 and words − 1 (Hayashi 2021).

    With D the differences of the topics to the last one, and A′ those of the documents' weights to the last document's,
    the distributions of words are b + D A with b free, and their differences are D A′. b takes words − 1 directions.
    """
    return disjoint_sum(manifold(words - 1), reduced_rank(documents - 1, topics - 1, words - 1, rank))


def modular_addition(modulus: int, units: int) -> Coefficient:
    """K units w_c (u_a + v_b)² on all pairs (a, b), at generic zeros: λ = min(K (3p − 2), p³)/2.

    The fibre is a manifold there, and λ half the rank. A unit has 3p parameters and two symmetries: scale, and u + c
    with v − c. There are p³ outputs. (As a function of any real inputs x in R^2p, w_c (a·x)², the second one is none
    and quadratic forms have p²(2p + 1) coefficients: K (3p − 1)/2 and p²(2p + 1)/2. On pairs of one-hot inputs those
    values are too large.)
    """
    return manifold(min(units * (3 * modulus - 2), modulus**3))


def polynomial_net(layers: int, power: int) -> Coefficient:
    """L layers of W = [[a+b, a²], [a², b²]], t^k between, truth a = b = 0: λ = 3/(4e), e = 1 + k + … + k^(L−1).

    With weights (2, 1) for (u, a), u = a + b, all entries of W begin with weight 2 and the outputs with 2e. The leading
    part, of W = [[u, a²], [a², a²]], is zero at the origin only: the output is u^e x₁^… for a = 0; else the two outputs
    p₁, p₂ of a layer are proportional for u = a² only, and then equal, so that p₁^k + p₂^k ≠ 0. Values as in
    arXiv 2608.20183.
    """
    return weighted_homogeneous([2, 1], 4 * sum(power**i for i in range(layers)))
