"""Count, mean, SD and exceedances of the draws so far, on disk beside them, for whoever watches a long run."""

import numpy as np

from saejax import artifacts
from saejax.nulls.draws import Draws
from saejax.nulls.inference import count_exceedances
from saejax.nulls.preparing import AnyNull


def write_running(null: AnyNull, draws: Draws) -> None:
    """Write `running-START-STOP.json` for the range of some draws; nowhere where they have no folder.

    By measure: how many of the range's re-pairings are there, the mean and SD of their scores, and how many were at
    least as similar as the observed pairing.

    Args:
        null: what is scored.
        draws: its draws.
    """
    if draws.folder is None:
        return
    running = {}
    for measure, own, observed, cores in zip(null.plan.measures, null.own, null.observed, draws.cores, strict=True):
        made = cores[~np.isnan(cores)]
        scores = measure.scores(own, made)
        running[measure.name] = {
            "permutations": len(made),
            "mean": float(scores.mean()),
            "sd": float(scores.std(ddof=1)) if len(made) > 1 else None,
            "exceedances": count_exceedances(made, observed),
        }
    artifacts.write_json(draws.folder / f"running-{draws.first:010}-{draws.stop:010}.json", running)
