"""A sparse autoencoder as a pytree of arrays with a static shape, and its file.

Input scaling is part of the parameters: `encode` takes and `decode` gives activations in the model's own
units, while the weights live in units in which centred activations have RMS norm sqrt(d_model). The folder of
a run of kind "sae" holds the arrays as `sae.safetensors`; its manifest holds the shape and the hash of that
file.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from saejax_kernels import sparse_decode

from saejax import artifacts
from saejax.errors import InputError
from saejax.sae.encoders import dense_codes, top_k_codes
from saejax.types import AnyArray, Array

WEIGHTS = "sae.safetensors"
ARRAYS = ("W_enc", "b_enc", "W_dec", "b_dec", "scale")


@dataclasses.dataclass(frozen=True)
class SAEConfig:
    """Shape of an SAE."""

    d_model: int
    """Width of the hook whose activations it reads."""
    d_sae: int
    """Dictionary size: number of latents."""
    k: int
    """Latents kept per row."""

    def __post_init__(self) -> None:
        """Refuse shapes that no SAE has."""
        problems = [f"{name} {value}; give at least 1" for name, value in dataclasses.asdict(self).items() if value < 1]
        if self.k > self.d_sae:
            problems.append(f"k {self.k} is larger than d_sae {self.d_sae}; lower k or raise d_sae")
        if problems:
            raise InputError("; ".join(problems))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SAE:
    """A TopK sparse autoencoder.

    x_hat = (codes @ W_dec + b_dec) / scale, with codes = relu(top_k((scale * x - b_dec) @ W_enc + b_enc)).

    The arrays are annotated `Any` because a pytree's leaves may be anything: gradients, shapes, shardings.
    """

    W_enc: Any
    """Encoder `[d_model, d_sae]`, float32, one column per latent."""
    b_enc: Any
    """Encoder bias `[d_sae]`."""
    W_dec: Any
    """Decoder `[d_sae, d_model]`, one row of unit norm per latent: the latent's direction."""
    b_dec: Any
    """Decoder bias `[d_model]`, in scaled units."""
    scale: Any
    """Factor `[]` from the model's units to scaled ones; fixed at initialisation, never trained."""
    config: SAEConfig = dataclasses.field(metadata={"static": True})
    """Shape."""

    def encode(self, x: Float[AnyArray, "rows d_model"]) -> Float[Array, "rows d_sae"]:
        """Encode activations to dense codes; holds rows x d_sae numbers.

        Args:
            x: activations in the model's units.

        Returns:
            Codes in scaled units, at most k of a row above zero.
        """
        return _encode(self, jnp.asarray(x, jnp.float32))

    def encode_sparse(self, x: Float[AnyArray, "rows d_model"]) -> tuple[Float[Array, "rows k"], Int[Array, "rows k"]]:
        """Encode activations to their k largest codes.

        Args:
            x: activations in the model's units.

        Returns:
            Values in scaled units, largest first, and the latents they belong to; a value of zero is an
            inactive latent.
        """
        return _encode_sparse(self, jnp.asarray(x, jnp.float32))

    def decode(self, codes: Float[AnyArray, "rows d_sae"]) -> Float[Array, "rows d_model"]:
        """Reconstruct activations from dense codes.

        Args:
            codes: codes in scaled units.

        Returns:
            Activations in the model's units.
        """
        return _decode(self, jnp.asarray(codes, jnp.float32))

    def decode_sparse(
        self, values: Float[AnyArray, "rows k"], indices: Int[AnyArray, "rows k"]
    ) -> Float[Array, "rows d_model"]:
        """Reconstruct activations from the pair that `encode_sparse` returns.

        Args:
            values: codes of the active latents, in scaled units.
            indices: the active latents.

        Returns:
            Activations in the model's units.
        """
        return _decode_sparse(self, jnp.asarray(values, jnp.float32), jnp.asarray(indices))


@jax.jit
def _encode(sae: SAE, x: Array) -> Array:
    values, indices = _encode_sparse(sae, x)
    return dense_codes(values, indices, sae.config.d_sae)


@jax.jit
def _encode_sparse(sae: SAE, x: Array) -> tuple[Array, Array]:
    return top_k_codes(x * sae.scale, sae.W_enc, sae.b_enc, sae.b_dec, sae.config.k)


@jax.jit
def _decode(sae: SAE, codes: Array) -> Array:
    return (jnp.matmul(codes, sae.W_dec, precision="highest") + sae.b_dec) / sae.scale


@jax.jit
def _decode_sparse(sae: SAE, values: Array, indices: Array) -> Array:
    return (sparse_decode(values, indices, sae.W_dec, "jax") + sae.b_dec) / sae.scale


def shapes(config: SAEConfig) -> SAE:
    """Give the tree of an SAE with shapes and dtypes in place of arrays.

    Args:
        config: shape of the SAE.

    Returns:
        An SAE whose leaves are `jax.ShapeDtypeStruct`.
    """
    d_model, d_sae = config.d_model, config.d_sae
    axes = {
        "W_enc": (d_model, d_sae),
        "b_enc": (d_sae,),
        "W_dec": (d_sae, d_model),
        "b_dec": (d_model,),
        "scale": (),
    }
    return SAE(**{name: jax.ShapeDtypeStruct(axes[name], jnp.float32) for name in ARRAYS}, config=config)


def save(sae: SAE, folder: Path) -> dict[str, Any]:
    """Write an SAE's arrays into a run directory, atomically.

    Args:
        sae: the SAE.
        folder: the run directory.

    Returns:
        Facts for the manifest, without which `load` refuses: the shape and the hash of the file.
    """
    from safetensors.numpy import save as to_bytes

    arrays = {name: np.array(getattr(sae, name), order="C") for name in ARRAYS}
    artifacts.write_bytes(folder / WEIGHTS, to_bytes(arrays))
    return {"sae": dataclasses.asdict(sae.config), "sae_sha256": artifacts.file_sha256(folder / WEIGHTS)}


def load(folder: Path | str) -> SAE:
    """Load the SAE of a finished run.

    Args:
        folder: run directory of kind "sae".

    Returns:
        The SAE, its arrays in float32 on the default device.

    Raises:
        InputError: the folder is no finished SAE run, or its weights are absent or not those of the run.
    """
    from safetensors.numpy import load_file

    folder = Path(folder)
    facts = artifacts.read_finished(folder, "sae")["facts"]
    file = folder / WEIGHTS
    if not file.exists():
        raise InputError(f"{folder} holds no {WEIGHTS}; train it again into an empty directory")
    if artifacts.file_sha256(file) != facts["sae_sha256"]:
        raise InputError(f"{file} is not the file that its run wrote; train it again into an empty directory")
    arrays = load_file(file)
    return SAE(**{name: jnp.asarray(arrays[name]) for name in ARRAYS}, config=SAEConfig(**facts["sae"]))
