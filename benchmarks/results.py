"""The figures of a benchmark run, kept as JSON, so that a long run can be made in parts and the page be written from them all.

A sample is what one run of one case gave: numbers under names. Every table shows medians over the samples of a case.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Sample:
    """One run.

    Attributes:
        section: targets, scaling, starts, …
        case: what was done.
        subject: who did it: onward-pg, bare-sqlite, absurd, …
        figures: what came of it; empty when it failed.
        size: how many workflows, steps, rows.
        error: why it failed.
    """

    section: str
    case: str
    subject: str
    figures: Mapping[str, float]
    size: int = 0
    error: str = ""
    at: float = field(default_factory=time.time)


class Results:
    """All samples of a file.

    Args:
        path: the file; None keeps them in memory.
        keeps: whether what it holds already stays.
    """

    def __init__(self, path: Path | None, *, keeps: bool = False) -> None:
        self._path = path
        self.setup: dict[str, Any] = {}
        self.samples: list[Sample] = []
        if keeps and path is not None and path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            self.setup = found["setup"]
            self.samples = [Sample(**sample) for sample in found["samples"]]

    def add(self, sample: Sample) -> None:
        """Keep one, also in the file."""
        self.samples.append(sample)
        self.save()

    def save(self) -> None:
        """Write the file anew."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"setup": self.setup, "samples": [asdict(sample) for sample in self.samples]}, indent=1)
        part = self._path.with_name(f"{self._path.name}.{os.getpid()}.part")
        part.write_text(text, encoding="utf-8")
        part.replace(self._path)

    def of(self, section: str, case: str | None = None, subject: str | None = None) -> list[Sample]:
        """The samples of a section that did not fail, in their order."""
        return [
            sample
            for sample in self.samples
            if sample.section == section
            and case in (None, sample.case)
            and subject in (None, sample.subject)
            and not sample.error
        ]

    def values(self, section: str, case: str, subject: str, figure: str) -> list[float]:
        """One figure of every sample that has it."""
        found = self.of(section, case, subject)
        return [sample.figures[figure] for sample in found if sample.figures.get(figure) is not None]

    def median(self, section: str, case: str, subject: str, figure: str) -> float | None:
        """The median of one figure; None where there is none."""
        values = self.values(section, case, subject, figure)
        return statistics.median(values) if values else None

    def cases(self, section: str) -> list[str]:
        """The cases of a section, in the order in which they came."""
        return list(dict.fromkeys(sample.case for sample in self.of(section)))

    def subjects(self, section: str, case: str | None = None) -> list[str]:
        """Who has samples there, in the order in which they came."""
        return list(dict.fromkeys(sample.subject for sample in self.of(section, case)))
