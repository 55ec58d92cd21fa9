"""All subjects, by name."""

from __future__ import annotations

from benchmarks.subject import Subject
from benchmarks.subjects import latency, sampling, writing

SUBJECTS: dict[str, Subject] = {
    subject.name: subject for module in (sampling, writing, latency) for subject in module.SUBJECTS
}
