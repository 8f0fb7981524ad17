"""What to change about a loss that fails, by what its library says."""

import jax

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
    "TracerArrayConversionError": (
        " — NumPy can't compute with params or batch while JAX traces the loss; use the functions of jax.numpy."
    ),
    "TracerBoolConversionError": " — a Python condition can't depend on params or batch; use jnp.where.",
    "ConcretizationTypeError": (
        " — params and batch have no values while JAX traces the loss; use jnp.where, and no float() or int()."
    ),
}
NO_DROPOUT = (
    " — the model asks for random numbers, as dropout does: switch it off (deterministic=True, model.eval(), "
    "eqx.nn.inference_mode, hk.without_apply_rng)."
)
NO_AXIS = (
    " — no axis of a batch has a name here: use the model in inference mode, with the running averages of batch "
    "normalization (use_running_average=True, eqx.nn.inference_mode)."
)
ANY_SIZE = " — batches are of any size; take the size from the batch (len(x), reshape to -1)."


_OWN_CHECK, _CALLBACK = "EquinoxRuntimeError", "callback"


def first_line(error: Exception) -> str:
    """Of its message; of errors that come out of a compiled program, the line that says what it was."""
    lines = str(error).splitlines() or [""]
    if type(error).__name__ == _OWN_CHECK:
        return next((line.partition(": ")[2] for line in lines if _OWN_CHECK in line.partition(": ")[0]), lines[0])
    return lines[-1] if is_of_callback(error) else lines[0]


def is_of_callback(error: Exception) -> bool:
    """Whether a Python function that a compiled program calls (`jax.pure_callback`) raised, or gave another dtype."""
    return isinstance(error, jax.errors.JaxRuntimeError) and _CALLBACK in str(error).partition("\n")[0].lower()


def require_computable(error: Exception) -> None:
    """Raises what no change of precision helps: a callback or a check of the loss, the device's want of memory.

    Raises:
        ValueError: if a loss failed while it was computed, by a callback or a check of its own.
        JaxRuntimeError: the error itself, if it is the device's.
    """
    if is_of_callback(error) or type(error).__name__ == _OWN_CHECK:
        raise ValueError(
            f"loss_fn needs to be computable at w*, in float64 too, but it raises {first_line(error)}; check its "
            "callbacks, which get params and batch in either precision, and its own checks (eqx.error_if)."
        ) from error
    if isinstance(error, jax.errors.JaxRuntimeError):
        raise error


def require_unchanged(error: Exception) -> None:
    """Raises ValueError if a loss failed because it changes a state among its params, which only some programs see."""
    name = type(error).__name__
    if name == "TraceContextError":
        raise ValueError(
            f"loss_fn needs to have no side effects, but it raises {name}: {first_line(error)}{CURES[name]}"
        ) from error
