r"""Independent features of a model: how many, how large, and in which layers and units they live.

$$ C_{ab} = \langle \partial_a f, \partial_b f \rangle_{L^2(\text{data})}
          = \tfrac1n \sum_{ic} \partial_a f_c(x_i)\, \partial_b f_c(x_i), \qquad C u_r = \sigma_r u_r . $$

The eigenvectors $u_r$ are directions in which the function changes independently of all others, by orthogonal
functions of size $\sigma_r$. For the squared error at an exact fit the Hessian is a multiple of C (Bushnaq et al. 2024,
arXiv 2405.10927), so that their number is its rank. The participation number $(\sum \sigma)^2 / \sum \sigma^2$ counts
the large ones. The share of unit p in feature r is the squared norm of its part of $u_r$. The coupling of two units is
$\lVert C_{pq} \rVert_F / \sqrt{\lVert C_{pp} \rVert_F \lVert C_{qq} \rVert_F}$, 0 where all their features are
orthogonal and 1 where they are the same. Modularity (Newman & Girvan 2004) of the graph of couplings says whether units
fall into groups with separate features.

All of it follows from the matrices $K_p = J_p J_p^\top$ of the units: the eigenvalues of $\sum_p K_p / n$ with
eigenvectors $v_r$, the shares $v_r \cdot K_p v_r / n \sigma_r$, and
$\lVert C_{pq} \rVert_F^2 = \langle K_p, K_q \rangle / n^2$. Beyond 5,000 params they are computed so.
"""

import dataclasses
from collections.abc import Callable

import networkx
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float, Int, PyTree

from llc.geometry.features.behavioral_gradients import BehavioralGradients, behavioral_gradients
from llc.geometry.features.kernels import grouped_kernels
from llc.geometry.features.units import MovingLeaf, moving_leaves
from llc.posterior.arguments import require_integer

_DENSE = 5000  # params up to which C is a matrix
_FLOOR = 8 * float(np.finfo(np.float64).eps)  # of an eigenvalue of K, relative to the largest, for each row
_SEEDS = 5  # of the search for communities, of which the best is taken


@dataclasses.dataclass(frozen=True)
class FeatureBasis:
    """Orthogonal features at w*; build it with `feature_basis`.

    Attributes:
        sizes: σ_r, eigenvalues of C above round-off, largest first, in the square of outputs per param.
        units: names, such as `layers.0[3]`, in the order of the params.
        layers: path of the layer of each unit.
        unit_shares: of each unit in each feature; rows add up to 1.
        couplings: between units, 0 to 1; 0 for a unit without effect.
        communities: groups of units, by number, that are coupled among themselves more than by chance.
        modularity: of these groups, at most 1; 0 where all are coupled alike, or none at all.
        gram: C; None beyond 5,000 params.
        dim: N, the number of params that move.
    """

    sizes: Float[np.ndarray, "feature"]
    units: tuple[str, ...]
    layers: tuple[str, ...]
    unit_shares: Float[np.ndarray, "feature unit"]
    couplings: Float[np.ndarray, "unit unit"]
    communities: tuple[tuple[int, ...], ...]
    modularity: float
    gram: Float[np.ndarray, "dim dim"] | None
    dim: int

    @property
    def rank(self) -> int:
        """Number of independent features: rank C."""
        return len(self.sizes)

    @property
    def participation(self) -> float:
        """(Σσ)² / Σσ²: r for r features of one size, 1 where one outweighs all others."""
        squares = float(np.sum(self.sizes**2))
        return float(self.sizes.sum()) ** 2 / squares if squares else 0.0

    @property
    def layer_shares(self) -> dict[str, Float[np.ndarray, "feature"]]:
        """Share of each layer in each feature."""
        names = np.array(self.layers)
        return {path: self.unit_shares[:, names == path].sum(axis=1) for path in dict.fromkeys(self.layers)}

    @property
    def units_per_feature(self) -> Float[np.ndarray, "feature"]:
        """1 / Σ share²: over how many units a feature is spread."""
        return 1 / np.sum(self.unit_shares**2, axis=1)

    def __str__(self) -> str:
        if not self.rank:
            return f"0 features of {self.dim} params: to first order the outputs do not change with them"
        shares = {path: float(self.sizes @ share / self.sizes.sum()) for path, share in self.layer_shares.items()}
        return (
            f"{self.rank} features of {self.dim} params, participation {self.participation:.3g}, sizes "
            f"{self.sizes[0]:.3g} to {self.sizes[-1]:.3g}\n"
            f"spread over {np.median(self.units_per_feature):.3g} of {len(self.units)} units (median)\n"
            f"modularity {self.modularity:.3f} in {len(self.communities)} groups\n"
            + ", ".join(f"{path} {share:.0%}" for path, share in shares.items())
        )


def feature_basis(
    predict_fn: Callable[[PyTree, PyTree], Array],
    params: PyTree,
    inputs: PyTree,
    *,
    unit_axis: int | None = -1,
    mask: PyTree = None,
) -> FeatureBasis:
    """Orthogonal features of a model at `params`, in float64, by layer and unit.

    Args:
        predict_fn: `predict_fn(params, inputs)`, the outputs, an array (n, …).
        params: w*, as for `LocalPosterior`.
        inputs: a pytree of arrays with the same leading axis of n inputs.
        unit_axis: the axis of each leaf that counts the units it computes: −1 for weights (in, out) as of flax, 0 for
            (out, in) as of equinox and PyTorch. Leaves of a layer with as many units share them. None takes whole
            layers for units.
        mask: which params move, as for `LocalPosterior`.

    Raises:
        ValueError: if the params, the mask or the outputs can't define gradients, a leaf has no such axis, or, beyond
            5,000 params, the matrices of the units do not fit in 4 GiB.

    Example:
        >>> import jax.numpy as jnp
        >>> inputs = jnp.array([[2.0, 0.0], [0.0, 2.0], [-2.0, 0.0], [0.0, -2.0]])
        >>> basis = feature_basis(lambda w, x: x @ w, jnp.ones(2), inputs)
        >>> basis.sizes.round(9).tolist(), round(basis.participation, 9), basis.couplings.round(9).tolist()
        ([2.0, 2.0], 2.0, [[1.0, 0.0], [0.0, 1.0]])
    """
    require_integer("unit_axis", unit_axis, least=-32, most=31, optional=True)
    gradients = behavioral_gradients(predict_fn, params, inputs, mask=mask)
    units, layers, groups = _units(moving_leaves(gradients.operator), unit_axis)
    dense = gradients.dim <= _DENSE
    sizes, shares, squares = (_from_matrix if dense else _from_kernels)(gradients, groups, len(units))
    norms = np.sqrt(np.sqrt(np.diag(squares)))
    alive = norms > 0
    couplings = np.sqrt(squares) / np.where(alive, norms, 1.0) / np.where(alive, norms, 1.0)[:, None]
    communities, modularity = _communities(couplings)
    return FeatureBasis(
        sizes=sizes,
        units=units,
        layers=layers,
        unit_shares=shares,
        couplings=np.minimum(couplings, 1.0),
        communities=communities,
        modularity=modularity,
        gram=gradients.feature_gram if dense else None,
        dim=gradients.dim,
    )


def _units(
    leaves: list[MovingLeaf], axis: int | None
) -> tuple[tuple[str, ...], tuple[str, ...], Int[np.ndarray, "dim"]]:
    """Names of the units, their layers, and the number of the unit of each param."""
    sizes: dict[str, set[int]] = {}
    for leaf in leaves:
        sizes.setdefault(leaf.layer, set()).add(_size(leaf, axis))
    numbers: dict[tuple[str, int], int] = {}  # of the first unit of a layer, by its path and number of units
    names: list[str] = []
    layers: list[str] = []
    groups = []
    for leaf in leaves:
        size = _size(leaf, axis)
        if (leaf.layer, size) not in numbers:
            numbers[leaf.layer, size] = len(names)
            owner = (leaf.layer if len(sizes[leaf.layer]) == 1 else leaf.path) or "params"
            names += [owner] if axis is None else [f"{owner}[{j}]" for j in range(size)]
            layers += [leaf.layer or "params"] * size
        index = np.zeros(leaf.rows.stop - leaf.rows.start, int)
        if axis is not None and leaf.shape:  # the number along that axis, for each param of the leaf
            index = np.indices(leaf.shape)[axis].ravel()
        groups.append(numbers[leaf.layer, size] + index)
    return tuple(names), tuple(layers), np.concatenate(groups)


def _size(leaf: MovingLeaf, axis: int | None) -> int:
    """Number of units of a leaf; one where only some of it moves."""
    if axis is None or not leaf.shape:
        return 1
    if not -len(leaf.shape) <= axis < len(leaf.shape):
        raise ValueError(f"unit_axis needs an axis of every leaf, got {axis} for {leaf.path!r} of shape {leaf.shape}.")
    return leaf.shape[axis]


def _from_matrix(
    gradients: BehavioralGradients, groups: Int[np.ndarray, "dim"], num_units: int
) -> tuple[Float[np.ndarray, "feature"], Float[np.ndarray, "feature unit"], Float[np.ndarray, "unit unit"]]:
    """Sizes, shares and ‖C_pq‖² from G itself, which resolves σ down to ε² of the largest."""
    vectors, singular, _ = scipy.linalg.svd(gradients.matrix, full_matrices=False)
    rank = gradients.rank
    member = np.eye(num_units)[groups]
    shares = (vectors[:, :rank] ** 2).T @ member
    squares = member.T @ gradients.feature_gram**2 @ member
    return singular[:rank] ** 2 / gradients.num_inputs, shares, squares


def _from_kernels(
    gradients: BehavioralGradients, groups: Int[np.ndarray, "dim"], num_units: int
) -> tuple[Float[np.ndarray, "feature"], Float[np.ndarray, "feature unit"], Float[np.ndarray, "unit unit"]]:
    """The same from the kernels of the units, which resolve σ down to ε of the largest."""
    kernels = grouped_kernels(gradients.operator, groups, num_units) / gradients.num_inputs
    eigenvalues, vectors = scipy.linalg.eigh(kernels.sum(axis=0))
    eigenvalues, vectors = eigenvalues[::-1], vectors[:, ::-1]
    rank = int(np.sum(eigenvalues > _FLOOR * len(eigenvalues) * eigenvalues[0]))
    vectors = vectors[:, :rank]
    shares = np.stack([np.sum(vectors * (kernel @ vectors), axis=0) for kernel in kernels], axis=1)
    flat = kernels.reshape(num_units, -1)
    return eigenvalues[:rank], shares / eigenvalues[:rank, None], flat @ flat.T


def _communities(couplings: Float[np.ndarray, "unit unit"]) -> tuple[tuple[tuple[int, ...], ...], float]:
    """Groups of units by Louvain's search (Blondel et al. 2008), and their modularity."""
    edges = couplings - np.diag(np.diag(couplings))
    edges[edges < np.sqrt(np.finfo(np.float64).eps)] = 0.0
    if not edges.any():
        return tuple((i,) for i in range(len(edges))), 0.0
    graph = networkx.from_numpy_array(edges)
    found = [networkx.community.louvain_communities(graph, seed=seed) for seed in range(_SEEDS)]
    scores = [float(networkx.community.modularity(graph, groups)) for groups in found]
    best = found[int(np.argmax(scores))]
    return tuple(sorted(tuple(sorted(group)) for group in best)), max(max(scores), 0.0)
