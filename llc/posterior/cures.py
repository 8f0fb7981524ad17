"""What to change about a loss that fails, by what its library says."""

CURES = {  # by the name of the error, so that its library need not be imported
    "TraceContextError": (
        " — the model changes its own state (dropout keys, running averages) while it is evaluated. Call model.eval() "
        "first, and split it outside of loss_fn: graph, params, rest = nnx.split(model, nnx.Param, …), with "
        "nnx.merge(graph, params, rest) within."
    ),
    "ModifyScopeVariableError": (
        " — the model updates its running averages while it is evaluated, as batch normalization does in training "
        "mode: set use_running_average=True."
    ),
    "ScopeCollectionNotFound": (
        " — the model needs all its collections, params and running averages: "
        "model.apply({'params': params, 'batch_stats': averages}, batch)."
    ),
    "UnexpectedTracerError": (
        " — it keeps a state from call to call (a key that it splits, an array that it updates). A loss needs to be a "
        "fixed function of (params, batch): put what is random, or changes, into data."
    ),
    "TracerArrayConversionError": " — NumPy can't compute with params or batch; take the functions of jax.numpy.",
    "TracerBoolConversionError": " — a Python condition can't depend on params or batch; take jnp.where.",
    "ConcretizationTypeError": " — params and batch have no values yet; take jnp.where, and no float() or int().",
}
NO_DROPOUT = (
    " — the model asks for random numbers, as dropout does: switch it off (deterministic=True, model.eval(), "
    "eqx.nn.inference_mode, hk.without_apply_rng)."
)
NO_AXIS = (
    " — no axis of a batch has a name here: take the model as for inference, with the running averages of batch "
    "normalization (use_running_average=True, eqx.nn.inference_mode)."
)
ANY_SIZE = " — batches are of any size; take it from the batch (len(x), reshape to -1)."


def first_line(error: Exception) -> str:
    """Of its message."""
    return str(error).partition("\n")[0]


def require_unchanged(error: Exception) -> None:
    """Raises ValueError if a loss failed because it changes a state among its params, which only some programs see."""
    name = type(error).__name__
    if name == "TraceContextError":
        raise ValueError(
            f"loss_fn needs to change nothing, but it raises {name}: {first_line(error)}{CURES[name]}"
        ) from error
