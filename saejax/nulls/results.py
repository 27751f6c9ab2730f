"""What a permutation test returns: one result per measure, to read, print, tabulate, plot and save."""

import abc
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from jaxtyping import Float

from saejax import artifacts
from saejax.errors import InputError
from saejax.nulls.tails import smallest

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

T = TypeVar("T")
Method = Literal["sampled", "enumerated", "sequential"]

ROOM = 3  # pairs per direction below which random pairings come close to a perfect match
LONGEST = 1e6  # score that a table writes out


@dataclasses.dataclass(frozen=True)
class NullResult:
    """One measure of one pairing, held against re-pairings of it.

    Attributes:
        measure: name of the measure.
        n: number of pairs that are scored: those given, or what the scheme made of them.
        units: what was exchanged: as many as there are pairs, or clusters or blocks of them.
        rows: number of pairs given.
        observed: score of the pairing as it stands, in float64.
        null_mean: mean score of the re-pairings.
        null_sd: their standard deviation, with m - 1, or m where all were scored; None for a single one.
        null_skewness: their third central moment over the cube of their SD: above 0 where high scores are likelier
            than a normal law with this mean and SD says; None where z is.
        z: (observed - null_mean) / null_sd; None where the measure is constant under this scheme: where the SD is
            within `resolution`. It grows with n, so z at different n cannot be compared.
        calibrated: (observed - mean) / (best - mean) with the exact mean, where it is known, or `null_mean`: 0 for
            random pairings and 1 for a perfect match, whatever n and the measure, so that it can be compared where
            scores cannot; None where z is, or `best`.
        detectable: power at this n: the calibrated score that a single test at level .05 would see four times in five,
            2.49 null_sd / (best - mean), as if scores were normal with the null's SD; None where `calibrated` is. A
            smaller one that was not seen may still be there.
        p_value: one-sided toward more similar: (exceedances + 1) / (permutations + 1), or, where all re-pairings were
            scored, or a sequential test stopped, exceedances / permutations.
        p_two_sided: the same for more or less similar than chance: twice the smaller of both sides' p, at most 1; None
            for a sequential test, which looks at one side.
        p_low: lower 95 % Clopper-Pearson bound from `exceedances` out of `permutations`, 0 when there are none; the
            negative binomial one where a sequential test stopped; p itself where all re-pairings were scored.
        p_high: the upper bound.
        extrapolated_p: where fewer than ten draws were as similar, p by a law of the most similar ones
            (`saejax.nulls.tails`), made rather too large than too small; a model, not a permutation p. None where it
            has no meaning, draws are too few (200), or none fits.
        extrapolated_high: upper 95 % bound of that.
        extrapolated_fit: p of the law's goodness of fit, by the statistic of Anderson and Darling.
        permutations: number of re-pairings scored, m.
        exceedances: how many were at least as similar as the observed pairing, ties counted, b.
        shortfalls: how many were at most as similar, ties counted.
        scheme: which re-pairings were equally likely.
        tail: `upper` when larger scores are more similar, else `lower`.
        method: `sampled`: re-pairings were drawn at random, with repetition. `enumerated`: all that the scheme allows
            were scored, the observed pairing among them. `sequential`: as sampled, up to the re-pairing at which
            `exceedances` came to `stop_after`, if they did.
        seed: seed of the re-pairings.
        first: number of the first re-pairing.
        repeats: pairs with a feature that stands in an earlier pair too, re-paired all the same because
            `duplicates="accept"` was given. p is then no valid one.
        fixed: units that had no other to be exchanged with, and stayed.
        stop_after: exceedances at which a sequential test stops; None for others.
        resolution: how far draws may be from their float64 scores by the measure's tolerance, as a root mean square;
            fifty times as far where a core is only known as an interval.
        score_error: bound on how far any score is from the definition's (16-bit ranks); 0 where there is none.
        rescored: how many draws were scored again in float64, because they came close to the observed score or float32
            could not tell them.
        exact_mean: mean score over all re-pairings, in closed form; None where the measure has none, or the scheme.
        exact_sd: their standard deviation, likewise.
        exact_z: (observed - exact_mean) / exact_sd: z without sampling error.
        best: score of a perfect match of such matrices; None where they differ between re-pairings.
        kx: directions of x that the measure lays on those of y as they fit best (CCA and its kin); None for others.
        ky: those of y. With n below 3 (kx + ky) random pairings score high, and little room is left above them.
        predicted_mean: mean score that an asymptotic law predicts (Wachter's, for SVCCA); a check, not a null.
        picks: number of random one-to-one picks whose mean score is reported (scheme representative); else 1.
        pick_sd: SD of the observed score over picks, with picks - 1; None for one.
        pick_low: smallest observed score of a pick.
        pick_high: largest observed score of a pick.
        draws: the score of each re-pairing, in order of its number.
    """

    measure: str
    n: int
    units: int
    rows: int
    observed: float
    null_mean: float
    null_sd: float | None
    null_skewness: float | None
    z: float | None
    calibrated: float | None
    detectable: float | None
    p_value: float
    p_two_sided: float | None
    p_low: float
    p_high: float
    extrapolated_p: float | None
    extrapolated_high: float | None
    extrapolated_fit: float | None
    permutations: int
    exceedances: int
    shortfalls: int
    scheme: str
    tail: str
    method: Method
    seed: int
    first: int
    repeats: int
    fixed: int
    stop_after: int | None
    resolution: float
    score_error: float
    rescored: int
    exact_mean: float | None
    exact_sd: float | None
    exact_z: float | None
    predicted_mean: float | None
    best: float | None
    kx: int | None
    ky: int | None
    picks: int
    pick_sd: float | None
    pick_low: float | None
    pick_high: float | None
    draws: Float[np.ndarray, "perm"] = dataclasses.field(repr=False, compare=False)

    def record(self) -> dict[str, Any]:
        """Return everything but the draws, as plain JSON values."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "draws"}


class Results(list[T], abc.ABC):
    """Results that print as a table and become a data frame."""

    @abc.abstractmethod
    def records(self) -> list[dict[str, Any]]:
        """Return the plain values of every result."""

    @abc.abstractmethod
    def lines(self) -> list[str]:
        """Return the lines of the table."""

    def __repr__(self) -> str:
        """Return the table."""
        return "\n".join(self.lines())

    def to_pandas(self) -> "pandas.DataFrame":
        """Return one row per result, all that is plain of it.

        Raises:
            InputError: pandas is not installed.
        """
        return to_pandas(self.records())


class NullResults(Results[NullResult]):
    """Results in the order of the measures; prints as a table."""

    def records(self) -> list[dict[str, Any]]:
        """Return everything but the draws."""
        return [result.record() for result in self]

    def lines(self) -> list[str]:
        """Return the lines of the table."""
        return table(self.records())

    def plot(self) -> "plotly.graph_objects.Figure":
        """Return a figure with one histogram per measure: its null, and the observed score as a line."""
        import plotly.graph_objects
        import plotly.subplots

        titles = [
            f"{result.measure}: n = {result.n}, {_z(result.record())}, p = {result.p_value:.2g}" for result in self
        ]
        figure = plotly.subplots.make_subplots(rows=len(self), cols=1, subplot_titles=titles)
        for row, result in enumerate(self, 1):
            counts, edges = np.histogram(result.draws, bins=60)
            centres = (edges[:-1] + edges[1:]) / 2
            bars = plotly.graph_objects.Bar(
                x=centres, y=counts, width=edges[1] - edges[0], marker_color="#b8bec9", showlegend=False
            )
            figure.add_trace(bars, row=row, col=1)
            figure.add_vline(x=result.observed, line_color="#2456b8", line_width=3, row=row, col=1)  # type: ignore[arg-type]
            figure.update_xaxes(title_text="score", row=row, col=1)
            figure.update_yaxes(title_text="random pairings", row=row, col=1)
        return figure.update_layout(height=280 * len(self), template="plotly_white", bargap=0)

    def save(self, path: Path | str) -> Path:
        """Write the results as JSON, and the draws beside it as .npz.

        Args:
            path: result file, .json.

        Returns:
            The result file.

        Raises:
            InputError: the name does not end in .json.
        """
        path = Path(path)
        if path.suffix != ".json":
            raise InputError(f"{path} must end in .json")
        artifacts.write_npz(path.with_suffix(".npz"), {result.measure: result.draws for result in self})
        artifacts.write_json(path, [result.record() for result in self])
        return path


def load(path: Path | str) -> NullResults:
    """Read results that `NullResults.save` or `saejax null` wrote.

    Args:
        path: result file, .json, with its .npz beside it.

    Raises:
        InputError: a file is absent or damaged.
    """
    path = Path(path)
    records = artifacts.read_json(path)
    draws_file = path.with_suffix(".npz")
    if not draws_file.exists():
        raise InputError(f"{draws_file} does not exist; it holds the draws of {path.name} and lies beside it")
    with np.load(draws_file) as draws:
        return NullResults(NullResult(**record, draws=draws[record["measure"]]) for record in records)


def to_pandas(records: Sequence[dict[str, Any]]) -> "pandas.DataFrame":
    """Return one row per record.

    Raises:
        InputError: pandas is not installed.
    """
    try:
        import pandas
    except ModuleNotFoundError:
        raise InputError('pandas is not installed; pip install "saejax[pandas]"') from None
    return pandas.DataFrame(list(records))


def table(records: Sequence[dict[str, Any]], names: Sequence[str] = ("measure",)) -> list[str]:
    """Return the lines of a table of results.

    Args:
        records: from `NullResult.record`.
        names: what tells one from the others, the first columns.

    Returns:
        A head, a line per record, and lines that say what else a reader must know: measures without z, features that
        repeat or stayed, and what a scheme made of the pairs.
    """
    cells = [
        (
            *names,
            "n",
            "observed",
            "null mean",
            "null SD",
            "z",
            "exact z",
            "calibrated",
            "p",
            "corrected p",
            "95 % interval of p",
            "extrapolated p",
        ),
        *((*(str(record[name]) for name in names), *_cells(record)) for record in records),
    ]
    lines = aligned(cells)
    constant = [record["measure"] for record in records if record["z"] is None and record["permutations"] > 1]
    if constant:
        which = ", ".join(dict.fromkeys(constant))
        lines.append(f"no z for {which}: constant under this scheme, every re-pairing scores the same")
    return [*lines, *dict.fromkeys(note for record in records for note in _notes(record))]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines with their cells under each other; columns that are empty in all rows but the first are left out.

    Args:
        rows: cells, those of the head first.
    """
    columns = list(zip(*rows, strict=True))
    widths, shown = [max(map(len, column)) for column in columns], [any(column[1:]) for column in columns]
    padded = ([f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)] for row in rows)
    return ["  ".join(itertools.compress(row, shown)) for row in padded]


def number(value: float | None, form: str) -> str:
    """Return a number for a table; nothing where it is not known."""
    return "" if value is None else f"{value:{form}}"


def extrapolated_words(record: dict[str, Any]) -> str:
    """Return an extrapolated p for a table, as a bound where it was not followed farther; nothing where there is none.

    Args:
        record: from `NullResult.record`, or one that lacks the field.
    """
    p = record.get("extrapolated_p")
    if p is None:
        return ""
    return f"{'< ' if p <= smallest(record['permutations']) else ''}{p:.1g}"


def _notes(record: dict[str, Any]) -> Iterator[str]:
    """Yield what a reader must know of a result beside its numbers."""
    scheme, rows, units = record["scheme"], f"{record['rows']:,}", f"{record['units']:,}"
    if record["units"] != record["rows"]:
        yield f"scheme {scheme} exchanged {units} units, made of {rows} pairs"
    if record["repeats"]:
        yield f"p is no valid one: {record['repeats']:,} of {rows} pairs repeat a feature, and were shuffled singly"
    if record["fixed"]:
        yield f"{record['fixed']:,} of {units} pairs are alone in their stratum and stayed as they are"
    few = record["z"] is not None and record["kx"] is not None
    if few and record["n"] < ROOM * (record["kx"] + record["ky"]):
        yield (
            f"{record['measure']} lays {record['kx']} and {record['ky']} directions on each other: {record['n']:,} "
            f"pairs are fewer than {ROOM} for each, so random pairings score high; compare calibrated scores, or keep "
            "fewer directions"
        )
    if record["picks"] > 1:
        low, high, sd = (number(record[key], ".4g") for key in ("pick_low", "pick_high", "pick_sd"))
        yield f"{record['measure']} is the mean over {record['picks']} picks: {low} to {high}, SD {sd}"
    if record["method"] == "enumerated":
        yield f"p of {units} units is exact: all {record['permutations']:,} re-pairings of scheme {scheme} were scored"


def _cells(record: dict[str, Any]) -> tuple[str, ...]:
    interval = f"{record['p_low']:.2g} - {record['p_high']:.2g}"
    form = ".5f" if abs(record["observed"]) < LONGEST else ".5e"
    scores = (number(record[key], form) for key in ("observed", "null_mean", "null_sd"))
    zs = *(number(record[key], ".2f") for key in ("z", "exact_z")), number(record["calibrated"], ".4f")
    ps = (number(record.get(key), ".2g") for key in ("p_value", "p_corrected"))
    return (str(record["n"]), *scores, *zs, *ps, interval, extrapolated_words(record))


def _z(record: dict[str, Any]) -> str:
    return "constant under this scheme" if record["z"] is None else f"z = {record['z']:.1f}"
