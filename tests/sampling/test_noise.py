"""Bits, moments, tails and independence of the noise, each by a z-score, with generators that are to fail."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

import llc
from llc.sampling.noise import box_muller, normal, normal_like, random_words, threefry

KEY = jax.random.key(11)
NUM_WORDS = 2**20
LIMIT = 4.0  # of |z|


def words(*, num_rounds=13, key=KEY, stream=0):
    return [np.asarray(x) for x in random_words(key, NUM_WORDS, stream=stream, num_rounds=num_rounds)]


# The generator


@pytest.mark.parametrize(
    ("rounds", "counter", "key", "expected"),
    [
        (13, (0, 0), (0, 0), (0x9D1C5EC6, 0x8BD50731)),
        (13, (0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0xFD36D048, 0x2D17272C)),
        (13, (0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xBA3E4725, 0xF27D669E)),
        (20, (0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        (20, (0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
        (20, (0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_known_answers(rounds, counter, key, expected):
    """Those that Random123 (Salmon et al.) is tested with."""
    x, k = np.array(counter, np.uint32), np.array(key, np.uint32)
    found = threefry(jnp.asarray(k[0]), jnp.asarray(k[1]), jnp.asarray(x[0]), jnp.asarray(x[1]), rounds)
    assert tuple(int(word) for word in found) == expected


def bit_scores(first, second):
    """z of the share of ones at each bit, of bits that agree with those before and of the other word, of products."""
    scores = {}
    for name, word in {"first": first, "second": second}.items():
        bits = (word[:, None] >> np.arange(32, dtype=np.uint32)) & 1
        scores[f"ones of the {name} word"] = (2 * bits.mean(axis=0) - 1) * np.sqrt(len(word))
        for lag in (1, 2, 64):
            agree = np.bitwise_count(~(word[lag:] ^ word[:-lag])).sum()
            scores[f"bits at lag {lag} of the {name} word"] = (2 * agree / (32 * (len(word) - lag)) - 1) * np.sqrt(
                32 * (len(word) - lag)
            )
        centered = np.sqrt(12) * ((word + 0.5) / 2**32 - 0.5)
        for lag in (1, 2, 3, 128):
            scores[f"serial correlation {lag} of the {name} word"] = (
                centered[lag:] * centered[:-lag]
            ).mean() * np.sqrt(len(word) - lag)
    agree = np.bitwise_count(~(first ^ second)).sum()
    scores["bits of the two words"] = (2 * agree / (32 * len(first)) - 1) * np.sqrt(32 * len(first))
    counts = np.bincount(first >> 24, minlength=256) - len(first) / 256
    chi_square = (counts**2).sum() / (len(first) / 256)
    scores["values of the first byte"] = (chi_square - 255) / np.sqrt(2 * 255)
    return {name: float(np.abs(score).max()) for name, score in scores.items()}


@pytest.mark.parametrize("stream", [0, 1])
def test_bits(stream):
    scores = bit_scores(*words(stream=stream))
    assert max(scores.values()) < LIMIT, scores


@pytest.mark.parametrize("num_rounds", [2, 4, 6])
def test_bits_of_too_few_rounds_are_found_out(num_rounds):
    """Negative control: the same tests of the same generator, cut short."""
    scores = bit_scores(*words(num_rounds=num_rounds))
    assert max(scores.values()) > 2 * LIMIT, scores


# The transform


def exact_normal(radius, angle):
    x = (radius >> np.uint32(1)) + 0.5
    v = angle.astype(np.int64) - 2**32 * (angle >= 2**31)
    return np.sqrt(-2 * np.log(x / 2**31)) * np.sin(np.pi * v / 2**32)


def test_the_transform_is_exact_to_the_precision_of_float32():
    """u near 1 rounds by 2⁻²⁵ there, that is z by 10⁻⁴ at most where it is itself that small."""
    edges = np.array([0, 1, 2, 3, 2**30, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1], np.uint32)
    radius, angle = (
        np.concatenate([grid.ravel(), word]) for grid, word in zip(np.meshgrid(edges, edges), words(), strict=True)
    )
    found = np.asarray(jax.jit(box_muller)(radius, angle))
    exact = exact_normal(radius, angle)
    assert np.isfinite(found).all()
    assert np.abs(found).max() > 6.6
    squares = np.maximum(exact**2, 1e-4)
    assert np.abs(found - exact).max() < 2e-4
    assert (np.abs(found**2 - exact**2) / squares)[exact**2 > 0.01].max() < 1e-4
    assert np.abs(found - exact)[np.abs(exact) > 1].max() < 2e-6


def moment_scores(z):
    """z of the means of z, z², z³ and z⁴, whose variances are 1, 2, 15 and 96, and of 100 bins of equal mass."""
    z = np.asarray(z, np.float64)
    powers = {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96)}
    scores = {
        f"moment {k}": abs((z**k).mean() - mean) / np.sqrt(variance / len(z)) for k, (mean, variance) in powers.items()
    }
    counts = np.bincount(np.minimum((scipy.special.ndtr(z) * 100).astype(int), 99), minlength=100)
    chi_square = ((counts - len(z) / 100) ** 2).sum() / (len(z) / 100)
    return scores | {"bins": abs(chi_square - 99) / np.sqrt(2 * 99)}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_moments_and_shape(dtype):
    with jax.enable_x64(dtype == "float64"):
        z = np.asarray(normal(KEY, NUM_WORDS, dtype))
    assert z.dtype == dtype
    scores = moment_scores(z)
    assert max(scores.values()) < LIMIT, scores


@pytest.mark.parametrize(
    "weak",
    [
        lambda: np.asarray(box_muller(*random_words(KEY, NUM_WORDS, num_rounds=3))),
        lambda: np.sum([(word + 0.5) / 2**32 - 0.5 for i in range(6) for word in words(stream=i)], axis=0),
        lambda: 1.01 * np.asarray(normal(KEY, NUM_WORDS)),
    ],
    ids=["three rounds", "a sum of twelve uniform numbers", "one per cent too wide"],
)
def test_wrong_moments_are_found_out(weak):
    """Negative control."""
    assert max(moment_scores(weak()).values()) > 2 * LIMIT


THRESHOLDS = np.array([1.0, 2.0, 3.0, 4.0, 4.5, 5.0])
NUM_TAIL = 2**20, 96  # numbers a turn, turns: 29 are expected on either side beyond 5σ


@functools.partial(jax.jit, static_argnums=0)
def count_tails(mask):
    """How many are below −t and above t, for each t, with `mask` on the word of the radius."""

    def turn(counts, i):
        radius, angle = random_words(jax.random.fold_in(KEY, i), NUM_TAIL[0])
        z = box_muller(radius & np.uint32(mask), angle)
        limits = THRESHOLDS.astype(np.float32)[:, None]
        return counts + jnp.stack([(z < -limits).sum(axis=1), (z > limits).sum(axis=1)]), None

    return jax.lax.scan(turn, jnp.zeros((2, len(THRESHOLDS)), jnp.int32), jnp.arange(NUM_TAIL[1]))[0]


def tail_scores(mask):
    total = NUM_TAIL[0] * NUM_TAIL[1]
    share = scipy.stats.norm.sf(THRESHOLDS)
    return np.abs(np.asarray(count_tails(mask)) - total * share) / np.sqrt(total * share * (1 - share))


@pytest.mark.optimized
def test_tails_to_five_sigma():
    assert tail_scores(0xFFFFFFFF).max() < LIMIT


@pytest.mark.optimized
def test_tails_of_a_coarse_radius_are_found_out():
    """Negative control: 16 bits of the radius end at |z| = 4.9."""
    assert tail_scores(0xFFFF0000).max() > LIMIT


# Independence


def pair_scores(a, b):
    """z of the correlations of a with b and of a² with b²."""
    a, b = (np.ravel(x).astype(np.float64) for x in (a, b))
    return [abs((x * y).mean()) * np.sqrt(len(x)) for x, y in ((a, b), ((a**2 - 1) / 2**0.5, (b**2 - 1) / 2**0.5))]


def neighbours(z):
    """Pairs of vectors that a sampler meets as independent ones."""
    step_key = jax.random.split(KEY, 3)[0]
    steps = [normal(jax.random.fold_in(step_key, i), NUM_WORDS) for i in (0, 1, 2, 1000)]
    chains = [normal(jax.random.fold_in(key, 0), NUM_WORDS) for key in jax.random.split(step_key, 3)]
    leaves = normal_like(KEY, {"a": jnp.zeros((NUM_WORDS,)), "b": jnp.zeros((NUM_WORDS // 64, 64))})
    return {
        "next step": steps[:2],
        "step after that": (steps[0], steps[2]),
        "far step": (steps[0], steps[3]),
        "chains": chains[:2],
        "far chains": (chains[0], chains[2]),
        "chain and step": (chains[0], steps[0]),
        "leaves": (leaves["a"], leaves["b"]),
        "neighbours": (z[1:], z[:-1]),
        "halves": (z[: NUM_WORDS // 2], z[NUM_WORDS // 2 :]),
    }


def test_independence_of_steps_chains_leaves_and_elements():
    scores = {name: pair_scores(*pair) for name, pair in neighbours(np.asarray(normal(KEY, NUM_WORDS))).items()}
    assert max(max(score) for score in scores.values()) < LIMIT, scores


def test_dependence_is_found_out():
    """Negative control: counters that overlap by half, and vectors that share one per cent of their variance."""
    z = np.asarray(normal(KEY, NUM_WORDS))
    other = np.asarray(normal(jax.random.key(1), NUM_WORDS))
    assert max(pair_scores(z, np.concatenate([z[: NUM_WORDS // 2], other[NUM_WORDS // 2 :]]))) > 2 * LIMIT
    assert max(pair_scores(z, np.sqrt(0.99) * other + 0.1 * z)) > 2 * LIMIT


# The same numbers everywhere


TREE = {"a": jnp.zeros((7, 5)), "b": jnp.zeros(()), "c": [jnp.zeros((3, 1, 11)), jnp.zeros(64)]}


@pytest.mark.optimized  # without LLVM's optimizations a rest that no vector holds may be rounded otherwise
def test_the_same_bits_alone_in_a_vmap_and_in_a_loop():
    keys = jax.random.split(KEY, 3)
    alone = [jax.jit(normal_like)(key, TREE) for key in keys]
    together = jax.jit(jax.vmap(normal_like, in_axes=(0, None)))(keys, TREE)
    in_turn = jax.jit(lambda keys: jax.lax.map(lambda key: normal_like(key, TREE), keys))(keys)
    # what becomes of the numbers must not change their rounding
    used = jax.jit(lambda key: (n := normal_like(key, TREE), jax.tree.map(lambda x: 1e-3 * x + 1, n))[0])
    for i, single in enumerate(alone):
        for other in (jax.tree.map(lambda x: x[i], together), jax.tree.map(lambda x: x[i], in_turn), used(keys[i])):  # noqa: B023
            jax.tree.map(np.testing.assert_array_equal, single, other)


def test_words_are_the_same_in_a_vmap_whatever_is_optimized():
    keys = jax.random.split(KEY, 3)
    together = jax.vmap(lambda key: random_words(key, 1001))(keys)
    for i, key in enumerate(keys):
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda x: x[i], together), random_words(key, 1001))  # noqa: B023


@pytest.mark.slow
@pytest.mark.optimized
def test_elements_are_counted_through_the_leaves():
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(normal_like(KEY, TREE))])
    np.testing.assert_array_equal(flat, normal(KEY, len(flat)))
    for size in (1, 9, 100):
        np.testing.assert_array_equal(normal(KEY, size), flat[:size])


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_types_are_those_of_the_leaves(name):
    with jax.enable_x64(name == "float64"):
        made = normal_like(KEY, {"x": jnp.zeros(100, name), "y": jnp.zeros((2, 3), name)})
        assert [leaf.dtype for leaf in jax.tree.leaves(made)] == [name, name]
        assert normal_like(KEY, ()) == ()


@pytest.mark.parametrize("implementation", ["rbg", "unsafe_rbg"])
def test_keys_of_other_implementations(implementation):
    key = jax.random.key(0, impl=implementation)
    z = np.asarray(normal(key, NUM_WORDS))
    np.testing.assert_array_equal(z, normal(key, NUM_WORDS))
    assert max(moment_scores(z).values()) < LIMIT
    assert max(pair_scores(z, normal(jax.random.key(1, impl=implementation), NUM_WORDS))) < LIMIT


def test_a_counter_of_32_bits_is_not_asked_for_more():
    with pytest.raises(ValueError, match="size"):
        jax.eval_shape(lambda: random_words(KEY, 2**32 + 1))


def test_samplers_take_their_noise_from_here():
    """SGLD's state holds the vector that the next step averages with its own."""
    params = {"w": jnp.zeros((4, 3)), "b": jnp.zeros(3)}
    posterior = llc.LocalPosterior(lambda w, _: jnp.sum(w["w"] ** 2), params, np.zeros((4, 1), np.float32), gamma=1.0)
    state = llc.SGLD(1e-3).init(KEY, posterior)
    jax.tree.map(np.testing.assert_array_equal, state.noise, normal_like(KEY, params))
