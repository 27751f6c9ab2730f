"""A p smaller than a count can give, extrapolated by a generalised Pareto law of the largest draws.

Where fewer than ten draws reach the observed score, their number says little more than that p is small. Above a high
threshold t the excesses of most distributions follow nearly a generalised Pareto law [1],

    P(S - t > y) = (1 + shape y / scale)^(-1 / shape),   exp(-y / scale) where shape = 0,

so with k of m draws above t,  p = k / m P(S > observed | S > t)  [2]. It is fitted by maximum likelihood: for a given
theta = shape / scale the best shape is the mean of log(1 + theta y), which leaves one number to search [3].

A law of negative shape ends, and may end before the observed score: p would be 0, which no permutation test gives. Laws
held to end just beyond it give p of 1e-20 where 1e-4 is right [4 proposes a margin]. So laws that end are left out: the
lightest tail is the exponential one. Scores of pairings are bounded, and their tails lighter than that; so the p given
here is too large rather than too small: by a factor of 5 for a normal null and p = 1e-5, from 10,000 draws.

200 samples of the fitted law, fitted in the same way, say two things. Whether it fits: the Anderson-Darling statistic
of the draws is held against theirs, and while it is rejected at 5 %, ten draws fewer are taken for the tail, down to
50. And how sure p is: the value below which 95 % of theirs lie.

All this is a model of what was not seen. It stands beside the counted p, as extrapolated, never in its place; farther
than to a thousandth of what one draw counts it is not followed.

[1] Pickands, "Statistical inference using extreme order statistics", 1975.
[2] Knijnenburg, Wessels, Reinders, Shmulevich, "Fewer permutations, more accurate P-values", 2009.
[3] Grimshaw, "Computing maximum likelihood estimates for the generalized Pareto distribution", 1993.
[4] permApprox, arXiv 2602.22975, 2026.
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
import scipy.stats
from jaxtyping import Float

FEW = 10  # exceedances from which their number is the better p
MOST, FEWEST, STEP = 250, 50, 10  # draws that make the tail
SHARE = 4  # of all draws, at most one in so many
FARTHEST = 1000  # of what one draw counts
SAMPLES = 200
LEVEL = 0.05  # at which a fit is rejected
CONFIDENCE = 0.95
# Where to look for theta, times the mean excess: from the exponential law to a very heavy tail.
THETAS = np.concatenate([[0.0], np.geomspace(1e-2, 20, 24)])
STRAIGHT = 1e-9  # theta times the mean excess, below which a law is the exponential one
SMALLEST, EPSILON = 1e-300, 1e-16


class Tail(NamedTuple):
    """An extrapolated p.

    Attributes:
        p_value: tail probability of the observed score.
        high: what it is at most, with 95 % confidence, if the law holds.
        shape: of the law; 0 for the exponential one.
        excesses: number of draws that it was fitted to.
        fit: share of samples of the fitted law that fit it no better than the draws did.
    """

    p_value: float
    high: float
    shape: float
    excesses: int
    fit: float


def smallest(permutations: int) -> float:
    """Return the p at which a law is not followed farther."""
    return 1 / (FARTHEST * permutations)


def extrapolate(draws: Float[np.ndarray, "perm"], observed: float, seed: int) -> Tail | None:
    """Return a p from the shape of the upper tail.

    Args:
        draws: scores of random re-pairings, larger being more extreme.
        observed: the observed score.
        seed: seed of the samples that the fit is held against.

    Returns:
        The tail; None where there are too few draws, they are few different ones, the observed score lies among those
        that make the tail or below, or no law fits.
    """
    ordered, rng = np.sort(draws)[::-1], np.random.default_rng(seed)
    for count in range(min(MOST, len(draws) // SHARE), FEWEST - 1, -STEP):
        threshold = float(ordered[count - 1 : count + 1].mean())
        excesses, beyond = ordered[:count] - threshold, observed - threshold
        if beyond <= 0 or len(np.unique(excesses)) < count:
            return None
        law, share = _fitted(excesses), count / len(draws)
        samples = law.samples((SAMPLES, count), rng)
        laws = _likeliest(samples)
        fit = float(np.mean(_distances(samples, laws) >= _distances(excesses[None], law)))
        if fit >= LEVEL:
            least, y = smallest(len(draws)), np.array(beyond)
            p, high = share * law.survival(y), np.quantile(share * laws.survival(y), CONFIDENCE)
            return Tail(max(float(p), least), max(float(high), float(p), least), float(law.shape), count, fit)
    return None


class _Law(NamedTuple):
    """One generalised Pareto law, or a column of one for each of several samples."""

    shape: Any
    scale: Any

    def survival(self, values: Float[np.ndarray, "*n"]) -> np.ndarray:
        """Return the chance of more."""
        return np.asarray(scipy.stats.genpareto.sf(values, self.shape, scale=self.scale))

    def samples(self, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """Return samples of the law."""
        return np.asarray(scipy.stats.genpareto.rvs(self.shape, scale=self.scale, size=size, random_state=rng))


def _fitted(excesses: Float[np.ndarray, "count"]) -> _Law:
    """Return the likeliest law that has no end."""
    mean = float(excesses.mean())
    best = int(np.argmin(_cost(THETAS[None] / mean, excesses[None])))
    low, high = (THETAS[place] / mean for place in (max(best - 1, 0), min(best + 1, len(THETAS) - 1)))
    found: Any = scipy.optimize.minimize_scalar(
        lambda theta: float(_cost(np.array([[theta]]), excesses[None])[0, 0]), bounds=(low, high), method="bounded",
        options={"xatol": STRAIGHT / mean},
    )  # fmt: skip
    ends = np.array([[found.x, low]])
    theta = ends[:, np.argmin(_cost(ends, excesses[None])[0])][:, None]
    return _Law(*(float(each[0, 0]) for each in _law(theta, excesses[None])))


def _likeliest(excesses: Float[np.ndarray, "samples count"]) -> _Law:
    """Return the likeliest laws of several samples, among those of `THETAS`."""
    thetas = THETAS / excesses.mean(axis=1, keepdims=True)
    best = np.argmin(_cost(thetas, excesses), axis=1)[:, None]
    return _Law(*_law(np.take_along_axis(thetas, best, axis=1), excesses))


def _law(
    thetas: Float[np.ndarray, "samples thetas"], excesses: Float[np.ndarray, "samples count"]
) -> tuple[Float[np.ndarray, "samples thetas"], Float[np.ndarray, "samples thetas"]]:
    """Return the best shape for every theta, and the scale."""
    mean = excesses.mean(axis=1, keepdims=True)
    shape = np.mean(np.log1p(thetas[:, :, None] * excesses[:, None]), axis=2)
    straight = thetas * mean < STRAIGHT
    return np.where(straight, 0, shape), np.where(straight, mean, shape / np.where(straight, 1, thetas))


def _cost(
    thetas: Float[np.ndarray, "samples thetas"], excesses: Float[np.ndarray, "samples count"]
) -> Float[np.ndarray, "samples thetas"]:
    """Return the negative log-likelihood per draw, less 1."""
    shape, scale = _law(thetas, excesses)
    return np.log(scale) + shape


def _distances(excesses: Float[np.ndarray, "samples count"], laws: _Law) -> Float[np.ndarray, "samples"]:
    """Return the statistic of Anderson and Darling of every sample and its law."""
    beyond = np.clip(laws.survival(np.sort(excesses, axis=1)), SMALLEST, 1 - EPSILON)
    count = excesses.shape[1]
    weights = 2 * np.arange(1, count + 1) - 1
    return -count - np.mean(weights * (np.log1p(-beyond) + np.log(beyond[:, ::-1])), axis=1)
