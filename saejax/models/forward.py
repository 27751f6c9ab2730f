"""A forward pass through a transformer: hook points shown and edited on the way, and a stop after the last one needed.

Neighbouring layers that show the same hook points run under one `scan`, so compile time does not grow with depth. Each
stretch of a pass is a program of its own, which takes the place of its first layer as an argument: all stretches that
do the same share one, so that edits of one layer after the other are compiled once.
"""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from saejax.models.attention import Surroundings
from saejax.models.config import MODEL_HOOKS
from saejax.models.transformer import Hidden, Tap, Transformer
from saejax.types import AnyArray

Edit: TypeAlias = Callable[[Float[Array, "batch position width"], Bool[Array, "batch position"]], jax.Array]
Places: TypeAlias = Int[AnyArray, "batch position"]
SHOWN_TOGETHER = 6
"""Most layers of a scan that shows something: it stacks what it shows, so that this lies in memory twice."""


def forward(
    model: Transformer,
    input_ids: Places,
    segment: Places,
    position: Places,
    hooks: tuple[str, ...] = (),
    edits: Mapping[str, Edit] | None = None,
    edited: Bool[AnyArray, "batch position"] | None = None,
) -> tuple[Hidden, dict[str, jax.Array]]:
    """Run a whole model, show hook points and change what edits are of.

    Args:
        model: the transformer.
        input_ids: token ids.
        segment: document number within the row, 0 for padding; a token attends within its segment only.
        position: position of each token.
        hooks: hook points to show, as they are after their edit.
        edits: by hook point, what takes its activation and the edited positions, and gives another activation. One
            that is not a pytree is compiled anew for every new object.
        edited: those positions; all tokens when None.

    Returns:
        What the output matrix reads, and the activations by hook.
    """
    own = {hook: edit if _is_pytree(edit) else Partial(edit) for hook, edit in (edits or {}).items()}
    edited = jnp.asarray(segment) > 0 if edited is None else edited
    found: dict[str, jax.Array] = {}

    tap = _tap(frozenset(hooks), own, edited, found)
    x, around = _entered(*nnx.split(model), input_ids, segment, position)
    x = tap("embed", x)
    for stretch in stretches(hooks, frozenset(own), model.config.n_layers):
        x, seen = _run(model, stretch, x, around, own, edited)
        found |= seen
    if model.config.final_norm:
        x = tap("final_norm", _normed(*nnx.split(model.final_norm), x))
    return x, found


def activations(
    model: Transformer, input_ids: Places, segment: Places, position: Places, hooks: tuple[str, ...]
) -> dict[str, jax.Array]:
    """Run a model as far as the last of some hook points, and return their activations.

    Args:
        model: the transformer.
        input_ids: token ids.
        segment: document number within the row, 0 for padding; a token attends within its segment only.
        position: position of each token.
        hooks: hook points, in the order in which a pass meets them.
    """
    name, _, layer = hooks[-1].partition(".")
    if name == "final_norm":
        return forward(model, input_ids, segment, position, hooks)[1]
    x, around = _entered(*nnx.split(model), input_ids, segment, position)
    found = {"embed": x} if "embed" in hooks else {}
    for stretch in stretches(hooks, frozenset(), int(layer) + 1 if layer else 0):
        x, seen = _run(model, stretch._replace(last=stretch.layers[-1] == int(layer)), x, around)
        found |= seen
    return found


class Stretch(NamedTuple):
    """Neighbouring layers that do the same.

    Attributes:
        layers: their numbers.
        shown: bare names of the hook points that each shows.
        last: whether only what they show is needed of them.
    """

    layers: range
    shown: frozenset[str]
    last: bool = False


def stretches(hooks: tuple[str, ...], edited: frozenset[str], layers: int) -> list[Stretch]:
    """Cut the first layers of a model into stretches.

    A layer with an edit is one by itself, and so is the last if it shows something on the way to its end.

    Args:
        hooks: hook points that are shown.
        edited: hook points that are edited.
        layers: number of layers.
    """
    bare: dict[int, set[str]] = {layer: set() for layer in range(layers)}
    for hook in hooks:
        name, _, layer = hook.partition(".")
        if name not in MODEL_HOOKS:
            bare[int(layer)].add(name)
    alone = {int(hook.partition(".")[2]) for hook in edited if hook not in MODEL_HOOKS}
    if bare.get(layers - 1) and "resid_post" not in bare[layers - 1]:
        alone.add(layers - 1)
    keys = [(layer if layer in alone else -1, frozenset(bare[layer])) for layer in range(layers)]
    found: list[Stretch] = []
    for (_, shown), group in itertools.groupby(range(layers), key=keys.__getitem__):
        run = list(group)
        step = SHOWN_TOGETHER if shown else len(run)
        found += [Stretch(range(at, min(at + step, run[-1] + 1)), shown) for at in range(run[0], run[-1] + 1, step)]
    return found


def _run(
    model: Transformer, stretch: Stretch, x: Hidden, around: Surroundings, edits: Mapping[str, Edit] | None = None,
    edited: Bool[AnyArray, "batch position"] | None = None,
) -> tuple[Hidden, dict[str, jax.Array]]:  # fmt: skip
    """Run a stretch, and return what it shows by hook point."""
    first, ends = stretch.layers[0], "resid_post" in stretch.shown
    here = {hook.partition(".")[0]: edit for hook, edit in (edits or {}).items() if hook.endswith(f".{first}")}
    x, seen = _layers(*nnx.split(model.blocks), jnp.int32(first), x, around, here, edited,
                      len(stretch.layers), stretch.shown, stretch.last or ends)  # fmt: skip
    found = {f"{name}.{layer}": value for name, values in seen.items()
             for layer, value in zip(stretch.layers, values, strict=True)}  # fmt: skip
    return seen["resid_post"][-1] if ends else x, found


@functools.partial(jax.jit, static_argnames=("graph", "count", "shown", "last"))
def _layers(
    graph: Any, weights: nnx.State, first: Int[Array, ""], x: Hidden, around: Surroundings, edits: dict[str, Edit],
    edited: Bool[AnyArray, "batch position"] | None, count: int, shown: frozenset[str], last: bool,
) -> tuple[Hidden, dict[str, list[jax.Array]]]:  # fmt: skip
    """Run `count` layers, and return what each shows and the residual stream, which is as it came of the last ones."""
    windowed, entered = jnp.array(nnx.merge(graph, weights).config.has_window), x

    def block(x: Hidden, layer: Int[Array, ""], own: nnx.State) -> tuple[Hidden, dict[str, jax.Array]]:
        seen: dict[str, jax.Array] = {}
        return nnx.merge(graph, own)(x, around, windowed[layer], _tap(shown, edits, edited, seen)), seen

    if count == 1:
        x, seen = block(x, first, _of_layer(weights, first))
        found = {name: [value] for name, value in seen.items()}
    else:
        # A slice of the stack would be copied. All of it is not, and then its gradient is not summed over the layers.
        every = count == len(windowed)

        def step(x: Hidden, given: tuple[Int[Array, ""], nnx.State | None]) -> tuple[Hidden, dict[str, jax.Array]]:
            layer, own = given
            return block(x, layer, _of_layer(weights, layer) if own is None else own)

        x, stacked = jax.lax.scan(step, x, (first + jnp.arange(count), weights if every else None))
        found = {name: [stack[at] for at in range(count)] for name, stack in stacked.items()}
    return entered if last else x, found


@functools.partial(jax.jit, static_argnames="graph")
def _entered(
    graph: Any,
    weights: nnx.State,
    input_ids: Int[Array, "batch position"],
    segment: Int[Array, "batch position"],
    position: Int[Array, "batch position"],
) -> tuple[Hidden, Surroundings]:
    """Return what enters the first block, and what attention knows of the rows."""
    model = nnx.merge(graph, weights)
    return model.embedded(input_ids, position), Surroundings.of(segment, position, model.config)


@functools.partial(jax.jit, static_argnames="graph")
def _normed(graph: Any, weights: nnx.State, x: Hidden) -> Hidden:
    return nnx.merge(graph, weights)(x)


def _tap(
    shown: frozenset[str], edits: Mapping[str, Edit], edited: Bool[AnyArray, "batch position"] | None,
    found: dict[str, jax.Array],
) -> Tap:  # fmt: skip
    """Return what edits an activation and puts it among those that are found, where that is asked for."""

    def tap(hook: str, value: jax.Array) -> jax.Array:
        value = _edited(edits[hook], value, edited) if hook in edits else value
        if hook in shown:
            found[hook] = value
        return value

    return tap


@jax.jit
def _edited(edit: Edit, value: jax.Array, edited: Bool[Array, "batch position"]) -> jax.Array:
    return edit(value, edited).astype(value.dtype)


def _of_layer(weights: nnx.State, layer: Int[Array, ""]) -> nnx.State:
    return jax.tree.map(lambda stack: jax.lax.dynamic_index_in_dim(stack, layer, keepdims=False), weights)


def _is_pytree(edit: Edit) -> bool:
    return not jax.tree_util.all_leaves([edit])
