"""Packed text, SAEs with known behaviour, and what torch makes of both in float64."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import torch
from made_models import edited_by_torch

from saejax.models import LanguageModel
from saejax.sae import SAE, SAEConfig
from saejax.sae.normalisation import Normalisation
from saejax.text.packing import PackedBatch

SPECIAL = (0, 1)
Change = Callable[[np.ndarray], np.ndarray]


def batch_of(rows: list[list[list[int]]], length: int) -> PackedBatch:
    """Pack documents, given by row, with padding behind them up to the length."""
    ids, segment, position = (np.zeros((len(rows), length), np.int32) for _ in range(3))
    for row, own in enumerate(rows):
        placed = ((token, number, at) for number, each in enumerate(own, 1) for at, token in enumerate(each))
        for column, entry in enumerate(placed):
            ids[row, column], segment[row, column], position[row, column] = entry
    nowhere = np.zeros_like(ids)
    special = np.isin(ids, SPECIAL) & (segment > 0)
    return PackedBatch(ids, segment, position, segment - 1, position, nowhere, nowhere, special, segment > 0)


def documents(vocab: int, lengths: tuple[int, ...], seed: int = 0) -> list[list[int]]:
    """Draw documents that begin with a special token; every second one holds another in its middle."""
    rng = np.random.default_rng(seed)
    drawn = [[0, *rng.integers(len(SPECIAL), vocab, length - 1).tolist()] for length in lengths]
    for document in drawn[::2]:
        document[len(document) // 2] = 1
    return drawn


def scaled_by(factor: float) -> Normalisation:
    return Normalisation("scalar", scale=jnp.float32(factor))


def random_sae(width: int, d_sae: int = 40, k: int = 6, seed: int = 0) -> SAE:
    rng = np.random.default_rng(seed)
    arrays = {"W_enc": (width, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, width), "b_dec": (width,)}
    drawn = {name: jnp.asarray(rng.normal(size=shape) / 4, jnp.float32) for name, shape in arrays.items()}
    return SAE(**drawn, normalisation=scaled_by(0.7), config=SAEConfig(width, d_sae, k))


def identity_sae(width: int) -> SAE:
    """An SAE that keeps everything: a latent for each direction and each sign."""
    both = jnp.concatenate([jnp.eye(width), -jnp.eye(width)])
    zero = jnp.zeros(2 * width), jnp.zeros(width)
    return SAE(both.T, zero[0], both, zero[1], scaled_by(1), SAEConfig(width, 2 * width, 2 * width))


def constant_sae(value: np.ndarray) -> SAE:
    """An SAE of the same shape that gives one vector whatever it reads."""
    zero = {name: jnp.zeros_like(getattr(identity_sae(len(value)), name)) for name in ("W_enc", "b_enc", "W_dec")}
    b_dec = jnp.asarray(2 * value, jnp.float32)
    return SAE(**zero, b_dec=b_dec, normalisation=scaled_by(2), config=identity_sae(len(value)).config)


def reconstruction(sae: SAE, x: np.ndarray) -> np.ndarray:
    """Return what an SAE makes of rows, in float64: scale, encode, keep the k largest, relu, decode, scale back."""
    held = (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, sae.normalisation.scale)
    w_enc, b_enc, w_dec, b_dec, scale = (np.asarray(array, np.float64) for array in held)
    codes = (x * scale - b_dec) @ w_enc + b_enc
    least = np.sort(codes, axis=1)[:, -sae.config.k][:, None]
    return (np.where(codes >= least, np.maximum(codes, 0), 0) @ w_dec + b_dec) / scale


class Reference(NamedTuple):
    """Sums over the predictions of a text, by edit.

    Attributes:
        cross_entropy: mean next-token loss, nats.
        kl: mean KL from the original, nats.
        predictions: their number.
    """

    cross_entropy: dict[str, float]
    kl: dict[str, float]
    predictions: int


def reference(theirs: Any, ours: LanguageModel, hook: str, sae: SAE, texts: list[list[int]]) -> Reference:
    """Evaluate document by document with hooks of torch: no rows, no batches, no masks."""
    place, seen = ours.module_path(hook), []

    def log_probabilities(document: list[int], change: Change) -> np.ndarray:
        plain = ~np.isin(document, SPECIAL)

        def edited(x: torch.Tensor) -> torch.Tensor:
            values = x.detach().numpy().copy()
            values[0, plain] = change(values[0, plain])
            return torch.tensor(values)

        with edited_by_torch(theirs, place, edited), torch.no_grad():
            logits = theirs(input_ids=torch.tensor([document]), use_cache=False).logits[0]
        return torch.log_softmax(logits, dim=-1).numpy()

    def keep(x: np.ndarray) -> np.ndarray:
        seen.append(x.copy())
        return x

    originals = [log_probabilities(document, keep) for document in texts]
    mean = np.concatenate(seen).mean(axis=0)
    changes: dict[str, Change] = {
        "original": lambda x: x,
        "spliced": lambda x: reconstruction(sae, x),
        "zero_ablated": np.zeros_like,
        "mean_ablated": lambda x: np.broadcast_to(mean, x.shape),
    }
    losses: dict[str, list[float]] = {name: [] for name in changes}
    divergences: dict[str, list[float]] = {name: [] for name in changes}
    for document, p in zip(texts, originals, strict=True):
        places = [at for at in range(len(document) - 1) if not {document[at], document[at + 1]} & set(SPECIAL)]
        for name, change in changes.items():
            q = log_probabilities(document, change)
            losses[name] += [-q[at, document[at + 1]] for at in places]
            divergences[name] += [float(np.sum(np.exp(p[at]) * (p[at] - q[at]))) for at in places]
    loss, kl = ({name: float(np.mean(values)) for name, values in each.items()} for each in (losses, divergences))
    return Reference(loss, kl, len(losses["original"]))
