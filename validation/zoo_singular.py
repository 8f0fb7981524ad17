"""Points of the zoo that are attention, factor analysis, topic models, and quadratic units for modular addition."""

import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import theory
from jaxtyping import Array, PRNGKeyArray
from zoo_case import Case, case_of, population

import llc
from llc.posterior.precision import float64

LENGTH = 2  # tokens of a sequence of the attention


def singular_models() -> Iterator[Case]:
    """All of them."""
    yield _attention(3, 2, 0, 0)
    yield _attention(4, 3, 0, 0)
    yield _attention(3, 2, 1, 1)
    yield _attention(4, 3, 1, 1)
    yield _factor_analysis(3, 1, 0)
    yield _factor_analysis(5, 2, 1)
    yield _dirichlet(3, 3, 2)
    yield _dirichlet(4, 4, 3)
    yield _modular_addition(3, 2)


def attention_logits(params: dict[str, Array], batch: tuple[Array, Array]) -> Array:
    """Logits at the last token of each sequence."""
    embedded = params["E"][batch[0]]
    scores = jnp.einsum("si,ij,stj->st", embedded[:, -1], params["A"], embedded)
    mixed = jnp.einsum("st,sti->si", jax.nn.softmax(scores, axis=-1), embedded)
    return mixed @ params["U"]


def attention_loss(params: dict[str, Array], batch: tuple[Array, Array]) -> Array:
    """Cross-entropy with the targets, of each sequence."""
    return -jnp.sum(batch[1] * jax.nn.log_softmax(attention_logits(params, batch), axis=-1), axis=-1)


def _attention(num_tokens: int, width: int, rank_unembedding: int, rank_embedding: int) -> Case:
    """One head without a residual stream at E U P = 0, P the projection on logits up to a shift."""
    embedding, unembedding = np.zeros((num_tokens, width)), np.zeros((width, num_tokens))
    for i in range(rank_embedding):
        embedding[i, i] = 1.0
    for i in range(rank_unembedding):  # rows that the embedding does not reach, and that are no shift
        unembedding[rank_embedding + i, i] = 1.0
    center = {
        "E": embedding,
        "A": np.round(2 * np.random.default_rng(0).normal(size=(width, width)), 1),
        "U": unembedding,
    }
    rank = theory.two_layer_rank(num_tokens - 1, num_tokens, rank_unembedding, rank_embedding)
    coefficient = theory.one_head_attention(num_tokens, width, rank_unembedding, rank_embedding)
    where = "zero" if rank_embedding == rank_unembedding == 0 else f"rk UP={rank_unembedding} rk E={rank_embedding}"
    dim = width * (2 * num_tokens + width)
    reference = "K ≍ ‖E U P‖², derived in theory.one_head_attention"

    def build(_key: PRNGKeyArray, n: int) -> llc.LocalPosterior:
        sequences = np.array(list(itertools.product(range(num_tokens), repeat=LENGTH)), np.int32)
        data = np.resize(sequences, (n, LENGTH)), np.full((n, num_tokens), 1 / num_tokens)
        return llc.LocalPosterior(attention_loss, center, data, gamma=1.0, predict_fn=attention_logits)

    return case_of(f"attention {num_tokens}-{width} {where}", "attention", build, coefficient, rank, dim, reference)


def _factor_analysis(variables: int, factors: int, true_factors: int) -> Case:
    """KL of N(0, ΛΛᵀ + Ψ) from the truth, with the logarithms of Ψ as parameters."""
    loading = np.zeros((variables, factors))
    loading[:, :true_factors] = np.linspace(0.5, 1.5, variables * true_factors).reshape(variables, true_factors)
    truth = loading @ loading.T + np.eye(variables)

    def loss(params: dict[str, Array]) -> Array:
        covariance = params["loading"] @ params["loading"].T + jnp.diag(jnp.exp(params["log_noise"]))
        quotient = jnp.linalg.solve(covariance, jnp.asarray(truth, covariance.dtype))
        return 0.5 * (jnp.trace(quotient) - jnp.linalg.slogdet(quotient)[1] - variables)

    build = population(loss, {"loading": loading, "log_noise": np.zeros(variables)})
    return case_of(
        f"factor analysis {variables} variables, {true_factors} of {factors} factors",
        "factor analysis",
        build,
        theory.factor_analysis(variables, factors, true_factors),
        theory.factor_analysis_rank(variables, true_factors),
        variables * (factors + 1),
        "rank, symmetry orbit and quartic rest; theory.factor_analysis",
    )


def _dirichlet(num_words: int, num_documents: int, num_topics: int) -> Case:
    """Topic model with equal topics and equal documents, its conditional distributions as logits."""

    def loss(params: dict[str, Array]) -> Array:
        def simplex(logits: Array) -> Array:  # columns; the last logit is zero
            return jax.nn.softmax(jnp.concatenate([logits, jnp.zeros_like(logits[:1])]), axis=0)

        words = simplex(params["topics"]) @ simplex(params["documents"])
        return -jnp.mean(jnp.log(words)) - jnp.log(num_words)

    center = {"topics": np.zeros((num_words - 1, num_topics)), "documents": np.zeros((num_topics - 1, num_documents))}
    return case_of(
        f"LDA {num_words} words, {num_documents} documents, {num_topics} equal topics",
        "topic model",
        population(loss, center),
        theory.latent_dirichlet_allocation(num_words, num_documents, num_topics, 0),
        num_words - 1,
        (num_words - 1) * num_topics + (num_topics - 1) * num_documents,
        "differences to the last topic and document; theory.latent_dirichlet_allocation",
    )


def _modular_addition(modulus: int, units: int) -> Case:
    """Σ_k w_kc (u_ka + v_kb)² on all pairs (a, b), at a generic point, with its own outputs as targets."""
    rng = np.random.default_rng(0)
    center = {name: np.round(rng.normal(size=(units, modulus)), 2).astype(np.float32) for name in ("u", "v", "w")}

    def outputs(params: dict[str, Array]) -> Array:
        return jnp.einsum("kc,kab->abc", params["w"], (params["u"][:, :, None] + params["v"][:, None, :]) ** 2)

    with float64():
        truth = np.asarray(outputs({name: jnp.asarray(x, jnp.float64) for name, x in center.items()}))

    def loss(params: dict[str, Array]) -> Array:
        return 0.5 * jnp.sum((outputs(params) - jnp.asarray(truth.tolist(), params["u"].dtype)) ** 2)

    coefficient = theory.modular_addition(modulus, units)
    return case_of(
        f"quadratic addition modulo {modulus}, {units} units, generic",
        "modular addition",
        population(loss, center),
        coefficient,
        int(2 * coefficient.value),
        3 * modulus * units,
        "a manifold: each unit has two symmetries; theory.modular_addition",
    )
