r"""A lower bound on λ by resolution of the residuals' leading forms, over the complex numbers.

Let K ≍ |F|², g ≍ |R|² what the splitting leaves of it on the kernel of H, and Q the leading forms of R, of degree k in
m variables (forms.py). Then

$$ \lambda \;\ge\; \tfrac r2 + \tfrac12 \, \mathrm{lct}_{\mathbb C}(Q), \qquad
   \mathrm{lct}(Q) = \min\Big( \frac mk, \; \min_{Q(\theta) = 0} \mathrm{lct}_\theta(Q) \Big), \qquad
   \mathrm{lct}_\theta(Q) = \mathrm{rank}\, Q'(\theta) + \mathrm{lct}(\text{rest}) . $$

- A resolution over C has real divisors among its own, so λ(g) ≥ ½ lct_C(R). The lct is lower semicontinuous over C,
  and R(sv)/s^k tends to Q, so lct_C(R) ≥ lct_C(Q). (Over R semicontinuity fails: Varchenko.)
- The blow-up of the origin gives m/k at the exceptional divisor, and the lct at each zero θ in projective space.
- At θ the ideal holds rank Q'(θ) smooth independent functions. The rest, on the kernel of Q'(θ) across θ, is
  eliminated as at w*, begins with forms of its own in fewer variables, and the same is said of these.

Where the recursion is left, the rank alone bounds lct_θ, which is never too much. Variables that Q does not depend on
are factors of its zero set and are left out. The minimum over θ rests on the search for zeros (zeros.py), which goes on
as long as it finds derivatives of new ranks. For a product BA of matrices at zero the recursion gives 2λ of Aoyagi &
Watanabe (2005) for all shapes up to 4×4×4.
"""

import math
from typing import NamedTuple

import numpy as np

from llc.geometry.higher_order.forms import ZERO, Forms, at_points, part_size, reduced, restricted, symmetrized
from llc.geometry.higher_order.zeros import zeros

_MAX_VARIABLES = 48  # on which forms depend: (4, 4, 4) has 32 and takes seconds


class Resolution(NamedTuple):
    """A lower bound of the lct of forms.

    Attributes:
        value: lct ≥ value.
        num_variables: m.
        ranks: the ranks of Q' at the zeros that were found and could lower the bound, each with their number.
    """

    value: float
    num_variables: int
    ranks: dict[int, int]


def resolve(forms: Forms, rng: np.random.Generator) -> Resolution:
    """A lower bound of the lct of homogeneous forms over C.

    Forms in more than 48 variables are restricted to a random subspace (forms.part_size), by which their lct can only
    fall (Lazarsfeld 2004, Positivity II, Theorem 9.5.1).

    Args:
        forms: (equation, variable, …, variable), symmetric in the variables; not all zero.
        rng: of the search for zeros.
    """
    forms = reduced(forms.astype(complex))
    if forms.shape[-1] > _MAX_VARIABLES:
        basis = np.linalg.qr(rng.normal(size=(forms.shape[-1], part_size(forms.ndim - 1, len(forms)))))[0]
        forms = reduced(restricted(forms, basis))
    num_variables, ranks = forms.shape[-1], {}
    if len(forms) > 2 * num_variables:  # as many random combinations of one degree have the same lct as all
        forms = reduced(np.tensordot(rng.normal(size=(2 * num_variables, len(forms))), forms, 1))
    return Resolution(_lct(forms, math.inf, rng, ranks), num_variables, ranks)


def _lct(forms: Forms, limit: float, rng: np.random.Generator, ranks: dict[int, int]) -> float:
    """The smaller of `limit` and the bound for reduced forms; fills `ranks`."""
    best = min(forms.shape[-1] / (forms.ndim - 1), limit)
    looked_at = set()
    for found in zeros(forms, best, rng):
        for zero in sorted(found, key=lambda zero: zero.rank):
            ranks[zero.rank] = ranks.get(zero.rank, 0) + 1
            if zero.rank >= best:
                continue
            rank, rest = _rest(forms, zero.point)
            kind = (rank, None if rest is None else rest.shape)
            if rank >= best or kind in looked_at:
                continue
            looked_at.add(kind)
            best = min(best, rank + (0.0 if rest is None else _lct(rest, best - rank, rng, {})))
    return best


def _rest(forms: Forms, point: np.ndarray) -> tuple[int, Forms | None]:
    """The rank of Q' at a zero, and the leading forms of what is left across it; None where these are of degree > 4."""
    degree = forms.ndim - 1
    across = np.linalg.svd(point[:, None])[0][:, 1:]
    parts = [
        math.comb(degree, power) * restricted(at_points(forms, point, degree - power), across)
        for power in range(1, degree + 1)
    ]
    left, sizes, right = np.linalg.svd(parts[0])
    rank = int(np.sum(sizes > ZERO))
    beyond, kernel = left[:, rank:].conj().T, right[rank:].conj().T
    if not beyond.size or not kernel.size:
        return rank, None
    inverse = right[:rank].conj().T @ np.diag(1 / sizes[:rank]) @ left[:, :rank].conj().T
    for power in (2, 3, 4):
        rest = np.tensordot(beyond, _eliminated(parts, kernel, inverse, power), 1)
        if np.abs(rest).max() > 10 * ZERO:
            return rank, reduced(rest)
    return rank, None


def _eliminated(parts: list[np.ndarray], kernel: np.ndarray, inverse: np.ndarray, power: int) -> Forms:
    """[t^power] of Σ parts along v + u₂(v) + u₃(v), symmetric in v, with u_j = −inverse [t^j]."""
    two = parts[1] if len(parts) > 1 else np.zeros((len(inverse.T), *(len(kernel),) * 2))
    if power == 2:
        return restricted(two, kernel)
    second = -np.tensordot(inverse, restricted(two, kernel), 1)
    mixed = 2 * np.einsum("eij,ia,jbc->eabc", two, kernel, second)
    cubic = mixed + (restricted(parts[2], kernel) if len(parts) > 2 else 0)
    if power == 3:
        return symmetrized(cubic)
    third = -np.tensordot(inverse, cubic, 1)
    found = np.einsum("eij,iab,jcd->eabcd", two, second, second)
    found = found + 2 * np.einsum("eij,ia,jbcd->eabcd", two, kernel, third)
    if len(parts) > 2:
        found = found + 3 * np.einsum("eijl,ia,jb,lcd->eabcd", parts[2], kernel, kernel, second)
    if len(parts) > 3:
        found = found + restricted(parts[3], kernel)
    return symmetrized(found)
