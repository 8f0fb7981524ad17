"""Sequential against vectorized chains by number of parameters, for speed.py."""

import itertools
from typing import Any

import jax
from speed_problems import Problem, Settings, mlp
from timing import measure, progress, quietest

import llc
from llc.sampling.kernel import Sampler


def sweep_sgld(settings: Settings) -> list[dict[str, Any]]:
    """SGLD on MLPs of growing width, with two draws only so that the steps are what is timed."""
    results = []
    for width in settings.widths:
        problem = mlp(settings, (width, width, width, 10), settings.num_data, "SGLD")
        lengths = {"batch_size": settings.batch_size, "eval_size": settings.batch_size, "num_warmup": 0, "num_draws": 2}
        sampler = llc.SGLD(step_size=settings.step_size)
        results.append(compare_methods(problem, sampler, settings, thinning=settings.sweep_steps // 2, **lengths))
    return results


def sweep_mcmc(settings: Settings) -> list[dict[str, Any]]:
    """The samplers with an accept step, adapted, on small MLPs."""
    results = []
    for width, sampler in itertools.product(settings.mcmc_widths, (llc.MALA(), llc.HMC(), llc.NUTS(max_tree_depth=6))):
        problem = mlp(settings, (width, width, width, 10), settings.mcmc_data, type(sampler).__name__)
        lengths = {"num_warmup": settings.mcmc_warmup, "num_draws": settings.mcmc_draws}
        results.append(compare_methods(problem, sampler, settings, **lengths))
    return results


def compare_methods(problem: Problem, sampler: Sampler, settings: Settings, **lengths: Any) -> dict[str, Any]:
    """Seconds of the same chains, one by one and in a vmap, in turns."""

    def run(method: str) -> None:
        key = jax.random.key(settings.seed)
        keywords = {"num_chains": settings.num_chains, "chain_method": method, "progress": False} | lengths
        llc.sample(key, problem.posterior, sampler, **keywords)

    timings = {"vectorized": [], "sequential": []}
    for method in timings:
        run(method)
    for _, method in itertools.product(range(settings.repeats), timings):
        timings[method].append(quietest(lambda: measure(lambda: run(method)), settings.tries))  # noqa: B023
    seconds = {method: [t.seconds for t in ts] for method, ts in timings.items()}
    progress(f"{problem.name}, {problem.posterior.num_params} parameters: {seconds}")
    others = [t.others for ts in timings.values() for t in ts]
    return {"sampler": problem.name, "num_params": problem.posterior.num_params, "seconds": seconds, "others": others}
