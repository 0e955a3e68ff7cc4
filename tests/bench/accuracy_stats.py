"""Statistics of runs with several seeds: means with standard errors, and paired differences with their intervals."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

DEFAULT = "default"  # the variant that the others are compared with


class Difference(NamedTuple):
    """A mean difference and its 95% interval, None where a set has fewer than two pairs."""

    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def verdict(self) -> str:
        """Say what the interval shows."""
        if self.low is None or self.high is None:
            return "too few runs"
        return "gain" if self.low > 0 else "loss" if self.high < 0 else "no difference seen"


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Compute the mean and its standard error, None of one value."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), error


def pooled_difference(sets: Sequence[Sequence[float]]) -> Difference:
    """Average the sets' mean differences, with the 95% t interval of that.

    Each set counts alike and has a variance of its own; the degrees of freedom are Welch's and Satterthwaite's. Of one
    set it is the interval of paired differences.
    """
    mean = statistics.fmean(statistics.fmean(values) for values in sets)
    if min(map(len, sets)) < 2:
        return Difference(mean)
    variances = [statistics.variance(values) / len(values) for values in sets]
    parts = sum(variance**2 / (len(values) - 1) for variance, values in zip(variances, sets, strict=True))
    # One of 0 and of what underflows: there is no scatter, and no quantile is needed.
    half = t_quantile(sum(variances) ** 2 / parts) * math.sqrt(sum(variances)) / len(sets) if parts else 0.0
    return Difference(mean, mean - half, mean + half)


def t_quantile(freedom: float, *, level: float = 0.95) -> float:
    """Compute the t below which |T| stays with a probability, for at least one degree of freedom, to six digits.

    With t = sqrt(freedom) tan(a), the probability of |T| < t is that share of the integral of cos(a) ** (freedom - 1)
    from 0 to pi / 2.
    """
    angles = np.linspace(0, np.pi / 2, 100_001)
    density = np.cos(angles) ** (freedom - 1)
    integral = np.append(0, np.cumsum(density[1:] + density[:-1]))
    return float(np.sqrt(freedom) * np.tan(np.interp(level, integral / integral[-1], angles)))


def paired_differences(rows: Sequence[Mapping[str, Any]], variant: str) -> list[float]:
    """Subtract the default's score from a variant's, of runs of the same set, fold and seed."""
    scores: dict[str, dict[tuple[Any, ...], float]] = {DEFAULT: {}, variant: {}}
    for row in rows:
        if row["variant"] in scores:
            scores[row["variant"]][row["set"], row["fold"], row["seed"]] = row["score"]
    ours, theirs = scores[DEFAULT], scores[variant]
    return [theirs[pair] - ours[pair] for pair in ours if pair in theirs]


def summarize(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Summarize runs by set and variant, in the order of the first of each; last come the pooled differences."""
    sets, variants = (list(dict.fromkeys(row[name] for row in rows)) for name in ("set", "variant"))
    found: list[dict[str, Any]] = []
    every: dict[str, list[list[float]]] = {variant: [] for variant in variants}
    for name in sets:
        of_set = [row for row in rows if row["set"] == name]
        for variant in variants:
            if not (runs := [row for row in of_set if row["variant"] == variant]):
                continue
            mean, error = mean_and_error([row["score"] for row in runs])
            ap50, ap50_error = mean_and_error([row["ap50"] for row in runs])
            line = {"set": name, "metric": runs[0]["metric"], "variant": variant, "runs": len(runs)}
            line |= {"mean": mean, "error": error, "ap50": ap50, "ap50_error": ap50_error}
            differences = paired_differences(of_set, variant) if variant != DEFAULT else []
            if differences:
                every[variant].append(differences)
                line |= as_fields(pooled_difference([differences]))
            found.append(line)
    for variant, differences_of in every.items():
        if differences_of:
            pooled = {"sets": len(differences_of), "variant": variant, "runs": sum(map(len, differences_of))}
            one = pooled_difference(differences_of)
            found.append(pooled | as_fields(one) | {"verdict": one.verdict})
    return found


def as_fields(one: Difference) -> dict[str, Any]:
    """Name a difference and its interval as a summary does."""
    return {"difference": one.mean, "low": one.low, "high": one.high}


def table(summary: Sequence[Mapping[str, Any]]) -> str:
    """Lay out a summary, a variant of a set a line, the pooled differences last."""
    width = max((len(line["variant"]) for line in summary), default=0)
    lines, last = [], None
    for line in summary:
        pooled = "sets" in line
        name = f"pooled, {line['sets']} set{'s' * (line['sets'] > 1)}" if pooled else f"{line['set']}, {line['metric']}"
        figures = "" if pooled else f"{plus_minus(line['mean'], line['error']):15}"
        figures += "" if pooled else f"AP50 {plus_minus(line['ap50'], line['ap50_error']):15}"
        difference = ""
        if "difference" in line:
            low, high = line["low"], line["high"]
            interval = "" if low is None else f" (95%: {low:+.2f} to {high:+.2f})"
            difference = f"{line['difference']:+.2f}{interval}"
        text = f"{'' if name == last else name:28}{line['variant']:{width}}{line['runs']:4}  {figures:35}{difference}"
        lines.append(f"{text}{': ' + line['verdict'] if pooled else ''}".rstrip())
        last = name
    return "\n".join(lines)


def plus_minus(mean: float, error: float | None) -> str:
    """Format a mean and its standard error."""
    return f"{mean:.2f}" + ("" if error is None else f" ± {error:.2f}")
