"""Reads the fields of transformers' configs into ours, and names all that cannot run here at once."""

from collections.abc import Mapping
from typing import Any

from saejax.errors import InputError
from saejax.models.config import Activation, Rope

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "relu": "relu",
}  # fmt: skip
NAMES: Mapping[Activation, str] = {
    "silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu",
}  # fmt: skip
WINDOWED, FULL = "sliding_attention", "full_attention"


class Faults:
    """What of a config cannot run here."""

    def __init__(self, config: Any) -> None:
        """Begin without any."""
        self.model_type, self._config = config.model_type, config
        self._found: list[str] = []

    def refuse(self, **values: Any) -> None:
        """Take note of fields that must have one value and have another.

        Args:
            **values: the value that each must have, where it is there at all.
        """
        for name, value in values.items():
            if getattr(self._config, name, value) != value:
                self._found.append(f"{name} {getattr(self._config, name)!r} (only {value!r})")

    def activation(self, name: str) -> Activation:
        """Return the activation that a name means."""
        if name in ACTIVATIONS:
            return ACTIVATIONS[name]
        self._found.append(f"activation {name!r} (only {', '.join(ACTIVATIONS)})")
        return "silu"

    def rope(self, parameters: Mapping[str, Any]) -> Rope:
        """Return the angles that `rope_parameters` mean."""
        kind = parameters.get("rope_type", "default")
        theta = float(parameters.get("rope_theta") or 10_000.0)
        fraction = float(parameters.get("partial_rotary_factor", 1.0))
        if kind == "default":
            return Rope(theta, fraction)
        if kind == "linear":
            return Rope(theta, fraction, "linear", float(parameters["factor"]))
        if kind == "llama3":
            return Rope(
                theta, fraction, "llama3", float(parameters["factor"]), float(parameters["low_freq_factor"]),
                float(parameters["high_freq_factor"]), int(parameters["original_max_position_embeddings"]),
            )  # fmt: skip
        self._found.append(f"rope_type {kind!r} (only 'default', 'linear', 'llama3')")
        return Rope()

    def check(self) -> None:
        """Raise what was found.

        Raises:
            InputError: something was.
        """
        if self._found:
            raise InputError(f"{self.model_type} config: {'; '.join(self._found)}; not supported in this family")


def rope_parameters(rope: Rope) -> dict[str, Any]:
    """Return angles as `rope_parameters` say them."""
    found: dict[str, Any] = {"rope_type": "default", "rope_theta": rope.theta}
    if rope.fraction != 1:
        found["partial_rotary_factor"] = rope.fraction
    if rope.scaling != "none":
        found |= {"rope_type": rope.scaling, "factor": rope.factor}
    if rope.scaling == "llama3":
        found |= {"low_freq_factor": rope.low, "high_freq_factor": rope.high}
        found["original_max_position_embeddings"] = rope.original
    return found


def windowed(layer_types: list[str] | None, layers: int) -> tuple[bool, ...]:
    """Return which blocks have a window, of `layer_types`; empty where none has."""
    found = tuple(kind == WINDOWED for kind in layer_types or [FULL] * layers)
    return found if any(found) else ()


def layer_types(found: tuple[bool, ...]) -> list[str]:
    """Return `layer_types`, of which blocks have a window."""
    return [WINDOWED if local else FULL for local in found]
