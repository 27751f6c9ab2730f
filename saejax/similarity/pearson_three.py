"""Tail probabilities from three exact moments: the Pearson III distribution that has them.

A Pearson III variable is a gamma variable, shifted, scaled and, for negative skewness, mirrored. With z = (observed -
mean) / sd, skewness g > 0 and G gamma with shape 4 / g^2 and scale 1,

    P(Z >= z) = P(G >= 4 / g^2 + 2 z / g)

and 1 below the lower end of the support, z = -2 / g. With g < 0 the variable -Z has skewness -g. As g goes to 0 the
law goes to the normal. There incomplete gamma functions lose their far tails, so below |g| = 0.01 the transformation
of Wilson and Hilferty takes over,

    P(Z >= z) = P(N >= (6 / g) ((1 + g z / 2)^(1/3) - 1) + g / 6)

for which the relative error of p is about z^4 g^2 / 430: 1e-4 at z = 5 and 2e-3 at z = 10 for the largest such g.

The moments are exact and the shape is a model. Of the centred family, over n = 40 to 100 and with 0 to 20 equal rows,
p between 0.1 and 0.01 came within 6 %, 0.001 within 30 % and 0.0001 within 70 % of sampled ones; at n = 7 p is off by
0.02, half as much as a normal p. Further out nothing holds it to the truth.

Source: Kazi-Aoual, Hitier, Sabatier, Lebreton, "Refined approximations to permutation tests for multivariate
inference", 1995; Josse, Pagès, Husson, "Testing the significance of the RV coefficient", 2008; Wilson and Hilferty,
"The distribution of chi-square", 1931.
"""

import math

from scipy.special import gammainc, gammaincc
from scipy.stats import norm

from saejax.errors import InputError
from saejax.similarity.moments import Moments

NEARLY_NORMAL = 0.01


def pearson_three_p(observed: float, moments: Moments) -> float:
    """Return the probability that a null draw is at least as large as the observed core, by a Pearson III law.

    Args:
        observed: core of the pairing as it stands; larger is more similar.
        moments: mean, standard deviation and skewness of the core over re-pairings.

    Returns:
        Upper-tail p. With negative skewness it is 0 above the upper end of the law's support, mean - 2 sd / skewness,
        where the model says nothing and the null may still reach.

    Raises:
        InputError: the standard deviation is not positive, or the skewness is not known.
    """
    if not moments.sd > 0:
        raise InputError(f"sd {moments.sd} of the null leaves no tail; every pairing scores the same")
    if moments.skewness is None:
        raise InputError("skewness None; a Pearson III p needs the third moment, sample the null instead")
    z, skewness = (observed - moments.mean) / moments.sd, moments.skewness
    growth = z * skewness / 2
    if growth <= -1:  # beyond the end of the support, which lies below the mean if skewness > 0 and above it if not
        return 1.0 if skewness > 0 else 0.0
    if skewness == 0:
        return float(norm.sf(z))
    if abs(skewness) < NEARLY_NORMAL:
        return float(norm.sf(6 / skewness * math.expm1(math.log1p(growth) / 3) + skewness / 6))
    shape = 4 / skewness**2
    tail = gammaincc if skewness > 0 else gammainc
    return float(tail(shape, shape * (1 + growth)))
