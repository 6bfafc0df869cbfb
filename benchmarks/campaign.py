"""What the programs that disturb runs at random have in common: their flags."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's modules, from any folder

import evidence

from common.flags import check_range


@dataclass(frozen=True)
class Campaign:
    """Given the same folder again, a campaign that was stopped goes on."""

    folder: str
    """where the runs and the counts are kept"""
    minutes: float = 600.0
    """begin nothing further after so many"""
    seed: int = 0
    """of what is drawn at random"""
    json: str | None = None
    """write the result to this file, which must not exist"""

    def check(self) -> None:
        """Raise ValueError for values that cannot be measured."""
        check_range(self, "minutes seed", 0)
        evidence.check_output(self.json)
