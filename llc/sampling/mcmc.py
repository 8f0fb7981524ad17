r"""Samplers with an accept step, on NumPyro's kernels: exact at any step size, on the full data only.

All three are Hamiltonian Monte Carlo on $H(w, r) = U(w) + \tfrac12 r^\top M^{-1} r$: MALA takes one leapfrog step a
transition (Roberts & Tweedie 1996), HMC a trajectory of fixed length (Neal 2011), NUTS one that stops where it turns
(Hoffman & Gelman 2014). Step size and diagonal (or dense) M adapt in the warm-up.
"""

import abc
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree
from numpyro.infer.hmc import HMCState, hmc

from llc.posterior.arguments import plain, require_flag, require_integer, require_number
from llc.posterior.local_posterior import LocalPosterior
from llc.sampling.kernel import Info, Sampler, virial


class AdaptiveState(eqx.Module):
    """NumPyro's state and the length of the warm-up it adapts in."""

    hmc: HMCState
    num_warmup: int = eqx.field(static=True)

    @property
    def position(self) -> PyTree:
        """The parameters that move."""
        return self.hmc.z


class _Hamiltonian(Sampler):
    """What MALA, HMC and NUTS share: NumPyro's kernel behind `init` and `step`."""

    step_size: eqx.AbstractVar[float | None]
    target_accept: eqx.AbstractVar[float]
    needs_full_batch: ClassVar[bool] = True
    adapts_in_warmup: ClassVar[bool] = True

    @property
    def adapts_step(self) -> bool:
        """Whether the step size is found in the warm-up: where none was given."""
        return self.step_size is None

    def __check_init__(self) -> None:
        require_number("step_size", self.step_size, optional=True)
        require_number("target_accept", self.target_accept)
        for name in ("adapt_mass", "dense_mass"):
            require_flag(name, getattr(self, name, False))
        if not 0 < self.target_accept < 1:
            raise ValueError(f"{type(self).__name__} needs 0 < target_accept < 1, got {self.target_accept}.")

    @abc.abstractmethod
    def _settings(self) -> "_Settings":
        """NumPyro's settings."""

    def init(self, key: PRNGKeyArray, posterior: LocalPosterior, *, num_warmup: int = 0) -> AdaptiveState:
        """State at w*; step size and mass matrix adapt during the first `num_warmup` steps."""
        settings = self._settings()
        init_kernel, _ = hmc(potential_fn_gen=lambda fn: fn, algo=settings.algo)
        potential_fn = _potential_fn(posterior, posterior.data)
        state = init_kernel(
            posterior.position, num_warmup, rng_key=key, model_args=(potential_fn,), **settings.init_arguments()
        )
        return AdaptiveState(_strong_dtype(state), num_warmup)

    def step(
        self, key: PRNGKeyArray, posterior: LocalPosterior, state: AdaptiveState, batch: PyTree
    ) -> tuple[AdaptiveState, Info]:
        """One transition on `batch`, which has to be the same full data in every step."""
        sample_kernel = _sample_kernel(self._settings(), state.num_warmup)
        moved = sample_kernel(state.hmc._replace(rng_key=key), model_args=(_potential_fn(posterior, batch),))
        moved = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), moved, state.hmc)
        offset = optax.tree.sub(moved.z, posterior.position)
        info = Info(
            potential=moved.potential_energy,
            virial=virial(posterior, offset, moved.z_grad),
            grad_norm=optax.tree.norm(moved.z_grad),
            acceptance_rate=moved.accept_prob,
            num_gradients=jnp.asarray(moved.num_steps, moved.potential_energy.dtype),
            diverging=moved.diverging,
        )
        return AdaptiveState(moved, state.num_warmup), info


class MALA(_Hamiltonian):
    """Metropolis-adjusted Langevin: one leapfrog step of √ε a transition, accepted or refused.

    Args:
        step_size: ε as in SGLD (the proposal is an SGLD step); None adapts it in the warm-up.
        target_accept: 0.9. The 0.574 that is optimal as d → ∞ (Roberts & Rosenthal 1998) fits the step to the wide
            part of a singular posterior and is refused in its narrow arms: .2255 ± .0027 for .2403 on w⁴/2.
        adapt_mass: whether the diagonal mass matrix adapts in the warm-up.

    Raises:
        ValueError: if step_size is not positive or target_accept not within (0, 1).
    """

    step_size: float | None = eqx.field(default=None, converter=plain)
    target_accept: float = eqx.field(default=0.9, converter=plain)
    adapt_mass: bool = eqx.field(default=True, converter=plain)

    def _settings(self) -> "_Settings":
        root = None if self.step_size is None else math.sqrt(self.step_size)
        return _Settings("HMC", root, self.target_accept, self.adapt_mass, num_steps=1)


class HMC(_Hamiltonian):
    """Hamiltonian Monte Carlo with trajectories of fixed length.

    Args:
        step_size: leapfrog step; None adapts it in the warm-up.
        trajectory_length: π/2 by default, a quarter of the period of a standard normal: position and momentum swap, so
            the energy of the next draw is independent. Half a period would give back the same energy.
        num_steps: leapfrog steps (gradients) a transition; None takes trajectory_length / step_size.
        target_accept: 0.99, for the narrow arms of singular posteriors, at twice the gradients (see `NUTS`).
        adapt_mass: whether the mass matrix adapts in the warm-up.
        dense_mass: whether the mass matrix is dense (d² memory) or diagonal.

    Raises:
        ValueError: if step_size, trajectory_length or num_steps is not positive or target_accept not within (0, 1).
    """

    takes_trajectories: ClassVar[bool] = True

    step_size: float | None = eqx.field(default=None, converter=plain)
    trajectory_length: float = eqx.field(default=math.pi / 2, converter=plain)
    num_steps: int | None = eqx.field(default=None, converter=plain)
    target_accept: float = eqx.field(default=0.99, converter=plain)
    adapt_mass: bool = eqx.field(default=True, converter=plain)
    dense_mass: bool = eqx.field(default=False, converter=plain)

    def __check_init__(self) -> None:
        require_integer("num_steps", self.num_steps, least=1, optional=True)
        require_number("trajectory_length", self.trajectory_length)

    def _settings(self) -> "_Settings":
        return _Settings(
            "HMC",
            self.step_size,
            self.target_accept,
            self.adapt_mass,
            self.dense_mass,
            num_steps=self.num_steps,
            trajectory_length=self.trajectory_length if self.num_steps is None else None,
        )


class NUTS(_Hamiltonian):
    """The No-U-Turn sampler: the reference on small models (up to some 2^max_tree_depth gradients a transition).

    Args:
        step_size: leapfrog step; None adapts it in the warm-up.
        target_accept: 0.99, for the narrow arms of singular posteriors, which the usual 0.8 (Hoffman & Gelman 2014, §4)
            misses. Of 129 exact values 3 were off by more than 4 standard errors with 0.95, none with 0.99
            (validation/accuracy.py).
        max_tree_depth: at most 2^max_tree_depth leapfrog steps a transition.
        adapt_mass: whether the mass matrix adapts in the warm-up.
        dense_mass: whether the mass matrix is dense (d² memory) or diagonal.

    Raises:
        ValueError: if step_size is not positive, max_tree_depth < 1 or target_accept not within (0, 1).
    """

    takes_trajectories: ClassVar[bool] = True

    step_size: float | None = eqx.field(default=None, converter=plain)
    target_accept: float = eqx.field(default=0.99, converter=plain)
    max_tree_depth: int = eqx.field(default=10, converter=plain)
    adapt_mass: bool = eqx.field(default=True, converter=plain)
    dense_mass: bool = eqx.field(default=False, converter=plain)

    def __check_init__(self) -> None:
        require_integer("max_tree_depth", self.max_tree_depth, least=1)

    def _settings(self) -> "_Settings":
        return _Settings(
            "NUTS",
            self.step_size,
            self.target_accept,
            self.adapt_mass,
            self.dense_mass,
            max_tree_depth=self.max_tree_depth,
        )


class _Settings(NamedTuple):
    """What NumPyro's kernel is made from; hashable, so that one kernel serves all equal settings."""

    algo: str
    step_size: float | None
    target_accept: float
    adapt_mass: bool
    dense_mass: bool = False
    num_steps: int | None = None
    trajectory_length: float | None = None
    max_tree_depth: int = 10

    def init_arguments(self) -> dict[str, Any]:
        """Keyword arguments of NumPyro's `init_kernel`."""
        return {
            "step_size": 1.0 if self.step_size is None else self.step_size,
            "adapt_step_size": self.step_size is None,
            "adapt_mass_matrix": self.adapt_mass,
            "dense_mass": self.dense_mass,
            "target_accept_prob": self.target_accept,
            "num_steps": self.num_steps,
            "trajectory_length": self.trajectory_length,
            "max_tree_depth": self.max_tree_depth,
        }


@functools.lru_cache(maxsize=64)
def _sample_kernel(settings: _Settings, num_warmup: int) -> Callable:
    """NumPyro's transition.

    Its `init_kernel` leaves the adaptation schedule behind in the closure that it shares with `sample_kernel`. Running
    it once on a stand-in, outside of any trace, keeps tracers out of there and makes `step` work in any process.
    """
    init_kernel, sample_kernel = hmc(potential_fn_gen=lambda fn: fn, algo=settings.algo)
    with jax.ensure_compile_time_eval():
        init_kernel(
            jnp.zeros(1),
            num_warmup,
            rng_key=jax.random.key(0),
            model_args=(lambda z: jnp.sum(z * z),),
            **settings.init_arguments(),
        )
    return sample_kernel


def _potential_fn(posterior: LocalPosterior, batch: PyTree) -> Callable[[PyTree], Array]:
    return lambda position: posterior.potential(posterior.params_at(position), batch)


def _strong_dtype(state: HMCState) -> HMCState:
    """`state` with strong dtypes, so that it may be carried through a loop."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), state)
