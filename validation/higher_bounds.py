r"""Bounds beyond the rank: what each closes of the interval r/2 ≤ λ ≤ r/2 + (d − r)/4, and that none is violated.

Three groups of points:

- every stratum of the two-layer linear nets up to 4×4×4, where λ(w*) is known (Aoyagi & Watanabe 2005, local). All of
  them are run as one program: arrays of 4×4 with a mask, whose masked entries count as D symmetry directions. Targets:
  no violation, mean width of the bracket <= 0.05, at least 95 % pinned to one number;
- the zoo, where λ is known too;
- trained nets: deep linear ones and tanh, fitted to the outputs of a smaller one up to 10⁻⁶, and then to its own. Where
  the certificate g ≡ 0 holds, λ = r/2 is known at a trained point, and λ_corr of `llc.estimate` has to agree with it:
  at nβ = 10⁵ instead of n / log n, which is so small that finite temperature alone takes 3 % away.

    python validation/higher_bounds.py --processes 2
"""

import dataclasses

import jax
import numpy as np
from higher_bounds_points import NETS, stratum_posterior, trained_posterior
from higher_bounds_results import (
    CLOSING,
    COLUMNS,
    GROUPS,
    STRATA,
    SUMMARY,
    TRAINED,
    ZOO,
    closing,
    figure,
    of_group,
    summarize,
)
from study import Row, Study, table
from theory import two_layer
from zoo import CASES
from zoo_strata import strata

import llc


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seed: int = 0
    width: int = 4  # of the two-layer nets
    num_strata: int | None = None  # drawn at random; None takes all
    zoo: tuple[str, ...] | None = None  # None takes all
    nets: tuple[str, ...] = tuple(NETS)
    num_inputs: int = 60
    num_draws: int = 2000
    nbeta: float = 1e5  # of the estimates: at n / log n = 15 finite temperature alone takes 3 % away
    agree: float = 0.01  # of λ, to which λ_corr has to agree beside four standard errors: what γ leaves


QUICK = Settings(width=2, num_strata=12, zoo=("(y - x^2)^2 + x^10",), nets=())


def main() -> None:
    """Runs, prints, writes."""
    study = Study("higher_bounds", __doc__, Settings(), QUICK)
    settings = study.settings
    rows = study.rows(run, cases(settings))
    groups = {group: part for group in GROUPS if (part := of_group(rows, group))}
    summary = {group: summarize(part, settings.agree) for group, part in groups.items()}
    closed = {group: closing([row for row in part if "error" not in row]) for group, part in groups.items()}
    text = "\n\n".join(
        [
            table([{"group": group, **values} for group, values in summary.items()], SUMMARY),
            table([{"group": group, **row} for group, part in closed.items() for row in part], CLOSING),
            table([row for row in rows if not row["case"].startswith(STRATA)], COLUMNS),
        ]
    )
    print(text)
    study.save(rows, summary=summary | {"closed": closed}, text=text, figure=figure(rows))


def cases(settings: Settings) -> list[str]:
    """Names of all points, those of a group together."""
    points = list(strata(settings.width))
    if settings.num_strata is not None:
        chosen = np.random.default_rng(settings.seed).choice(len(points), settings.num_strata, replace=False)
        points = [points[i] for i in sorted(chosen)]
    zoo = [case.name for case in CASES if settings.zoo is None or case.name in settings.zoo]
    return [
        *(f"{STRATA} | {' '.join(map(str, point))}" for point in points),
        *(f"{ZOO} | {name}" for name in zoo),
        *(f"{TRAINED} | {name}" for name in settings.nets),
    ]


def run(case: str, settings: Settings) -> Row:
    """Bounds at one point, of the rank and beyond it."""
    group, name = case.split(" | ", 1)
    known, corrected, mcse, verdict, masked = None, None, None, None, 0
    key = jax.random.key(settings.seed)
    if group == STRATA:
        point = tuple(map(int, name.split()))
        posterior, known = stratum_posterior(point, settings.width), float(two_layer(*point).value)
        masked = 2 * settings.width**2 - point[1] * (point[0] + point[2])
    elif group == ZOO:
        model = next(model for model in CASES if model.name == name)
        posterior, known = model.build(key, 1000), model.learning_coefficient
    else:
        posterior = trained_posterior(name, seed=settings.seed, num_inputs=settings.num_inputs)
    bounds = llc.higher_bounds(posterior, key=key)
    rank = llc.rank_bounds(llc.spectrum(posterior))
    pinned = bounds.lower == bounds.upper
    if group == TRAINED:
        cold = posterior.with_scale(nbeta=settings.nbeta)
        report = llc.estimate(key, cold, num_draws=settings.num_draws, bounds=bounds, progress=False)
        assert report.corrected is not None
        corrected, mcse, verdict = report.corrected.value, report.corrected.mcse, report.verdict
        known = bounds.lower if pinned else None
    return {
        "dim": posterior.num_params - masked,
        "rank": rank.rank,
        "known": known,
        "rank_lower": rank.lower,
        "rank_upper": rank.upper - masked / 4,
        "lower": bounds.lower,
        "upper": bounds.upper,
        "source": bounds.source.split("; ", 1)[-1],
        "pinned": pinned,
        "bounds": {b.name: [b.status, b.lower, b.upper, b.evaluations, b.seconds] for b in bounds.records},
        "corrected": corrected,
        "mcse": mcse,
        "verdict": verdict,
    }


if __name__ == "__main__":
    main()
