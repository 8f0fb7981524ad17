"""Set up for all tests: most of their time is compilation, of programs that run once and on few numbers."""

import gc
import os
import pathlib

import jax
import pytest

# One thread each, for the workers and the subprocesses of tests: on small matrices a second one mostly waits, busily.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

# What one test compiled another one reads, in this run and in the next.
_CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"
jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
os.environ |= {"JAX_COMPILATION_CACHE_DIR": str(_CACHE), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

# Tracing makes objects by the million and hardly any cycle: a collection every 700 of them is a tenth of its time.
gc.freeze()
gc.set_threshold(100_000, 50, 100)

_LONG = ("information_loss", "coverage", "no_knobs", "temperature", "deep_linear", "test_best_of")


# What others of the suite show in less time, and formulas of the zoo that no change of `llc` touches. Marked slow.
_AT_LENGTH = (
    "test_information_loss",
    "test_connection_cost",
    "test_one_network_from_end_to_end",
    "test_integrals_give_the_learning_coefficient[tanh, 2 units]",
    "test_integrals_give_the_learning_coefficient[(a b - 1)^2]",
    "test_integrals_give_the_learning_coefficient[(y^2 - x^3)^2]",
    "test_superposition_in_closed_form",
    "test_gauss_newton_by_every_method[5-",
    "test_lanczos_quad_is_within_its_error",
    "test_a_quadratic_has_no_variance[b-NUTS]",
    "test_a_quadratic_has_no_variance[b-hot",
    "test_a_quadratic_has_no_variance[b-cold]",
    "test_the_thermostat_takes_off_noise_that_it_does_not_know",
    "test_only_what_moves_is_moved_and_samplers_take_it",
    "test_a_batch_has_a_largest_size_and_says_what_it_heats",
    "test_slope_is_that_of_order_statistics[w^2]",
    "test_essential_variables[ridge-outputs]",
    "test_order[ridge-outputs]",
    "test_a_constant_preconditioner_keeps_the_law[curvature-b]",
)


def pytest_collection_modifyitems(items):
    for item in items:
        of_protocol = "test_protocol.py" in item.nodeid and item.nodeid.endswith(("[MALA]", "Maruyama]"))
        if of_protocol or any(name in item.nodeid for name in _AT_LENGTH):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Without most of LLVM's optimizations, but where chains run for long."""
    jax.config.update("jax_disable_most_optimizations", not any(name in item.nodeid for name in _LONG))
