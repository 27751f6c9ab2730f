"""An SAE in the place of what it reads: how much of a language model's loss its reconstruction keeps.

The edited tokens are those that are neither special (BOS, EOS, ...) nor padding: at the hook they get the SAE's
reconstruction, zero, or the mean activation of all edited tokens of the text. Special tokens keep theirs, to the bit.
A prediction counts where the token that predicts and the token that is predicted are both edited tokens, neighbours
in one segment. So neither what a special token predicts, nor a prediction of one, is in any mean. With P these
predictions, p the model as it is and q the edited one:

    CE(q) = 1 / |P| sum_P -log q(next token)                          nats per token
    KL(q) = 1 / |P| sum_P sum_v p(v) (log p(v) - log q(v))            nats per token
    loss recovered = (CE(ablated) - CE(spliced)) / (CE(ablated) - CE(p))

Loss recovered is 1 where nothing is lost and 0 where the SAE is no better than the ablation; a model that hardly
needs the hook has a denominator near 0, and the ratio means little. Against zero it is the CE score of SAELens and
SAEBench, who know no other ablation; either of the two can be the easier to beat. Averages are those of all tokens,
and ratios are taken of them; dictionary_learning's `frac_recovered` averages the ratios of batches. OpenMOSS's
`downstream_loss_ratio` is the inverse of ours, and sparsify's KL loss is KL plus the entropy of p.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from saejax.errors import InputError
from saejax.models import LanguageModel
from saejax.models.edits import Activation, Positions, Replace
from saejax.models.forward import Edit
from saejax.progress import progress
from saejax.sae.metrics import Measured, measure
from saejax.sae.params import SAE
from saejax.text.packing import PackedBatch

Logits = Float[Array, "batch position vocab"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Splice:
    """Put an SAE's reconstruction in the place of an activation: an edit, like those of `saejax.models.edits`.

    Attributes:
        sae: the SAE; one pass holds its pre-activations, batch x position x d_sae.
    """

    sae: SAE

    def __call__(self, activation: Activation, positions: Positions) -> Activation:
        """Return the reconstruction at the positions, in the model's units."""
        rows = activation.reshape(-1, activation.shape[-1]).astype(jnp.float32)
        made = self.sae.reconstruct(rows)
        return jnp.where(positions[..., None], made.reshape(activation.shape).astype(activation.dtype), activation)


@dataclasses.dataclass(frozen=True)
class Loss:
    """What a model, edited or not, makes of the text, in nats per token."""

    cross_entropy: float
    """Mean cross-entropy of the next token."""
    kl: float
    """Mean KL(original || this one); 0 of the original."""


@dataclasses.dataclass(frozen=True)
class Spliced:
    """A language model with and without an SAE in it, on one text."""

    predictions: int
    """Predictions that every mean is over."""
    original: Loss
    """The model as it is."""
    spliced: Loss
    """With the SAE's reconstruction."""
    zero_ablated: Loss
    """With zero."""
    mean_ablated: Loss
    """With the mean of the edited tokens."""
    measured: Measured
    """The SAE on the activations of the edited tokens of the unedited model."""

    @property
    def loss_recovered_zero(self) -> float:
        """Loss recovered against ablation to zero; NaN where that changes nothing."""
        return self._recovered(self.zero_ablated)

    @property
    def loss_recovered_mean(self) -> float:
        """Loss recovered against ablation to the mean; NaN where that changes nothing."""
        return self._recovered(self.mean_ablated)

    def _recovered(self, ablated: Loss) -> float:
        lost = ablated.cross_entropy - self.original.cross_entropy
        return (ablated.cross_entropy - self.spliced.cross_entropy) / lost if lost else float("nan")


def splice(model: LanguageModel, hook: str, sae: SAE, batches: Sequence[PackedBatch]) -> Spliced:
    """Run a text through a model as it is, with an SAE in it, and with ablations.

    A first pass, as far as the hook, measures the SAE and finds the mean activation, merged in float64. In a second
    one each batch runs four times. Memory: two arrays of logits, batch x position x vocab, and their log-probabilities.

    Args:
        model: a model that predicts the next token.
        hook: the hook point that the SAE reads.
        sae: the SAE.
        batches: the text.

    Returns:
        The losses, and the SAE's behaviour on the same tokens.

    Raises:
        InputError: SAE, hook and model do not fit together, the text has no prediction that counts, or a row more codes
            than a relu or jump_relu SAE has room for.
    """
    if problems := mismatches(model, hook, sae):
        raise InputError("; ".join(problems))
    counted = [predictions(batch) for batch in batches]
    count = sum(int(each.sum()) for each in counted)
    if not count:
        raise InputError("the text has no two neighbouring tokens of one document that are not special; give more text")
    measured = measure(sae, _activations(model, hook, batches))
    edits: dict[str, Edit | None] = {
        "original": None,
        "spliced": Splice(sae),
        "zero_ablated": Replace(jnp.zeros(model.width(hook))),
        "mean_ablated": Replace(jnp.asarray(measured.mean, jnp.float32)),
    }
    sums = {name: np.zeros(2) for name in edits}
    with progress("splicing SAE", len(batches)) as advance:
        for batch, chosen in zip(batches, counted, strict=True):
            original = _logits(model, hook, batch, None)
            for name, edit in edits.items():
                logits = original if edit is None else _logits(model, hook, batch, edit)
                losses = np.asarray(_losses(original, logits, batch.input_ids), np.float64)
                sums[name] += losses[:, chosen].sum(axis=1)
            advance()
    return Spliced(count, **{name: Loss(*(total / count).tolist()) for name, total in sums.items()}, measured=measured)


def mismatches(model: LanguageModel, hook: str, sae: SAE) -> list[str]:
    """Say all that keeps an SAE from being spliced into a model.

    Args:
        model: the model.
        hook: the hook point that the SAE reads.
        sae: the SAE.

    Returns:
        A line for each fault; none where they fit.
    """
    found = []
    if not model.config.causal or model.config.head == "none":
        found.append(f"model {model.name} predicts no next token, so it has no loss to recover; name a causal model")
    if hook not in model.hooks:
        found.append(f"hook {hook} of the SAE is not in model {model.name}; name the model that it was trained on")
    elif model.width(hook) != sae.config.d_model:
        found.append(
            f"the SAE reads {sae.config.d_model} entries, and {hook} of model {model.name} has {model.width(hook)}; "
            "name the model that it was trained on"
        )
    return found


def edited_tokens(batch: PackedBatch) -> Bool[np.ndarray, "batch position"]:
    """Return which tokens of a batch are edited: all that are neither special nor padding."""
    return (batch.segment > 0) & ~batch.special


def predictions(batch: PackedBatch) -> Bool[np.ndarray, "batch _"]:
    """Return where the token at the next position is predicted at this one, and both are edited tokens of a segment."""
    edited = edited_tokens(batch)
    return edited[:, :-1] & edited[:, 1:] & (batch.segment[:, :-1] == batch.segment[:, 1:])


def table_rows(found: Spliced) -> list[dict[str, Any]]:
    """Lay the losses out as the health table is: rows `metric, value, unit, ...` of JSON values, without a range."""
    nats = f"nats per token, over {found.predictions:,} predictions"
    numbers = [
        ("ce_original", found.original.cross_entropy, nats),
        ("ce_spliced", found.spliced.cross_entropy, "the same with the SAE's reconstruction"),
        ("ce_zero_ablated", found.zero_ablated.cross_entropy, "with zero"),
        ("ce_mean_ablated", found.mean_ablated.cross_entropy, "with the mean activation"),
        ("loss_recovered_zero", found.loss_recovered_zero, "share of the loss by ablation to zero that the SAE avoids"),
        ("loss_recovered_mean", found.loss_recovered_mean, "the same of ablation to the mean"),
        ("kl_spliced", found.spliced.kl, "KL(original || spliced), nats per token"),
        ("kl_zero_ablated", found.zero_ablated.kl, "KL(original || ablated to zero)"),
        ("kl_mean_ablated", found.mean_ablated.kl, "KL(original || ablated to the mean)"),
    ]
    no_range = dict.fromkeys(("low", "high", "verdict", "advice"))
    return [
        {"metric": name, "value": value if np.isfinite(value) else None, "unit": unit, **no_range}
        for name, value, unit in numbers
    ]


def _activations(
    model: LanguageModel, hook: str, batches: Sequence[PackedBatch]
) -> Iterator[Float[np.ndarray, "_ d_model"]]:
    """Yield the activations of the edited tokens, batch by batch."""
    with progress("measuring SAE", len(batches)) as advance:
        for batch in batches:
            found = model.activations(batch.input_ids, batch.segment, batch.position, (hook,))[hook]
            if (edited := edited_tokens(batch)).any():
                yield np.asarray(found, np.float32)[edited]
            advance()


def _logits(model: LanguageModel, hook: str, batch: PackedBatch, edit: Edit | None) -> Logits:
    edits = {} if edit is None else {hook: edit}
    packed = (batch.input_ids, batch.segment, batch.position)
    return model.run_packed(*packed, edits=edits, edit_mask=edited_tokens(batch)).logits


@jax.jit
def _losses(original: Logits, edited: Logits, input_ids: Int[Array, "batch position"]) -> Array:
    """Return `[2, batch, position - 1]`: the cross-entropy of the next token, and KL(original || edited)."""
    p, q = (jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32)) for logits in (original, edited))
    cross_entropy = -jnp.take_along_axis(q, input_ids[:, 1:, None], axis=-1)[..., 0]
    return jnp.stack([cross_entropy, jnp.sum(jnp.exp(p) * (p - q), axis=-1)])
