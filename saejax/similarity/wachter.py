"""Wachter's law: what SVCCA scores when the pairing is random.

Two random subspaces of dimensions kx and ky in the n - 1 dimensions that centring leaves are far from orthogonal. As
n grows with c1 = min(kx, ky) / (n - 1) <= c2 = max(kx, ky) / (n - 1) fixed, their squared canonical correlations l
follow

    f(l) = sqrt((h - l) (l - g)) / (2 pi c1 l (1 - l))    on  g < l < h,
    g, h = (sqrt(c1 (1 - c2)) -+ sqrt(c2 (1 - c1)))^2,

and, where c1 + c2 > 1, an atom at 1: subspaces too large for the room share kx + ky - (n - 1) directions, a share
(kx + ky - n + 1) / min(kx, ky) of the min(kx, ky) correlations. The density holds the rest, min(1, (1 - c2) / c1).
With kx or ky = n - 1 every correlation is 1.

The mean is taken over l = middle + radius cos(t), which turns the square roots at both ends into sin(t)^2; l - g,
1 - l and 1 - h are computed without cancellation, as both ends may touch 0 and 1.

The law holds for bases without dominant rows: rows that carry much of a basis (duplicates, hubs; leverages near 1)
move the null mean, and only sampling or the exact moments tell by how much. For such bases the mean at n = 300 is met
within 0.003 for min(kx, ky) >= 5. With one component on both sides there is no bulk: see `mean_absolute_correlation`.

Source: Wachter, "The limiting empirical measure of multiple discriminant ratios", Annals of Statistics 8, 1980.
"""

import math

from scipy.integrate import quad
from scipy.special import gammaln

from saejax.errors import InputError


def wachter_mean_correlation(kx: int, ky: int, n: int) -> float:
    """Return the mean canonical correlation to expect of random pairings: the predicted null mean of SVCCA.

    Args:
        kx: components of x, 1 to n - 1.
        ky: components of y, 1 to n - 1.
        n: pairs.

    Raises:
        InputError: kx or ky lies outside 1 to n - 1.
    """
    return wachter_moment(kx, ky, n, power=1)


def wachter_moment(kx: int, ky: int, n: int, power: int) -> float:
    """Return the mean of `power`-th powers of the min(kx, ky) canonical correlations by Wachter's law, atom included.

    For power 2 it is max(kx, ky) / (n - 1), which holds exactly over all re-pairings of any data.

    Raises:
        InputError: kx or ky lies outside 1 to n - 1.
    """
    for name, components in (("kx", kx), ("ky", ky)):
        if not 1 <= components <= n - 1:
            raise InputError(f"{name} {components} must be from 1 to n - 1 = {n - 1}; centred rows span no more")
    smaller, larger = sorted((kx, ky))
    atom = max(0, kx + ky - (n - 1)) / smaller
    return atom + _bulk_moment(smaller / (n - 1), larger / (n - 1), power)


def _bulk_moment(c1: float, c2: float, power: int) -> float:
    """Return the integral of l^(power / 2) f(l)."""
    inner, outer = math.sqrt(c1 * (1 - c2)), math.sqrt(c2 * (1 - c1))
    low, radius = (outer - inner) ** 2, 2 * inner * outer
    above = (math.sqrt((1 - c1) * (1 - c2)) - math.sqrt(c1 * c2)) ** 2  # 1 - h
    if radius == 0:
        return 0.0

    def integrand(t: float) -> float:
        square = low + 2 * radius * math.cos(t / 2) ** 2
        rest = above + 2 * radius * math.sin(t / 2) ** 2
        return (radius * math.sin(t)) ** 2 / (square * rest) * square ** (power / 2)

    integral, _ = quad(integrand, 0, math.pi, epsabs=1e-12, epsrel=1e-10, limit=500)
    return integral / (2 * math.pi * c1)


def mean_squared_correlation(n: int) -> float:
    """Return E r^2 = 1 / (n - 1), exact for the correlation of any two vectors of n entries over all re-pairings."""
    return 1 / (n - 1)


def mean_absolute_correlation(n: int) -> float:
    """Return an approximation to E |r|, the null mean of SVCCA with one component on both sides.

    Gamma((n - 1) / 2) / (sqrt(pi) Gamma(n / 2)), about sqrt(2 / (pi (n - 1))): exact where one of the vectors is
    normal or uniformly rotated, approximate over re-pairings of two given vectors, where it depends on their shape.
    """
    return math.exp(gammaln((n - 1) / 2) - gammaln(n / 2)) / math.sqrt(math.pi)
