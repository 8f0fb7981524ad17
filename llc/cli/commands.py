"""The commands: each takes the parsed arguments, prints its result, and returns an exit status."""

import argparse
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import llc
from llc.cli import inputs, outputs
from llc.cli.terminal import complain, say, under_way

if TYPE_CHECKING:
    import jax
    import xarray as xr

    from llc.calibration.pipeline import Calibration
    from llc.posterior.local_posterior import LocalPosterior

_SAMPLERS = {"sgld": "SGLD", "sghmc": "SGHMC", "sgnht": "SGNHT", "nuts": "NUTS", "hmc": "HMC", "mala": "MALA"}
_STOCHASTIC = ("sgld", "sghmc", "sgnht")

_MOST_STEPS = 2**31 - 1  # of a chain: what a compiled loop counts up to
_EXIT = {"CONSISTENT": 0, "SCALE_DEPENDENT": 0, "UNRESOLVED": 1, "BELOW": 2, "ABOVE": 2}
_OF_SAMPLER = {  # flags of some samplers only
    "control_variates": ("sgld",),
    "integrator": ("sgld",),
    "preconditioner": ("sgld",),
    "friction": ("sghmc", "sgnht"),
}


def demo(arguments: argparse.Namespace) -> int:
    """`llc demo`: trains a small network and estimates its LLC."""
    outputs.check(out=arguments.out, figure=arguments.figure)
    outputs.check_draws(arguments.out, None, keeps=None)
    say("Training a network with 6 hidden units on scikit-learn's digits to a minimum ...")
    train_key, key = _keys(arguments.seed, 2)
    posterior = llc.demo.digits_posterior(train_key)
    say(f"... {posterior.num_params} parameters, {posterior.num_data} images. Spectrum, then SGLD ...")
    estimate = llc.estimate  # imported before a stop may be dealt with
    under_way()
    result = estimate(key, posterior)
    llc.save(result.draws, arguments.out)
    llc.save_figure(llc.plot_report(result), arguments.figure)
    say(f"\n{result}\n", kept=arguments.out)
    say(f"Dashboard: {arguments.figure}. Draws and spectrum: {arguments.out} (llc report {arguments.out}).")
    return 0


def _keys(seed: int, number: int) -> "jax.Array":
    import jax  # not for llc report

    return jax.random.split(jax.random.key(seed), number)


def _key(seed: int) -> "jax.Array":
    import jax  # not for llc report

    return jax.random.key(seed)


def calibrate(arguments: argparse.Namespace) -> int:
    """`llc calibrate`: settings, and the words of `llc sample` that take them."""
    reads = (inputs.model_file(arguments.posterior),)
    outputs.check(out=arguments.out, figure=arguments.figure, reads=reads)
    posterior = inputs.load_posterior(arguments.posterior).with_scale(nbeta=arguments.nbeta, gamma=arguments.gamma)
    outputs.check_draws(arguments.out, posterior, keeps="draws")
    names = ("num_chains", "num_warmup", "num_draws", "thinning", "batch_size", "step_energies", "budget")
    settings = {name: getattr(arguments, name) for name in names}
    calibration = llc.calibrate(_key(arguments.seed), posterior, **settings)
    words = _words_of_sample(calibration, arguments.nbeta)
    lines = [str(calibration), f"llc sample {arguments.posterior} {words} --out {arguments.out or 'run.nc'}"]
    if arguments.out is not None:
        if outputs.has_spectrum(arguments.out):
            lines.append(f"{arguments.out} has a spectrum, which stays.")
        else:
            outputs.put_spectrum(arguments.out, calibration.posterior, calibration.spectrum, replace=False)
            lines.append(f"Spectrum written to {arguments.out}.")
    if arguments.figure is not None:
        figure = llc.plot_calibration(calibration).get_figure(root=True)
        assert figure is not None
        llc.save_figure(figure, arguments.figure)
        lines.append(f"Figure: {arguments.figure}")
    say("\n\n".join(lines), kept=arguments.out)
    return 0


def _words_of_sample(calibration: "Calibration", nbeta: float | None) -> str:
    """The flags of `llc sample` that repeat a calibration."""
    flags = {"nbeta": nbeta}
    flags |= {name: getattr(calibration.sampler, name, None) for name in ("step_size", "friction")}
    lengths = calibration.lengths
    names = ("num_chains", "num_warmup", "num_draws", "thinning", "batch_size", "eval_size")
    flags |= {"gamma": calibration.posterior.gamma} | {name: getattr(lengths, name) for name in names}
    flags = {name: value for name, value in flags.items() if value is not None}
    words = " ".join(
        f"--{name.replace('_', '-')} {value if isinstance(value, int) else f'{float(value):.8g}'}"
        for name, value in flags.items()
    )
    words += " --sampler sghmc" * ("friction" in flags) + " --step-energies" * lengths.step_energies
    return words + " --control-variates" * getattr(calibration.sampler, "control_variates", False)


def sample(arguments: argparse.Namespace) -> int:
    """`llc sample`: draws into a file or a store, and a report on them; those so far, where it is interrupted."""
    if arguments.out is None and arguments.store is None:
        raise ValueError(
            "it needs --out FILE.nc for its draws, or --store FOLDER.zarr to keep them as it goes; give one of them."
        )
    if (steps := arguments.num_warmup + arguments.num_draws * arguments.thinning) > _MOST_STEPS:
        raise ValueError(
            f"--num-warmup and --num-draws times --thinning need to be at most {_MOST_STEPS} steps together, got "
            f"{steps}; take fewer."
        )
    outputs.check(out=arguments.out, folder=arguments.store, reads=(inputs.model_file(arguments.posterior),))
    model = inputs.load_model(arguments.posterior)
    posterior = model.posterior.with_scale(nbeta=arguments.nbeta, gamma=arguments.gamma)
    before = outputs.check_draws(arguments.out, posterior, keeps="spectrum")
    if before is not None:
        say(f"The draws in {arguments.out} will be replaced.")
    given = _sampler_settings(arguments)
    posterior, given = _completed(arguments, posterior, given)
    names = ("num_chains", "num_warmup", "num_draws", "thinning", "batch_size", "eval_size")
    names += ("step_energies", "chain_method", "keep_params")
    sampler = getattr(llc, _SAMPLERS[arguments.sampler])(**given)
    settings = {name: getattr(arguments, name) for name in names}
    run = functools.partial(
        llc.sample,
        _key(arguments.seed),
        posterior,
        sampler,
        observables=model.observables,
        store=arguments.store,
        **settings,
    )
    under_way()
    draws = _drawn(run, arguments, posterior, before)
    path = arguments.store
    if arguments.out is not None:
        path = outputs.put_draws(arguments.out, posterior, draws, before)
    try:
        say(f"{llc.report(draws)}\n\nWritten to {path}.", kept=path)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; all draws are written to {path}") from None
    return 0


def _drawn(
    run: "Callable[[], xr.DataTree]", arguments: argparse.Namespace, posterior: "LocalPosterior", before: int | None
) -> "xr.DataTree":
    """The draws of a run; where it ends before its time, those so far are written."""
    try:
        return run()
    except KeyboardInterrupt as stop:
        draws = getattr(stop, "partial", None)
        told = [str(stop)] if arguments.store is not None else []
        if draws is None and not told:
            raise KeyboardInterrupt("interrupted before the first draw, so that nothing was written") from None
        if draws is not None and arguments.out is not None:
            path = outputs.put_draws(arguments.out, posterior, draws, before)
            done = f"{draws['posterior'].sizes['draw']} of {arguments.num_draws} draws of every chain"
            told.append(f"interrupted; {done} are written to {path}")
        raise KeyboardInterrupt("\n".join(told)) from None
    except OSError as error:  # of the store, that can't be written to
        if (draws := getattr(error, "partial", None)) is None:
            raise
        if arguments.out is None:
            path = outputs.put_beside(arguments.store, draws)
        else:
            path = outputs.put_draws(arguments.out, posterior, draws, before)
        reason = (error.strerror or str(error)).rstrip(".")
        raise ValueError(f"{reason}. The draws so far are in {path} as well.") from error


def _sampler_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given of the sampler, refused where it has no such setting."""
    given = {name: getattr(arguments, name) for name in _OF_SAMPLER if getattr(arguments, name) is not None}
    for name in given:
        if arguments.sampler not in _OF_SAMPLER[name]:
            flag, of = f"--{name.replace('_', '-')}", " or ".join(_OF_SAMPLER[name])
            raise ValueError(f"{flag} needs --sampler {of}, got {arguments.sampler}.")
    if "preconditioner" in given:
        given["preconditioner"] = {"identity": llc.Identity, "rmsprop": llc.RMSProp}[given["preconditioner"]]()
    return given


def _completed(
    arguments: argparse.Namespace, posterior: "LocalPosterior", given: dict[str, Any]
) -> tuple["LocalPosterior", dict[str, Any]]:
    """Posterior and settings, with γ, step size and friction from the curvature where they were not given."""
    given, stochastic = dict(given), arguments.sampler in _STOCHASTIC
    momentum = arguments.sampler in _OF_SAMPLER["friction"]
    if arguments.step_size is not None:
        given["step_size"] = arguments.step_size
    if not (posterior.gamma is None or (stochastic and arguments.step_size is None) or momentum):
        return posterior, given
    num_steps = arguments.num_warmup + arguments.num_draws * arguments.thinning
    settings = llc.settings_from_curvature(posterior, llc.top_eigenvalue(posterior), num_steps)
    if stochastic:
        given.setdefault("step_size", settings.step_size)
    if momentum:
        given.setdefault("friction", 2 * (0.5 / settings.step_size) ** 0.5)  # 2 √(nβ h_max + γ)
    return posterior.with_scale(gamma=settings.gamma), given


def bounds(arguments: argparse.Namespace) -> int:
    """`llc bounds`: the spectrum, the rank, and bounds on λ; the status is 1 where an assumption fails."""
    outputs.check(out=arguments.out, reads=(inputs.model_file(arguments.posterior),))
    posterior = inputs.load_posterior(arguments.posterior).with_scale(nbeta=arguments.nbeta, gamma=arguments.gamma)
    outputs.check_draws(arguments.out, posterior, keeps="draws")
    names = ("matrix", "method", "num_matvecs", "num_probes", "seed")
    if arguments.higher and (arguments.matrix, arguments.method) == ("hessian", "auto"):
        from llc.geometry.higher_order.ranks import complete_spectrum  # not for `llc --help`

        spectrum = complete_spectrum(posterior)
    else:
        spectrum = llc.spectrum(posterior, **{name: getattr(arguments, name) for name in names})
    scale = {} if posterior.gamma is None else {"nbeta": float(posterior.nbeta), "gamma": float(posterior.gamma)}
    result = llc.rank_bounds(spectrum, **scale)
    if arguments.higher:
        limits = {"memory": arguments.memory, "budget": arguments.budget}
        result = llc.higher_bounds(posterior, spectrum, result, key=_key(arguments.seed), **limits)
    text, scales = str(result), None
    if arguments.scales:
        known = spectrum if spectrum.vectors is not None else None  # others have no eigenvectors
        scales = llc.scale_spectrum(_key(arguments.seed), posterior, known)
        text += f"\n\n{scales}"
    if arguments.out is not None:
        path = outputs.put_spectrum(arguments.out, posterior, spectrum, result, scales=scales)
        written = ["spectrum", *["bounds"] * arguments.higher, *["scales"] * arguments.scales]
        text += f"\n\n{' and '.join(written).capitalize()} written to {path}."
    say(text, kept=arguments.out)
    return 0 if result.valid else 1


def report(arguments: argparse.Namespace) -> int:
    """`llc report`: text, JSON, page and figures of a file; the status is that of the verdict."""
    outputs.check(page=arguments.html, folder=arguments.figures, reads=(arguments.file,))
    if arguments.figures is not None and arguments.figures.exists() and not arguments.figures.is_dir():
        raise ValueError(f"--figures needs a folder, but {arguments.figures} is a file; give another path.")
    result = llc.report(llc.load(arguments.file), reference_loss=arguments.reference_loss)
    if arguments.html is not None:
        llc.save_html(result, arguments.html)
    paths = llc.save_figures(result, arguments.figures) if arguments.figures is not None else []
    say(result.to_json() if arguments.json else str(result))
    if paths:
        complain("\n".join(map(str, paths)))
    if arguments.require_converged and result.verdict == "SCALE_DEPENDENT":
        return 1
    return _EXIT[result.verdict]
