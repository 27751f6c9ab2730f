import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from saejax.errors import InputError
from saejax.models.config import TransformerConfig
from saejax.models.forward import forward
from saejax.models.sample import sample
from saejax.models.transformer import Transformer

CONFIG = TransformerConfig(
    vocab_size=7, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, d_head=8, d_mlp=24, max_positions=16
)


@pytest.fixture(scope="module")
def model() -> Transformer:
    graph, weights = nnx.split(Transformer(CONFIG, nnx.Rngs(0)))
    return nnx.merge(graph, jax.tree.map(lambda w: 8 * w, weights))


def logits_after(model: Transformer, text: np.ndarray) -> np.ndarray:
    ids = jnp.asarray(text)[None]
    x, _ = forward(model, ids, jnp.ones_like(ids), jnp.arange(ids.shape[1])[None])
    return np.asarray(model.logits(x), np.float64)[0, -1]


def test_a_cold_text_takes_the_likeliest_token_each_time(model: Transformer) -> None:
    prompt = np.array([[1, 2, 3], [6, 0, 6]])
    texts = np.asarray(sample(model, prompt, jax.random.key(0), new=5, temperature=1e-4))
    np.testing.assert_array_equal(texts[:, :3], prompt)
    for text in texts:
        for at in range(3, 8):
            assert text[at] == np.argmax(logits_after(model, text[:at]))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_tokens_are_drawn_from_the_softmax_of_the_scores(model: Transformer, temperature: float) -> None:
    """The counts of both tokens that follow, the second given the first, within five standard errors."""
    rows = 4000
    texts = np.asarray(
        sample(model, np.tile([[1, 2, 3]], (rows, 1)), jax.random.key(1), new=2, temperature=temperature)
    )
    often = int(np.bincount(texts[:, 3]).argmax())
    for given, drawn in (([1, 2, 3], texts[:, 3]), ([1, 2, 3, often], texts[texts[:, 3] == often, 4])):
        scores = logits_after(model, np.array(given)) / temperature
        expected = np.exp(scores - scores.max())
        expected /= expected.sum()
        assert len(drawn) > 100
        error = np.sqrt(expected * (1 - expected) / len(drawn)) + 1 / len(drawn)
        assert (np.abs(np.bincount(drawn, minlength=7) / len(drawn) - expected) < 5 * error).all()


def test_a_text_is_a_function_of_the_key(model: Transformer) -> None:
    prompt = np.tile([[1, 2, 3]], (8, 1))
    first, again, other = (
        np.asarray(sample(model, prompt, jax.random.key(seed), new=5, temperature=1.0)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert len(np.unique(first, axis=0)) > 1, "rows draw apart"


def test_what_cannot_be_written_is_refused(model: Transformer) -> None:
    prompt = np.array([[1, 2, 3]])
    with pytest.raises(InputError, match=r"^temperature 0\.0 must be positive"):
        sample(model, prompt, jax.random.key(0), new=5, temperature=0.0)
    with pytest.raises(InputError, match="^17 tokens of text exceed the model's 16 positions"):
        sample(model, prompt, jax.random.key(0), new=14, temperature=1.0)
