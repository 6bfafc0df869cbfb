"""The plots of a search's tables. Each function fills axes and says what it drew, or None for no plot."""

import math
from typing import Any

import numpy as np

import utils
from pictures.looks import CELLS, FIRST, INK, SECOND, Drawn, Hint, colour
from pictures.tables import Row, a_lost_less, numbers, trained

NAMES = {
    "parameters": "parameters, millions",
    "multiply_adds": "multiply-adds, millions",
    "latency": "latency, ms",
    "memory": "memory, GiB",
}
BAR = {"capsize": 2.5, "elinewidth": 1.2}  # of intervals


def counted(rows: list[Row]) -> np.ndarray:
    """The generations of some rows, (rows,), from 1 as in the log."""
    return numbers(rows, "generation") + 1


def _lines(axes: Any, generations: list[Row], *lines: tuple[str, str, str, str], scale: float = 1) -> int:
    """Plots columns of generations.csv, each (column, label, dash, colour); returns how many had values."""
    drawn = 0
    for column, label, dash, hue in lines:
        values = numbers(generations, column) * scale
        values[~np.isfinite(values)] = np.nan
        if np.isfinite(values).any():
            marker = "o" if np.isfinite(values).sum() == 1 else ""  # a line of one point would not show
            x = counted(generations)
            axes.plot(x, values, dash, color=hue, label=label, marker=marker, markersize=4)
            drawn += 1
    return drawn


def _generations_axis(axes: Any, generation: np.ndarray) -> None:
    """The x axis, half a generation wider than the data at both ends: one generation alone has room too."""
    axes.set(xlabel="generation", xlim=(np.nanmin(generation) - 0.5, np.nanmax(generation) + 0.5))


def losses(axes: Any, history: list[Row], generations: list[Row]) -> Drawn | None:
    """Every trained candidate's loss, fast and slow learners apart, with the generations' mean and best."""
    rows = trained(history)
    a, b, when = numbers(rows, "loss_a"), numbers(rows, "loss_b"), counted(rows)
    finite = np.concatenate([a, b])
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return None
    # A diverged network would flatten all others: what lies far beyond the quartiles goes to the top edge.
    low, high = np.percentile(finite, (25, 75))
    ceiling = finite[finite <= high + 6 * max(high - low, 1e-9)].max()
    room = 0.05 * max(ceiling - finite.min(), 1e-3)
    axes.set_ylim(finite.min() - room, ceiling + 2 * room)
    many = len(rows) > 3000  # drawn as pixels and without values, to keep the page small
    a_won = np.array([row["winner"] == "a" for row in rows], dtype=bool)
    sides = (("slow", np.where(a_won, b, a), SECOND, 0.12), ("fast", np.where(a_won, a, b), FIRST, -0.12))
    beyond, hints = 0, []
    for label, loss, hue, shift in sides:
        out = ~(loss <= ceiling)  # NaN too
        x, look = when + shift, {"color": hue, "rasterized": many}
        axes.scatter(x[~out], loss[~out], s=10, alpha=0.6, linewidths=0, label=label, **look)
        edge = axes.get_xaxis_transform()
        axes.scatter(x[out], np.full(out.sum(), 0.98), marker="x", s=18, transform=edge, **look)
        beyond += int(out.sum())
        for place, value, row in zip(x, loss, [] if many else rows, strict=not many):
            text = f"{label} learner of pair {row['pair']} in generation {place - shift:.0f}: {value:.4g}"
            hints.append(Hint(text, place, value if value <= ceiling else ceiling + 1.6 * room))
    _lines(axes, generations, ("mean_loss", "mean", "--", INK), ("best_loss", "best", "-", INK))
    _generations_axis(axes, when)
    axes.set(ylabel="validation loss")
    note = f" Not finite or far above the scale: {beyond} (crosses at the top)." if beyond else ""
    return Drawn(f"Loss of each trained candidate, as fast or slow learner of its pair.{note}", hints)


def diversity(axes: Any, generations: list[Row]) -> Drawn | None:
    """The population's diversity; no plot where it never changed."""
    values = numbers(generations, "diversity")
    if len(values) > 1 and (values == values[0]).all():
        return None
    if not _lines(axes, generations, ("diversity", "", "-", FIRST)):
        return None
    when = counted(generations)
    _generations_axis(axes, when)
    axes.set(ylabel="diversity")
    highest = values[np.isfinite(values)].max()
    axes.set_ylim(0, 1.08 * highest if highest > 0 else 1)  # the line stays clear of the upper edge
    hints = [
        Hint(f"generation {place:.0f}: diversity {value:.3f}", place, value)
        for place, value in zip(when, values, strict=True)
        if np.isfinite(value)
    ]
    return Drawn(
        "Diversity of the population. Near zero, all cells are alike and the search has settled.", hints
    )


def counted_operations(generations: list[Row], cell: str) -> list[str]:
    """The operations whose numbers generations.csv has for one kind of `looks.CELLS`."""
    columns = generations[0] if generations else ()
    return [column.removeprefix(f"{cell}_") for column in columns if column.startswith(f"{cell}_")]


def operations(axes: Any, generations: list[Row], cell: str) -> Drawn | None:
    """Edges of the population per operation, stacked, for one kind of `looks.CELLS`."""
    counts = {name: numbers(generations, f"{cell}_{name}") for name in counted_operations(generations, cell)}
    if not any(np.isfinite(count).any() for count in counts.values()):
        return None
    # Each generation is a step one unit wide, so that a single one shows too.
    when, hints = counted(generations), []
    below = np.zeros(len(when))
    for name, count in counts.items():
        top = below + np.nan_to_num(count)
        edges = (np.repeat(values, 2) for values in (below, top))
        x = np.repeat(when, 2) + np.tile((-0.5, 0.5), len(when))
        axes.fill_between(x, *edges, color=colour(name), linewidth=0)
        for place, low, high in zip(when, below, top, strict=True):
            text = f"generation {place:.0f}: {name} on {high - low:.0f} edges"
            hints += [Hint(text, place - 0.5, low, place + 0.5, high)] if high > low else []
        below = top
    _generations_axis(axes, when)
    axes.set(ylabel="edges in the population", ylim=(0, max(below.max(), 1)))
    axes.grid(False)
    alike = cell == "normal" and not counted_operations(generations, "reduce")
    note = "; the reduction cells are the same" if alike else ""
    return Drawn(f"Operations in the {CELLS[cell]}{note}.", hints)


def decisions(axes: Any, history: list[Row], generations: list[Row]) -> Drawn | None:
    """What the predictor decided alone, and how often it was right where it was checked.

    No plot where it never was sure of a pair: the line would be flat.
    """
    if not np.isfinite(numbers(history, "probability")).any():  # it has not said anything, or there is none
        return None
    shares, audits = numbers(generations, "predicted_share"), numbers(generations, "audits")
    if not (shares > 0).any() and not (audits > 0).any():
        return None
    if not _lines(axes, generations, ("predicted_share", "decided by the predictor", "-", FIRST), scale=100):
        return None
    right, when = numbers(generations, "audit_accuracy"), counted(generations)
    _generations_axis(axes, when)
    axes.set(ylabel="%", ylim=(-4, 104))
    hints = [
        Hint(f"generation {place:.0f}: {share:.0%} decided by the predictor", place, 100 * share)
        for place, share in zip(when, shares, strict=True)
        if np.isfinite(share)
    ]
    known = np.isfinite(right) & (audits > 0)
    if (right[known] > 1).any() or np.isinf(audits).any():
        raise ValueError("audits that cannot be")
    audits, right, when = audits[known], right[known], when[known]
    if known.any():
        look = {"color": SECOND, "alpha": 0.8, "lw": 0, "label": "right when audited"}
        axes.scatter(when, 100 * right, s=12 * audits, **look)
        hints += [
            Hint(f"generation {place:.0f}: right in {share:.0%} of {count:.0f} audits", place, 100 * share)
            for place, share, count in zip(when, right, audits, strict=True)
        ]
    return Drawn(
        "Share of the pairs decided without training, and how often the predictor was right where such a "
        "pair was trained all the same (audited). Larger dots: more audits.",
        hints,
    )


def foretold(history: list[Row]) -> tuple[np.ndarray, np.ndarray]:
    """The pairs that have a probability and a trained outcome: P(a beats b), and whether a won, (pairs,)."""
    rows = [row for row in trained(history) if row["winner"] in ("a", "b") and a_lost_less(row) is not None]
    probability = numbers(rows, "probability")
    known = (probability >= 0) & (probability <= 1)
    a_won = np.array([a_lost_less(row) for row in rows], dtype=bool)
    return probability[known], a_won[known]


def reliability(probability: np.ndarray, a_won: np.ndarray, bins: int = 5) -> tuple[np.ndarray, float, float]:
    """How probabilities (n,) that a beats b agree with the outcomes (n,).

    Which cell is called a is arbitrary, so a pair counts for its favoured cell: probabilities from 0.5 to 1,
    in equal bins. Returns (bins, 3): pairs, mean probability, share that won; the expected calibration error
    (Naeini et al. 2015); and the error that perfect probabilities would show on average with as few pairs.
    """
    confidence = np.maximum(probability, 1 - probability)
    correct = np.where(probability == 0.5, 0.5, (probability > 0.5) == a_won)
    place = np.minimum((2 * (confidence - 0.5) * bins).astype(int), bins - 1)

    def error(outcome: np.ndarray) -> float:
        gaps = np.bincount(place, outcome - confidence, bins)
        return float(np.abs(gaps).sum() / len(confidence))

    count = np.bincount(place, minlength=bins)
    sums = np.stack([np.bincount(place, values, bins) for values in (confidence, correct)])
    means = sums / np.where(count, count, np.nan)
    rng = np.random.default_rng(0)
    chance = np.mean([error(rng.random(len(confidence)) < confidence) for _ in range(500)])
    return np.stack([count, *means], axis=1), error(correct), float(chance)


def calibration(axes: Any, history: list[Row]) -> Drawn | None:
    """A reliability diagram over the pairs that have both a probability and a trained outcome."""
    probability, a_won = foretold(history)
    if not probability.size:
        return None
    bins, error, chance = reliability(probability, a_won)
    axes.plot((50, 100), (50, 100), ":", color=INK, linewidth=1.2, label="perfect")
    hints = []
    for count, confidence, share in bins[bins[:, 0] > 0]:
        low, high = utils.wilson(share, int(count))
        x, y, limits = 100 * confidence, 100 * share, (100 * low, 100 * high)
        axes.errorbar(x, y, [[y - limits[0]], [limits[1] - y]], fmt="o", color=FIRST, markersize=5, **BAR)
        axes.text(x, 3, f"{int(count)}", ha="center", fontsize=8)
        interval = f"95% interval {low:.0%} to {high:.0%}"
        text = f"predicted {confidence:.0%}, won {share:.0%} of {int(count)} pairs ({interval})"
        hints.append(Hint(text, x, limits[0], x, limits[1]))
    axes.set(xlabel="predicted probability of the favoured cell, %", ylabel="how often it won, %")
    axes.set(xlim=(48.5, 101.5), ylim=(0, 104))
    return Drawn(
        f"Calibration over {probability.size} trained pairs; at the bottom, the pairs behind each point; "
        f"bars: 95% intervals. Expected calibration error {error:.3f}; perfect probabilities would show "
        f"about {chance:.3f} with as few pairs.",
        hints,
    )


def has_training_loss(rows: list[Row]) -> bool:
    """Whether the scores of finalists are their validation loss plus their training loss, and are known."""
    return bool((numbers(rows, "score") > numbers(rows, "loss")).any())


def front(axes: Any, finalists: list[Row], front: list[Row], cost: str) -> Drawn | None:
    """Score and cost of the finalists, and which of them no other one beats in score and all costs.

    In place of a score that the tables do not have stands the validation error.
    """
    scale = 1e-6 if cost in ("parameters", "multiply_adds") else 1.0
    finalists = [row for row in finalists if math.isfinite(numbers([row], "loss")[0])]  # the others diverged
    scored = bool(np.isfinite(numbers([*finalists, *front], "score")).all())
    column, factor = ("score", 1.0) if scored else ("error", 100.0)
    x, y = scale * numbers(finalists, cost), factor * numbers(finalists, column)
    if not np.isfinite(x).any() or not front:
        return None
    on = {row["genotype"]: row["number"] for row in front}
    axes.plot(x, y, "o", color=INK, markersize=4, alpha=0.4, label="finalists")
    there = scale * numbers(front, cost), factor * numbers(front, column)
    axes.plot(*there, "o", color=FIRST, markersize=6, label="front")
    hints, name = [], NAMES.get(cost, cost)
    errors = 100 * numbers(finalists, "error")
    for at_x, at_y, error, row in zip(x, y, errors, finalists, strict=True):
        number = on.get(row["genotype"])
        if number is not None:
            axes.annotate(number, (at_x, at_y), xytext=(5, 4), textcoords="offset points", fontsize=8)
        words = (
            f"score {at_y:.4g}, " if scored else ""
        ) + f"validation error {error:.2f}%, {name} {at_x:.3g}"
        hints.append(Hint(f"{'cell ' + number if number else 'not on the front'}: {words}", at_x, at_y))
    losses = "validation + training loss" if has_training_loss(finalists) else "validation loss"
    axes.set(xlabel=name, ylabel=f"score ({losses})" if scored else "validation error, %")
    if scored:
        return Drawn(
            "Finalists after their training from scratch: the score that chose the winner, lower is better. "
            "Numbered are those of the front.",
            hints,
        )
    return Drawn(
        "Finalists after their training from scratch. Numbered are those of the front, which is one of "
        "scores (validation plus training loss) and all costs: a cell of low error may be beaten in these.",
        hints,
    )
