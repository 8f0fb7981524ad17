"""Set up for all tests: most of their time is compilation, of programs that run once and on few numbers."""

import gc
import os
import pathlib
import signal

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

# A shell lets its background jobs ignore Ctrl-C, which some tests send to themselves.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tracing makes objects by the million and hardly any cycle: a collection every 700 of them is a tenth of its time.
gc.freeze()
gc.set_threshold(100_000, 50, 100)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Without most of LLVM's optimizations, but where chains run for long enough to pay for them."""
    jax.config.update("jax_disable_most_optimizations", not item.get_closest_marker("optimized"))


# Of Linux, which gives a process 65,530 of them. Each compiled program has several.
_MAPS = pathlib.Path("/proc/self/maps")


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Between files, let go of compiled programs before there are more than a process may have."""
    is_last = nextitem is None or nextitem.path != item.path
    if is_last and _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.collect()
