"""Chain-steps a second of canonical-interp 0.2.7 (PyTorch), as one JSON line; run by a Python of its own (setup.sh).

Called by validation/speed.py. "fastest" runs its vmapped chains eagerly on minibatches that are indexed out of tensors,
"compiled" with torch.compile, as its default is. A first call compiles. A later one still traces, so that the seconds
are those of a longer call less those of a shorter one.
"""

import argparse
import contextlib
import math
import sys
import time
import warnings

import torch
from canonical_interp.slt import LLCEstimator
from speed_models import Loss, TensorLoader, build, parse, tell
from torch import nn
from torch.utils.data import TensorDataset

_SHORT = 3  # draws of the shorter call


def main() -> None:
    args = parse(__doc__)
    warnings.simplefilter("ignore")
    torch.manual_seed(args.seed)
    model, tensors, loss = build(args.model, args.num_data)
    loader = TensorLoader(TensorDataset(*tensors), args.batch_size)
    lengths = _SHORT, _SHORT, _SHORT + args.num_draws
    _, short, long = (_seconds(model, loader, loss, args, num_draws) for num_draws in lengths)
    tell("canonical-interp", long - short, model, args)


def _seconds(model: nn.Module, loader: TensorLoader, loss: Loss, args: argparse.Namespace, num_draws: int) -> float:
    """Wall time of one call."""
    estimator = LLCEstimator(
        draws=num_draws,
        chains=args.num_chains,
        burnin_steps=0,
        learning_rate=args.step_size,
        localization=args.gamma,
        nbeta=args.num_data / math.log(args.num_data),
    )

    def criterion(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return loss(lambda _: outputs, [labels, labels])

    start = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        estimator.estimate_llc(
            model,
            loader,
            criterion_fn=criterion,
            compile="default" if args.loader == "compiled" else False,
            seed=args.seed,
            show_progress=False,
            current_loss=1.0,
        )
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
