"""All subjects, by name."""

from __future__ import annotations

from benchmarks.subject import Subject
from benchmarks.subjects import (
    checkpoints,
    durability,
    latency,
    memory,
    recovery,
    reverb_clients,
    sampling,
    scaling,
    sustained,
    sweeps,
    writing,
)

SUBJECTS: dict[str, Subject] = {
    subject.name: subject
    for module in (sampling, writing, latency, memory, checkpoints, durability, scaling, sustained, recovery, sweeps)
    for subject in module.SUBJECTS
}
"""What the command line knows."""

CLIENTS: dict[str, Subject] = {subject.name: subject for subject in reverb_clients.SUBJECTS}
"""What ``python -m benchmarks reverb-clients`` knows."""

ALL_SUBJECTS = SUBJECTS | scaling.PARTS | CLIENTS
"""All that, and what it consists of."""
