"""Numbers and findings in words, for the pages."""

import math

import numpy as np

import utils
from pictures.plots import foretold
from pictures.tables import RecordedRun, Row, a_lost_less, numbers


def short(value: float) -> str:
    """A number for a reader: 3.93 M for 3930000, else four significant digits; a dash where there is none."""
    if math.isnan(value):
        return "–"
    for size, letter in ((1e9, "G"), (1e6, "M")):
        if size <= abs(value) < math.inf:
            return f"{value / size:.3g} {letter}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Seconds as "2 h 05 min", "3 min 20 s" or "42 s"."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def value(row: Row, column: str) -> str:
    """A number of finalists.csv for a reader; an error, there a share, as percent."""
    number = float(numbers([row], column)[0])
    is_share = column.endswith("error") and column != "standard_error" and math.isfinite(number)
    return f"{number:.2%}" if is_share else short(number)


def verdict(run: RecordedRun) -> str:
    """What the predictor was worth in this run: how often its favourites won, and what it decided."""
    probability, a_won = foretold(run.history)
    called = probability != 0.5
    count = int(called.sum())
    if not count:
        return "No prediction was made so far, or the search has no predictor."
    share = float(((probability > 0.5) == a_won)[called].mean())
    low, high = utils.wilson(share, count)
    judged = (
        "better than a coin" if low > 0.5 else "worse than a coin" if high < 0.5 else "no better than a coin"
    )
    text = (
        f"Its favourites won {share:.0%} of {count} trained pairs (95% interval {low:.0%} to {high:.0%}): "
        f"{judged} here. "
    )
    given = numbers(run.generations, "trusted")
    if np.isfinite(given).any():
        text += f"By the end of {np.nansum(given):.0f} of {len(given)} generations it was trusted to act. "
    decided = sum(row["decided_by"] == "predictor" for row in run.history)
    audits = [row for row in run.history if row["decided_by"] == "audit" and a_lost_less(row) is not None]
    if not decided and not audits:
        return text + "It decided no pair without training."
    text += f"It decided {decided} of {len(run.history)} pairs without training"
    if not audits:
        return f"{text}; none of those that it was sure of was audited."
    claims = numbers(audits, "probability")
    right = int(sum((p >= 0.5) == a_lost_less(row) for p, row in zip(claims, audits, strict=True)))
    low, high = utils.wilson(right / len(audits), len(audits))
    return f"{text}, and was right in {right} of {len(audits)} audits (95% interval {low:.0%} to {high:.0%})."


def chance(run: RecordedRun) -> tuple[str, str] | None:
    """The random baseline beside the winner: its errors, and what the comparison says. None without one."""
    winners = [row for row in run.finalists if is_winner(row)]
    for column, images in (("test_error", "test"), ("error", "validation")):
        random = numbers(run.baseline, column)
        random = random[np.isfinite(random)]
        if not random.size:
            continue
        spread = f" ± {random.std(ddof=1):.2%}" if random.size > 1 else ""
        tile = f"{random.mean():.2%}{spread} (n {random.size})"
        own = numbers(winners, column)
        if not np.isfinite(own).any():
            return tile, ""
        better = int((own[0] < random).sum())
        return tile, (
            f"The winner's {images} error, {own[0]:.2%}, is below that of {better} of {random.size} random "
            f"cells that were trained and tested alike (theirs: mean {random.mean():.2%}, lowest "
            f"{random.min():.2%}, highest {random.max():.2%})."
        )
    return None


def is_winner(row: Row) -> bool:
    """Whether a row of finalists.csv is the winner's."""
    return row.get("winner", "").strip().lower() in ("1", "true", "yes")
