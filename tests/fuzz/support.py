"""Settings of the fuzz tests."""

from hypothesis import HealthCheck, Phase, settings


def fuzzed(examples):
    """The same examples in every run."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],  # a smaller example takes minutes to find
        suppress_health_check=list(HealthCheck),
    )
