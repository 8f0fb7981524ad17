"""Does SGLD give the same λ as an exact sampler?

Runs NUTS and SGLD on the same posterior, the 460 parameters of the demo's network, and prints them side by side: λ̂ with
its standard error, effective draws, the virial ratio (1 is exact) and the time. About a minute on two cores.

    uv run python examples/reference.py --gamma 1.0
"""

import argparse
import dataclasses
import math
import time

import jax

import llc


@dataclasses.dataclass(frozen=True)
class Settings:
    """What can be set, each as a flag of the same name."""

    gamma: float = 1.0  # localization; the same for both samplers
    num_chains: int = 4
    nuts_draws: int = 200
    sgld_draws: int = 2000
    thinning: int = 5  # SGLD steps between draws
    seed: int = 0


def main(settings: Settings) -> dict[str, llc.Estimate]:
    train_key, *keys = jax.random.split(jax.random.key(settings.seed), 3)
    return compare(keys, llc.demo.digits_posterior(train_key), settings)


def compare(keys: list[jax.Array], posterior: llc.LocalPosterior, settings: Settings) -> dict[str, llc.Estimate]:
    nuts_key, sgld_key = keys
    posterior = posterior.with_scale(gamma=settings.gamma)
    nbeta, gamma = posterior.scale
    step_size = 0.5 / (nbeta * llc.top_eigenvalue(posterior) + gamma)
    runs = {
        "NUTS": (nuts_key, llc.NUTS(), {"num_warmup": 200, "num_draws": settings.nuts_draws}),
        "SGLD": (
            sgld_key,
            llc.SGLD(step_size=step_size),
            {"num_warmup": 2000, "num_draws": settings.sgld_draws, "thinning": settings.thinning},
        ),
    }
    print(f"{posterior.num_params} parameters, nβ = {nbeta:.4g}, γ = {gamma:g}, ε = {step_size:.3g}\n")
    print(f"{'sampler':<8} {'λ̂':>8} {'± se':>7} {'ESS':>6} {'R-hat':>6} {'virial':>7} {'seconds':>8}")
    estimates = {}
    for name, (key, sampler, lengths) in runs.items():
        start = time.perf_counter()
        draws = llc.sample(key, posterior, sampler, num_chains=settings.num_chains, **lengths)
        seconds = time.perf_counter() - start
        estimate = estimates[name] = llc.mean_energy(draws)
        virial = float(draws["sample_stats"]["virial"].mean())
        print(
            f"{name:<8} {estimate.value:8.2f} {estimate.mcse:7.2f} {estimate.ess:6.0f} {estimate.rhat:6.3f} "
            f"{virial:7.3f} {seconds:8.1f}"
        )
    nuts, sgld = estimates["NUTS"], estimates["SGLD"]
    z = (sgld.value - nuts.value) / math.hypot(sgld.mcse, nuts.mcse)
    print(f"\nSGLD − NUTS = {sgld.value - nuts.value:+.2f}, {z:+.1f} standard errors")
    return estimates


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(Settings):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    main(Settings(**vars(parser.parse_args())))
