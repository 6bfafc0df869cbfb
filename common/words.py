"""Numbers in words: counts, sizes, times, and how long a piece of work has still to go."""

from __future__ import annotations

import time

OFTEN = 600.0  # seconds between two lines of a log about work that goes on


def counted(count: int, thing: str) -> str:
    """ "1 finalist", "4 finalists"."""
    return f"{count:,} {thing}" + ("" if count == 1 else "s")


def in_millions(count: float) -> str:
    """The number in millions, with the digits that show that it is not 0: "3.35 M", "0.0028 M"."""
    millions = count / 1e6
    digits = 0 if millions >= 100 else 2
    return f"{millions:.{digits}f} M" if millions >= 0.1 or millions == 0 else f"{millions:.2g} M"


def in_hours(seconds: float) -> str:
    """A time in the units that matter: "42 s", "12 min", "3 h 20 min", "2 d 3 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if hours < 10:
        return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
    return f"{hours // 24} d {hours % 24} h" if hours >= 48 else f"{hours} h"


class Progress:
    """The rate of a piece of work since this program took it up, and the time that is left at this rate.

    Bars are for terminals; logs get these words with what is said anyway, and between, where that takes long,
    a line each `OFTEN` seconds. `done` of `total` was there before (a run that goes on).
    """

    def __init__(self, total: float, done: float = 0) -> None:
        self.total, self.first = total, done
        self.begin = self.said = time.monotonic()

    def is_due(self) -> bool:
        """Whether nothing was said for long."""
        return time.monotonic() - self.said >= OFTEN

    def left(self, done: float) -> str:
        """ "about 3 h 20 min left"; "done" at the end; empty where nothing tells. Counts as said."""
        self.said = time.monotonic()
        if done >= self.total:
            return "done"
        if done <= self.first:
            return ""
        return f"about {in_hours((self.said - self.begin) / (done - self.first) * (self.total - done))} left"

    def rate(self, done: float) -> float:
        """Pieces a second."""
        return (done - self.first) / max(time.monotonic() - self.begin, 1e-9)
