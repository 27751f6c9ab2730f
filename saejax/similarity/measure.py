"""What a similarity measure is: which statistics of a re-pairing it reads, and what it makes of them.

A measure compares two bare matrices whose rows are paired. Its work is split in three, because a null scores the same
matrices very many times: `own` does once whatever no re-pairing of the rows changes; a `CrossStatistic` computes what
a re-pairing does change, once for all measures that read it; `core` makes a number of the two. A measure knows
nothing of permutation tests.

Every core grows with similarity and is of order 1, whatever the score that is reported: a distance is a falling
function of its core. So one tolerance and one direction serve all measures.

Appending zeros to any array axis of a state changes no core, where the re-pairing leaves appended rows in their
place: masks and weights are part of the state, never implied by a shape. So matrices of different sizes can share
one compiled program.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jaxtyping import Float

from saejax.similarity.moments import Moments
from saejax.similarity.pair import Pair
from saejax.types import AnyArray, Permutation, Permutations, Scalar, Scores

Cores: TypeAlias = Float[AnyArray, "..."]


INVARIANCES = {
    "rotation": "an orthogonal map of the columns, reflections included",
    "scale": "multiplication of the matrix by a positive number",
    "shift": "one vector added to every row",
    "linear map": "an invertible linear map of the columns",
    "column scale": "multiplication of each column by its own positive number",
    "column permutation": "another order of the columns",
    "row shift": "a number added to all entries of a row, its own for each row",
    "row scale": "multiplication of each row by its own positive number",
}


class Bounds(NamedTuple):
    """An interval that holds a core, but for rounding within the measure's tolerance.

    Attributes:
        low: lower end.
        high: upper end.
    """

    low: Cores
    high: Cores

    @property
    def middle(self) -> Cores:
        """The value to report."""
        return (self.low + self.high) / 2


def exactly(core: Cores) -> Bounds:
    """Return the interval of a core that was computed in full, or those of several."""
    return Bounds(core, core)


@dataclasses.dataclass(frozen=True)
class CrossStatistic:
    """What a re-pairing changes, computed once for all measures that read it.

    Attributes:
        name: what it is.
        prepare: `(pair, extent) -> state`, a NamedTuple of numpy arrays; float64 arrays are scored in float32, others
            as they are. `extent` is the largest `(kx, ky)` that a reader needs, or None for everything.
        compute: `(state, perm[n]) -> value`, in the dtype of the state; pure JAX.
        size: `(pair) -> int`, bytes of the largest that the state may be, float32 copies of float64 arrays included.
        making: `(pair) -> int`, bytes that it takes besides to check a pair for the readers of the statistic, to make
            the state and the readers' own, and to find exact moments.
        scratch: `(state) -> int`, bytes that each permutation of a batch takes while it is scored.
        compute_batch: `(state, perms[perm, n]) -> values`, the same for a batch, from the host and on the CPU, where
            that is faster.
        compute_exact: `(state, perm[n]) -> value` in float64 on the CPU, where the state of `compute` is not float64.
    """

    name: str
    prepare: Callable[[Pair, tuple[int, int] | None], Any]
    compute: Callable[[Any, AnyArray], Any]
    size: Callable[[Pair], int]
    making: Callable[[Pair], int]
    scratch: Callable[[Any], int]
    compute_batch: Callable[[Any, AnyArray], Any] | None = None
    compute_exact: Callable[[Any, AnyArray], Any] | None = None


def _nothing_to_refuse(pair: Pair) -> None:
    """Accept every pair that `Pair.of` accepts."""


def _no_extent(pair: Pair) -> None:
    """Read all of a statistic."""


def _core_itself(own: Any, core: AnyArray) -> AnyArray:
    return core


def _never(pair: Pair) -> bool:
    """Vary with the re-pairing."""
    return False


def _no_error(own: Any) -> float:
    return 0.0


def _one(pair: Pair) -> float:
    return 1.0


def all_directions(pair: Pair) -> tuple[int, int]:
    """Return the ranks of both centred matrices."""
    return pair.x.rank, pair.y.rank


@dataclasses.dataclass(frozen=True)
class Measure:
    """One similarity of two matrices x `[n, dx]` and y `[n, dy]` with paired rows.

    Attributes:
        name: what it is called on the command line and in results.
        larger_is_more_similar: direction of the score.
        invariances: what may be done to either matrix without changing the score, from `INVARIANCES`.
        tolerance: bound on how far a float32 core may be from the float64 one, on any device. A draw this close to
            the observed core is scored again in float64, so that counts of exceedances do not depend on how scores
            were computed.
        statistics: what it reads of a re-pairing.
        own: `(pair) -> state`, a NamedTuple of numpy arrays.
        core: `(own, values, perm[n]) -> Bounds`; `values` has one entry per statistic; pure JAX.
        reference: `(x, y) -> float`, the definition of the score, in float64 numpy.
        check: `(pair)`; quick, raises `InputError` for matrices that the measure cannot compare.
        extent: `(pair) -> (kx, ky)`, how much it reads of a statistic that grows with it; None for everything.
        core_batch: `(own, values, perms[perm, n]) -> [perm]`, cores or `Bounds` of a batch from the host, where that is
            faster.
        core_exact: `(own, values, perm[n]) -> float`, the float64 core from numpy values, where faster than `core`.
        score_of: `(own, core) -> score`, monotone; the core itself unless given.
        constant: `(pair) -> bool`, whether the shapes alone make every re-pairing score the same.
        exact_moments: `(pair, skewness) -> Moments`, mean and SD of the score over all re-pairings in closed form, and
            its skewness where that is asked for and known; uniform scheme.
        predicted_mean: `(pair) -> float`, the mean score that an asymptotic law predicts, where there is one; uniform
            scheme.
        invariances_of_y: the same for y, where it is not what may be done to x.
        score_error: `(own) -> float`, bound on how far any score is from the definition's; 0 unless given.
        best: `(pair) -> float`, score of a perfect match of matrices of these shapes and sizes; 1 unless given.
        directions: `(pair) -> (kx, ky)`, numbers of directions that are laid on each other freely, so that random
            pairings score the higher the more there are for n; None for measures that do not.
    """

    name: str
    larger_is_more_similar: bool
    invariances: tuple[str, ...]
    tolerance: float
    statistics: tuple[CrossStatistic, ...]
    own: Callable[[Pair], Any]
    core: Callable[[Any, tuple[Any, ...], AnyArray], Bounds]
    reference: Callable[[AnyArray, AnyArray], float]
    check: Callable[[Pair], None] = _nothing_to_refuse
    extent: Callable[[Pair], tuple[int, int] | None] = _no_extent
    core_batch: Callable[[Any, tuple[Any, ...], AnyArray], AnyArray | Bounds] | None = None
    core_exact: Callable[[Any, tuple[Any, ...], AnyArray], float] | None = None
    score_of: Callable[[Any, AnyArray], AnyArray] = _core_itself
    constant: Callable[[Pair], bool] = _never
    exact_moments: Callable[[Pair, bool], Moments] | None = None
    predicted_mean: Callable[[Pair], float] | None = None
    invariances_of_y: tuple[str, ...] | None = None
    score_error: Callable[[Any], float] = _no_error
    best: Callable[[Pair], float] = _one
    directions: Callable[[Pair], tuple[int, int]] | None = None

    def invariances_of(self, side: str) -> tuple[str, ...]:
        """Return what may be done to one side, `x` or `y`, without changing the score."""
        of_y = self.invariances if self.invariances_of_y is None else self.invariances_of_y
        return of_y if side == "y" else self.invariances

    def prepare(self, x: AnyArray, y: AnyArray) -> "State":
        """Do once whatever no re-pairing changes.

        Args:
            x: `[n, dx]`.
            y: `[n, dy]`.

        Returns:
            The state that `score` reads, in float64.

        Raises:
            InputError: the matrices cannot be compared.
        """
        pair = Pair.of(x, y)
        self.check(pair)
        return self.prepare_pair(pair)

    def prepare_pair(self, pair: Pair) -> "State":
        """Do once whatever no re-pairing changes, for matrices that the measure has checked."""
        crossed = tuple(statistic.prepare(pair, self.extent(pair)) for statistic in self.statistics)
        return State(self.own(pair), crossed)

    def moments(self, pair: Pair, scheme: str, skewness: bool = False) -> Moments | None:
        """Return mean and SD of the score over all re-pairings of a scheme, without drawing one.

        Args:
            pair: the matrices, which the measure has checked.
            scheme: name of the scheme; the closed forms are of `uniform`.
            skewness: whether to find the third moment too, which may take longer.

        Returns:
            The moments; None under any other scheme, or where the measure has no closed form.
        """
        if scheme != "uniform" or self.exact_moments is None:
            return None
        return self.exact_moments(pair, skewness)

    def score(self, state: "State", perm: Permutation) -> Scalar:
        """Return the score of x against y[perm], in the dtype of the state; pure JAX."""
        values = tuple(
            statistic.compute(crossed, perm) for statistic, crossed in zip(self.statistics, state.crossed, strict=True)
        )
        return self.score_of(state.own, self.core(state.own, values, perm).middle)

    def score_batch(self, state: "State", perms: Permutations) -> Scores:
        """Return the scores of a batch, from the host and on the CPU."""
        values = tuple(
            statistic_batch(statistic, crossed, perms)
            for statistic, crossed in zip(self.statistics, state.crossed, strict=True)
        )
        return self.score_of(state.own, core_batch(self, state.own, values, perms).middle)

    def score_exact(self, state: "State", perm: Permutation) -> float:
        """Return the float64 score of x against y[perm], on the CPU."""
        return float(self.scores(state.own, np.array(self.core_of(state, perm))))

    def core_of(self, state: "State", perm: Permutation) -> float:
        """Return the float64 core of x against y[perm], on the CPU."""
        pairs = zip(self.statistics, state.crossed, strict=True)
        values = tuple(exact_statistic(statistic, crossed, perm) for statistic, crossed in pairs)
        return exact_core(self, state.own, values, perm)

    def scores(self, own: Any, cores: np.ndarray) -> np.ndarray:
        """Return the scores that go with cores, in float64."""
        flat = np.asarray(self.score_of(own, np.ravel(cores).astype(np.float64)))
        return flat.reshape(np.shape(cores))


class State(NamedTuple):
    """What one measure keeps of one pair.

    Attributes:
        own: its own part.
        crossed: the states of its statistics.
    """

    own: Any
    crossed: tuple[Any, ...]


def statistic_batch(statistic: CrossStatistic, state: Any, perms: Permutations) -> Any:
    """Compute a statistic for a batch of re-pairings, from the host and on the CPU."""
    if statistic.compute_batch is None:
        return _statistics(statistic, state, perms)
    return statistic.compute_batch(state, perms)


def core_batch(measure: Measure, own: Any, values: tuple[Any, ...], perms: Permutations) -> Bounds:
    """Compute the cores of a batch of re-pairings, from the host and on the CPU."""
    if measure.core_batch is None:
        return _cores(measure, own, values, perms)
    cores = measure.core_batch(own, values, perms)
    return cores if isinstance(cores, Bounds) else exactly(cores)


def exact_statistic(statistic: CrossStatistic, state: Any, perm: Permutation) -> Any:
    """Compute a statistic for one re-pairing in float64, on the CPU."""
    if statistic.compute_exact is not None:
        return statistic.compute_exact(state, perm)
    with _float64_on_the_cpu():
        return _one_statistic(statistic, state, perm)


def exact_core(measure: Measure, own: Any, values: tuple[Any, ...], perm: Permutation) -> float:
    """Compute the core of one re-pairing in float64, on the CPU."""
    if measure.core_exact is not None:
        return float(measure.core_exact(own, jax.tree.map(np.asarray, values), perm))
    with _float64_on_the_cpu():
        return float(_one_core(measure, own, values, perm).middle)


@contextlib.contextmanager
def _float64_on_the_cpu() -> Iterator[None]:
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        yield


@functools.partial(jax.jit, static_argnames="statistic")
def _one_statistic(statistic: CrossStatistic, state: Any, perm: Permutation) -> Any:
    return statistic.compute(state, perm)


@functools.partial(jax.jit, static_argnames="measure")
def _one_core(measure: Measure, own: Any, values: tuple[Any, ...], perm: Permutation) -> Bounds:
    return measure.core(own, values, perm)


@functools.partial(jax.jit, static_argnames="statistic")
def _statistics(statistic: CrossStatistic, state: Any, perms: Permutations) -> Any:
    return jax.vmap(statistic.compute, in_axes=(None, 0))(state, perms)


@functools.partial(jax.jit, static_argnames="measure")
def _cores(measure: Measure, own: Any, values: tuple[Any, ...], perms: Permutations) -> Bounds:
    return jax.vmap(measure.core, in_axes=(None, 0, 0))(own, values, perms)
