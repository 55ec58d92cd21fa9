"""All subjects, by name."""

from __future__ import annotations

from benchmarks.subject import Subject
from benchmarks.subjects import latency, memory, sampling, scaling, sustained, sweeps, writing

SUBJECTS: dict[str, Subject] = {
    subject.name: subject
    for module in (sampling, writing, latency, memory, scaling, sustained, sweeps)
    for subject in module.SUBJECTS
}
"""What the command line knows."""

ALL_SUBJECTS = SUBJECTS | scaling.PARTS
"""And what those consist of."""
