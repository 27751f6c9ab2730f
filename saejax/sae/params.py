"""A sparse autoencoder as a pytree of arrays with a static shape, and its file.

The normalisation of what it reads is part of the parameters: `encode` takes and `decode` gives activations in the
model's own units, while the weights live in normalised ones. The folder of a run of kind "sae" holds the arrays as
`sae.safetensors`; its manifest holds the shape, the kind of normalisation, and the hash of that file.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from saejax_kernels import sparse_decode

from saejax import artifacts
from saejax.errors import InputError
from saejax.sae import normalisation
from saejax.sae.encoders import dense_codes, positive_codes, top_k_codes
from saejax.sae.normalisation import Kind, Normalisation
from saejax.types import AnyArray, Array

WEIGHTS = "sae.safetensors"
ARRAYS = ("W_enc", "b_enc", "W_dec", "b_dec")

Activation = Literal["topk", "relu", "jump_relu"]


@dataclasses.dataclass(frozen=True)
class SAEConfig:
    """Shape of an SAE."""

    d_model: int
    """Width of the hook whose activations it reads."""
    d_sae: int
    """Dictionary size: number of latents."""
    k: int
    """Latents kept per row; of relu and jump_relu all that are active, where `require_room` has nothing to say."""
    activation: Activation = "topk"
    """What makes codes of pre-activations: their k largest above zero, or all above zero or a threshold."""

    def __post_init__(self) -> None:
        """Refuse shapes that no SAE has."""
        given = {"d_model": self.d_model, "d_sae": self.d_sae, "k": self.k}
        problems = [f"{name} {value}; give at least 1" for name, value in given.items() if value < 1]
        if self.activation not in get_args(Activation):
            problems.append(f"activation {self.activation!r} is not one of {', '.join(get_args(Activation))}")
        if self.k > self.d_sae:
            problems.append(f"k {self.k} is larger than d_sae {self.d_sae}; lower k or raise d_sae")
        if problems:
            raise InputError("; ".join(problems))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SAE:
    """A sparse autoencoder.

    z_hat = codes @ W_dec + b_dec, with codes = relu(top_k(p)), or p where p > threshold, of p = (z - b_dec) @ W_enc +
    b_enc; z is the normalised x, and x_hat what z_hat is in the model's units.

    The arrays are annotated `Any` because a pytree's leaves may be anything: gradients, shapes, shardings.
    """

    W_enc: Any
    """Encoder `[d_model, d_sae]`, float32, one column per latent."""
    b_enc: Any
    """Encoder bias `[d_sae]`."""
    W_dec: Any
    """Decoder `[d_sae, d_model]`, one row per latent, in normalised units; of unit norm unless the SAE was folded. The
    directions in the model's space are `saejax.sae.feature_directions`."""
    b_dec: Any
    """Decoder bias `[d_model]`, in normalised units."""
    normalisation: Normalisation
    """Of what it reads; fixed at initialisation, never trained."""
    config: SAEConfig = dataclasses.field(metadata={"static": True})
    """Shape."""
    threshold: Any = None
    """Of a jump_relu SAE, `[d_sae]`, not below zero."""

    def encode(self, x: Float[AnyArray, "rows d_model"]) -> Float[Array, "rows d_sae"]:
        """Encode activations to dense codes; holds rows x d_sae numbers.

        Args:
            x: activations in the model's units.

        Returns:
            Codes in normalised units; of topk at most k of a row are above zero.
        """
        return _encode(self, jnp.asarray(x, jnp.float32))

    def encode_sparse(self, x: Float[AnyArray, "rows d_model"]) -> tuple[Float[Array, "rows k"], Int[Array, "rows k"]]:
        """Encode activations to k codes of a row.

        Args:
            x: activations in the model's units.

        Returns:
            Values in normalised units, largest first, and the latents they belong to; a value of zero is an
            inactive latent. Where relu or jump_relu gave no zero to a row, it may have more: `require_room`.
        """
        return _encode_sparse(self, jnp.asarray(x, jnp.float32))

    def require_room(self, values: Float[np.ndarray, "rows k"]) -> None:
        """Refuse codes of which some may be missing.

        Args:
            values: what `encode_sparse` gave.

        Raises:
            InputError: all k codes of a row are above zero, and the SAE is to keep all that are.
        """
        shape = self.config
        if shape.activation != "topk" and shape.k < shape.d_sae and (values > 0).all(axis=1).any():
            raise InputError(
                f"k {shape.k} is too small: a row has as many latents active, and a {shape.activation} SAE keeps all; "
                "import it again with a larger k, into a new directory"
            )

    def decode(
        self, codes: Float[AnyArray, "rows d_sae"], like: Float[AnyArray, "rows d_model"] | None = None
    ) -> Float[Array, "rows d_model"]:
        """Reconstruct activations from dense codes.

        Args:
            codes: codes in normalised units.
            like: the activations that were encoded; layer_norm needs them, and nothing else does.

        Returns:
            Activations in the model's units.

        Raises:
            InputError: the normalisation is layer_norm, and they are not given.
        """
        return _decode(self, jnp.asarray(codes, jnp.float32), like)

    def decode_sparse(
        self,
        values: Float[AnyArray, "rows k"],
        indices: Int[AnyArray, "rows k"],
        like: Float[AnyArray, "rows d_model"] | None = None,
    ) -> Float[Array, "rows d_model"]:
        """Reconstruct activations from the pair that `encode_sparse` returns.

        Args:
            values: codes of the active latents, in normalised units.
            indices: the active latents.
            like: as `decode`.

        Returns:
            Activations in the model's units.

        Raises:
            InputError: as `decode`.
        """
        return _decode_sparse(self, jnp.asarray(values, jnp.float32), jnp.asarray(indices), like)

    def reconstruct(self, x: Float[AnyArray, "rows d_model"]) -> Float[Array, "rows d_model"]:
        """Encode activations and decode their codes; holds rows x d_sae numbers.

        Args:
            x: activations in the model's units.

        Returns:
            Activations in the model's units.
        """
        if self.config.activation == "topk":
            return self.decode_sparse(*self.encode_sparse(x), like=x)
        return self.decode(self.encode(x), like=x)


@jax.jit
def _encode(sae: SAE, x: Array) -> Array:
    if sae.config.activation == "topk":
        values, indices = _encode_sparse(sae, x)
        return dense_codes(values, indices, sae.config.d_sae)
    return positive_codes(sae.normalisation.apply(x), sae.W_enc, sae.b_enc, sae.b_dec, sae.threshold)


@jax.jit
def _encode_sparse(sae: SAE, x: Array) -> tuple[Array, Array]:
    z = sae.normalisation.apply(x)
    return top_k_codes(z, sae.W_enc, sae.b_enc, sae.b_dec, sae.config.k, sae.threshold)


@jax.jit
def _decode(sae: SAE, codes: Array, like: AnyArray | None) -> Array:
    return sae.normalisation.invert(jnp.matmul(codes, sae.W_dec, precision="highest") + sae.b_dec, like)


@jax.jit
def _decode_sparse(sae: SAE, values: Array, indices: Array, like: AnyArray | None) -> Array:
    return sae.normalisation.invert(sparse_decode(values, indices, sae.W_dec, "jax") + sae.b_dec, like)


def shapes(config: SAEConfig, kind: Kind = "scalar") -> SAE:
    """Give the tree of an SAE with shapes and dtypes in place of arrays.

    Args:
        config: shape of the SAE.
        kind: of its normalisation.

    Returns:
        An SAE whose leaves are `jax.ShapeDtypeStruct`.
    """
    d_model, d_sae = config.d_model, config.d_sae
    axes = {
        "W_enc": (d_model, d_sae),
        "b_enc": (d_sae,),
        "W_dec": (d_sae, d_model),
        "b_dec": (d_model,),
        "threshold": (d_sae,),
        "scale": (),
        "mean": (d_model,),
        "sd": (d_model,),
        "basis": (d_model, d_model),
    }
    names = (*_own(config), *normalisation.ARRAYS[kind])
    return _assembled({name: jax.ShapeDtypeStruct(axes[name], jnp.float32) for name in names}, config, kind)


def _own(config: SAEConfig) -> tuple[str, ...]:
    """Name the arrays that an SAE has beside those of its normalisation."""
    return (*ARRAYS, "threshold") if config.activation == "jump_relu" else ARRAYS


def _assembled(arrays: dict[str, Any], config: SAEConfig, kind: Kind) -> SAE:
    held = Normalisation(kind, **{name: arrays[name] for name in normalisation.ARRAYS[kind]})
    return SAE(**{name: arrays[name] for name in _own(config)}, normalisation=held, config=config)


def _arrays(sae: SAE) -> dict[str, Any]:
    """Return all arrays of an SAE by the names that its file has for them."""
    own = {name: getattr(sae.normalisation, name) for name in normalisation.ARRAYS[sae.normalisation.kind]}
    return {**{name: getattr(sae, name) for name in _own(sae.config)}, **own}


def save(sae: SAE, folder: Path) -> dict[str, Any]:
    """Write an SAE's arrays into a run directory, atomically.

    Args:
        sae: the SAE.
        folder: the run directory.

    Returns:
        Facts for the manifest, without which `load` refuses: the shape, the normalisation and the hash of the file.
    """
    from safetensors.numpy import save as to_bytes

    arrays = {name: np.array(array, order="C") for name, array in _arrays(sae).items()}
    artifacts.write_bytes(folder / WEIGHTS, to_bytes(arrays))
    return {
        "sae": dataclasses.asdict(sae.config),
        "normalisation": sae.normalisation.kind,
        "sae_sha256": artifacts.file_sha256(folder / WEIGHTS),
    }


def load(folder: Path | str) -> SAE:
    """Load the SAE of a finished run.

    Args:
        folder: run directory of kind "sae".

    Returns:
        The SAE, its arrays in float32 on the default device.

    Raises:
        InputError: the folder is no finished SAE run, or its weights are absent, not those of the run, or not those of
            the normalisation that its manifest names.
    """
    from safetensors.numpy import load_file

    folder = Path(folder)
    facts = artifacts.read_finished(folder, "sae")["facts"]
    file = folder / WEIGHTS
    if not file.exists():
        raise InputError(f"{folder} holds no {WEIGHTS}; train it again into an empty directory")
    if artifacts.file_sha256(file) != facts["sae_sha256"]:
        raise InputError(f"{file} is not the file that its run wrote; train it again into an empty directory")
    config = SAEConfig(**facts["sae"])
    kind = facts.get("normalisation", "scalar")  # runs that do not say are from before there was another
    if kind not in get_args(Kind):
        raise InputError(f"{folder} has normalisation {kind}, not one of {', '.join(get_args(Kind))}; train it again")
    arrays, expected = load_file(file), _arrays(shapes(config, kind))
    held, needed = ({name: array.shape for name, array in each.items()} for each in (arrays, expected))
    if held != needed:
        raise InputError(
            f"{file} holds {_told(held)}, and normalisation {kind} of its manifest needs {_told(needed)}; "
            "train it again into an empty directory"
        )
    return _assembled({name: jnp.asarray(array) for name, array in arrays.items()}, config, kind)


def _told(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items()))
