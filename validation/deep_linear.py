r"""Deep linear networks in the published setting: the estimate against three truths.

A network $f(x) = x W_1 \cdots W_L$ is drawn as in Furman & Lau 2024 (arXiv 2402.03698): 2–19 layers, widths 2–29,
weights from a normal law cut at two standard deviations of $1 / \sqrt{d_{i-1}}$; every second matrix keeps its largest
singular values only, their number uniform from 1 to all; $n = 10^4$ inputs uniform on $[-10, 10]^{d_0}$. The targets
are the network's own outputs, without noise, so w* is the true parameter. Ours: the loss ½‖f(x) − y‖², that of unit
noise, where the published one is the mean of squares over outputs; and γ from calibration.

λ̂ is `llc.estimate(key, posterior)`, without settings. The large network takes fewer steps, a spectrum of more Lanczos
steps, and the d₀ rows of below, which have its density. The truths:

1. finite temperature: E[nβK] at the same nβ and γ, by long NUTS chains with control variates; kept where their virial
   ratio is within 3 % of 1, their standard error within 2 %, R-hat within 1.05, and the mean energy without control
   variates within four of its standard errors (the virial is an average over all directions, so it sees little). Full
   batches need no n rows: the loss depends on the inputs through $S = X^\top X / n$ only, so $d_0$ rows
   $\sqrt{d_0}\, S^{1/2}$ have the same density (`sufficient`). References in `results/deep_linear.json` serve again
   where settings, nβ and γ are the same;
2. λ(w*): an interval from the ranks of all partial products (see strata.py), often one number;
3. the published truth, the minimum of λ over all parameters with zero loss (Aoyagi 2024).

What remains against λ(w*) is split into the sampler's error, λ̂ less truth 1, and finite temperature, truth 1 less
λ(w*), of which λ_quad − rank/2 is the Gaussian part, which γ-correction takes away.

The table shows the verdict of a row by the rule of today (verdicts.py), and the one that it was given when it was made.
Rows that exist are printed again, without new samples, by

    python validation/deep_linear.py --keep --at-most 0

Target: no CONSISTENT is off λ(w*) by more than 5 % and two standard errors.

    python validation/deep_linear.py --processes 2
"""

import dataclasses
import time
from pathlib import Path

import jax
import numpy as np
from deep_linear_results import COLUMNS, plot, report, summarize
from linear_nets import Law, Net, generate, make_posterior, sufficient
from nuts_reference import ReferenceLengths, committed, reference
from strata import hessian_rank, local_coefficient, profile
from study import Row, Study, constant, table
from theory import deep_linear

import llc

RESULTS = Path(__file__).parent / "results" / "deep_linear.json"
SAME = (  # settings on which a reference depends
    *(field.name for field in dataclasses.fields(Law)),
    *("reference_warmup", "reference_draws", "reference_error", "reference_virial"),
)


@dataclasses.dataclass(frozen=True)
class Settings(Law, ReferenceLengths):
    """All that is set by hand, beside what networks are drawn from and how long a reference samples."""

    num_nets: int = 200
    large: tuple[int, ...] | None = (200, 410, 410, 410, 200)  # 500,200 parameters, λ(w*) = 200²/2
    large_matvecs: int = 300  # Lanczos steps, which resolve the edge of its 40,000 curved directions
    large_chains: int = 2
    large_warmup: int = 1000
    large_draws: int = 500  # a chain; one is enough, its relative spread is 1 / √λ
    tries: int = 64  # of the search for the largest component of the zero set


QUICK = Settings(num_nets=3, layers=(2, 3), widths=(2, 5), large=None)


def main() -> None:
    """Runs, prints, writes."""
    study = Study("deep_linear", __doc__, Settings(), QUICK)
    settings = study.settings
    cases = [str(i) for i in range(settings.num_nets)] + (["large"] if settings.large else [])
    rows = study.rows(run, cases)
    summary = summarize(rows, settings)
    text = f"{report(summary)}\n\n{table(rows, COLUMNS)}"
    print(text)
    study.save(rows, summary=summary, text=text, figure=plot(rows, settings))


def run(case: str, settings: Settings) -> Row:
    """The estimate and its truths for network number `case`, or for the large one."""
    large = case == "large"
    index = settings.num_nets if large else int(case)
    net = generate(settings, index, widths=settings.large if large else None)
    posterior = make_posterior(net, settings, index)
    key, reference_key = jax.random.split(jax.random.fold_in(jax.random.key(settings.seed), index))
    start = time.perf_counter()
    if large:
        posterior = sufficient(net, posterior)
        found = estimate_large(key, posterior, settings)
    else:
        found = llc.estimate(key, posterior, progress=False)
    row = of_network(net, settings.tries) | of_estimate(found) | {"dim": posterior.num_params}
    row["estimate_seconds"] = time.perf_counter() - start
    if large:
        return row
    start = time.perf_counter()
    target = sufficient(net, posterior).with_scale(gamma=row["gamma"])
    truth = committed(case, target, settings, SAME, RESULTS)
    truth = truth or reference(reference_key, target, found.spectrum, settings)
    row |= {f"reference_{name}": value for name, value in truth._asdict().items()}
    return row | {"reference_seconds": time.perf_counter() - start}


def estimate_large(key: jax.Array, posterior: llc.LocalPosterior, settings: Settings) -> llc.Report:
    """Fewer steps, and a spectrum of more Lanczos steps."""
    return llc.estimate(
        key,
        posterior,
        num_chains=settings.large_chains,
        num_warmup=settings.large_warmup,
        num_draws=settings.large_draws,
        spectrum=llc.spectrum(posterior, num_matvecs=settings.large_matvecs, progress=False),
        progress=False,
    )


def of_network(net: Net, tries: int) -> Row:
    """Widths, ranks, and what is known of λ."""
    ranks = profile(net.widths, net.ranks)
    local = local_coefficient(ranks, tries)
    return {
        "widths": net.widths,
        "ranks": net.ranks,
        "product_rank": int(ranks[0, -1]),
        "hessian_rank": hessian_rank(ranks),
        "local_lower": local.lower,
        "local_upper": local.upper,
        "published": float(deep_linear(net.widths, int(ranks[0, -1])).value),
    }


def of_estimate(found: llc.Report) -> Row:
    """What a report says, in numbers."""
    bounds, corrected, moved = found.bounds, found.corrected, found.gamma_sensitivity
    return {
        "nbeta": constant(found.draws, "nbeta"),
        "gamma": constant(found.draws, "gamma"),
        "llc": found.llc.value,
        "mcse": found.llc.mcse,
        "ess": found.llc.ess,
        "corrected": np.nan if corrected is None else corrected.value,
        "corrected_mcse": np.nan if corrected is None else corrected.mcse,
        "quad": found.quad,
        "numerical_rank": None if bounds is None else list(bounds.rank_interval),
        "bounds": [bounds.lower, bounds.upper] if bounds is not None and bounds.valid else None,
        "gamma_sensitivity": None if moved is None else moved.value,
        "gamma_converged": found.gamma_converged,
        "verdict": found.verdict,
        "failed": [check.name for check in found.failed],
    }


if __name__ == "__main__":
    main()
