"""Chain-steps a second of devinterp 1.3.2 (PyTorch), as one JSON line; run by the peer's own Python (setup.sh).

Called by validation/speed.py. Two loaders: "usual" is the one its documentation shows, "fastest" indexes tensors by a
fresh permutation an epoch, with no workers and no collation. A draw of devinterp is the loss of the minibatch of the
step, which costs nothing; its `init_loss` is given, so that no time goes into it.
"""

import argparse
import functools
import math
import time
import warnings

import torch
from devinterp.optim import SGLD
from devinterp.slt.llc import LLCEstimator
from devinterp.slt.sampler import sample
from speed_models import Loss, TensorLoader, build, parse, tell
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def main() -> None:
    args = parse(__doc__)
    warnings.simplefilter("ignore")
    torch.manual_seed(args.seed)
    model, tensors, evaluate = build(args.model, args.num_data)
    dataset = TensorDataset(*tensors)
    if args.loader == "usual":
        loader = DataLoader(dataset, batch_size=args.batch_size, shuffle=True)
    else:
        loader = TensorLoader(dataset, args.batch_size)
    measured = functools.partial(_seconds, model, loader, evaluate, args)
    measured(num_draws=20, num_chains=1, processes=1)  # warms the libraries up
    seconds = measured(num_draws=args.num_draws, num_chains=args.num_chains, processes=args.processes)
    tell("devinterp", seconds, model, args)


def _seconds(
    model: nn.Module,
    loader: DataLoader,
    evaluate: Loss,
    args: argparse.Namespace,
    *,
    num_draws: int,
    num_chains: int,
    processes: int,
) -> float:
    """Wall time of one call."""
    nbeta = args.num_data / math.log(args.num_data)
    start = time.perf_counter()
    results = sample(
        model=model,
        loader=loader,
        callbacks=[LLCEstimator(num_chains, num_draws, init_loss=1.0, nbeta=nbeta)],
        evaluate=evaluate,
        sampling_method=SGLD,
        optimizer_kwargs={"lr": args.step_size, "localization": args.gamma, "nbeta": nbeta},
        num_draws=num_draws,
        num_chains=num_chains,
        init_loss=1.0,
        cores=processes,
        seed=args.seed,
        verbose=False,
    )
    if not (results["loss/trace"] > 0).all():
        raise RuntimeError("devinterp left draws out")
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
