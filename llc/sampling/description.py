"""What stands beside the draws of a run: its constants, its settings and the losses that they are compared with."""

import contextlib
import functools
import json
from collections.abc import Iterator
from importlib.metadata import version

import jax
import numpy as np
import xarray as xr
from jaxtyping import PRNGKeyArray

from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.precision import lenient
from llc.posterior.reference import reference_loss
from llc.posterior.whole import loss_at_center
from llc.sampling.draws import Recorder, describe
from llc.sampling.kernel import Sampler
from llc.sampling.measure import Measure, gradient_at_center
from llc.sampling.rounding import LossRounding, params_rounding
from llc.sampling.run_lengths import RunLengths
from llc.sampling.windows import Windows


@contextlib.contextmanager
def full_products() -> Iterator[None]:
    """Matrix products of float32 in float32, in `loss_fn` too, unless the user has set JAX's default.

    JAX's own default is TF32 on a GPU, of 10 bits: too few for the difference of two losses that are nearly the same.
    Of a linear model of 512 parameters at nβ = 10⁷ it made λ̂ 298.0 ± 1.1 for 253.4, and 253.4 in float32 (on an H200).
    """
    chosen = jax.config.jax_default_matmul_precision
    with jax.default_matmul_precision(chosen or "highest"), lenient():
        yield


class Description:
    """What a run says of itself, in each tree of its draws.

    Args:
        given: the posterior with w* in its own precision.
        posterior: the one that is sampled.
        sampler: as of `sample`.
        lengths: as of `sample`.
        measure: what draws are measured with.
        rounding: of their losses.
        method: how chains run.
        key: of the run.
        windows: of data that are a stream; None of arrays.
    """

    def __init__(
        self,
        given: LocalPosterior,
        posterior: LocalPosterior,
        sampler: Sampler,
        lengths: RunLengths,
        measure: Measure,
        rounding: LossRounding,
        *,
        method: str,
        key: PRNGKeyArray,
        windows: Windows | None,
    ) -> None:
        self.given, self.posterior, self.sampler, self.lengths = given, posterior, sampler, lengths
        self.measure, self.rounding, self.method, self.windows = measure, rounding, method, windows
        self.seed = np.asarray(jax.random.key_data(key)).tolist()

    def tree(self, recorder: Recorder, *, num_draws: int) -> xr.DataTree:
        """The draws that a recorder holds, as `sample` returns them, of `num_draws` after the warm-up in all."""
        attributes = {
            "sampler": type(self.sampler).__name__,
            "settings": json.dumps(self._settings(num_draws)),
            "seed": json.dumps(self.seed),
            "versions": json.dumps({name: version(name) for name in ("llc", "jax", "numpyro", "arviz")}),
        }
        weights = np.asarray(self.measure.evaluation.weights)
        observables = self.measure.observables
        return recorder.tree(self._constants(), attributes, self.posterior, weights, observables)

    @property
    def _eval_size(self) -> int:
        num_data, size = self.posterior.num_data, self.lengths.eval_size  # of a stream the resident rows
        return num_data if size is None else size

    def _constants(self) -> dict[str, float]:
        """The scale, the sizes and L(w*) over all data: a draw's loss is this and its difference on the rows."""
        constants = {
            "init_loss": self.init_loss,
            "nbeta": self.posterior.scale.nbeta,
            "gamma": self.posterior.scale.gamma,
            "num_data": self.given.num_data,
            "num_params": self.given.num_params,
            "eval_size": self._eval_size,
            "loss_rounding": self.rounding.error,
            "params_rounding": params_rounding(self.posterior),
            "center_gradient": self.center_gradient,
        }
        if self.reference_loss is not None:
            constants["reference_loss"] = self.reference_loss
        variates = self.measure.control_variates
        return constants if variates is None else constants | {"trace_curved": float(variates.trace)}

    def _settings(self, num_draws: int) -> dict[str, object]:
        """How the draws were made, as plain data."""
        lengths, weights = self.lengths, self.given.weights
        settings: dict[str, object] = {
            "sampler": describe(self.sampler),
            "num_chains": lengths.num_chains,
            "num_warmup": lengths.num_warmup,
            "thinning": lengths.thinning,
            "batch_size": self.posterior.num_data if lengths.batch_size is None else lengths.batch_size,
            "eval_size": self._eval_size,
            "chain_method": self.method,
            "num_draws": num_draws,
        }
        if lengths.step_energies:
            settings["step_energies"] = True
        if weights is not None:  # rows of equal weight that would have the same error of a mean (Kish 1965)
            share = float(np.mean(weights) ** 2 / np.mean(weights**2))
            settings["effective_rows"] = share * self.given.num_data  # of a stream, from its resident rows
        if self.windows is not None:
            settings["stream"] = self.windows.settings(self.posterior.num_data)
        if self.measure.observables:
            recorded = {name: one.fn.fingerprint for name, one in self.measure.observables.items()}
            settings["observables"] = recorded
        return settings

    @functools.cached_property
    @full_products()
    def center_gradient(self) -> float:
        """‖∇L(w*)‖ over all the data; pilots need none."""
        return float(gradient_at_center(self.posterior, self.lengths.batch_size))

    @functools.cached_property
    def init_loss(self) -> float:
        """L(w*), in float64; pilots need none."""
        return loss_at_center(self.given)

    @functools.cached_property
    @full_products()
    def reference_loss(self) -> float | None:
        """The loss at zero, which says how far the draws have come."""
        return reference_loss(self.given.resident())
