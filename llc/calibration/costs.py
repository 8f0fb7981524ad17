"""What steps, draws and runs cost, in gradients of the loss over all the data: the unit of a budget (price.py)."""

from llc.sampling.run_lengths import RunLengths

SLOPES = 3.5  # times what an evaluation of some rows costs with its slopes, in units of their gradient


def step_cost(batch_size: int | None, num_data: int, *, doubled: bool) -> float:
    """Gradients over all the data that a step costs; with control variates it is `doubled`."""
    return (1.0 if batch_size is None else batch_size / num_data) * (2 if doubled else 1)


def draw_cost(eval_size: int | None, num_data: int, *, is_sample: bool = False) -> float:
    """Gradients over all the data that the evaluation of a draw costs.

    Args:
        eval_size: rows on which it is evaluated; None takes all.
        num_data: of the data.
        is_sample: whether those are the resident rows of a stream, on which a draw takes the slopes at w* too.
    """
    if eval_size is None and not is_sample:
        return 1.0
    return SLOPES * (num_data if eval_size is None else eval_size) / num_data


def run_cost(lengths: RunLengths, num_data: int, *, doubled: bool, is_sample: bool = False) -> float:
    """Gradients over all the data that all chains of a run cost, the draws of the warm-up included."""
    steps = lengths.num_steps * step_cost(lengths.batch_size, num_data, doubled=doubled)
    of_draw = draw_cost(lengths.eval_size, num_data, is_sample=is_sample)
    return lengths.num_chains * (steps + (lengths.num_warmup_draws + lengths.num_draws) * of_draw)
