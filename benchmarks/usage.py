"""What the operating system tells of processes and of the machine; None where it does not (no /proc)."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

_PROC = Path("/proc")
_BUSY_FIELDS = (0, 1, 2, 5, 6, 7)  # user nice system, irq softirq steal; not idle and iowait.
_PACKAGES = ("reverb_async", "grpclib", "h2", "numpy", "msgpack", "uvloop")


def cpu_seconds(pid: int) -> float | None:
    """Return the CPU seconds that a process has used, user and system."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def busy_seconds() -> float | None:
    """Return the CPU seconds that the whole machine has used since it started."""
    try:
        fields = (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    return sum(int(fields[at]) for at in _BUSY_FIELDS) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int | None:
    """Return the memory of a process that is in RAM, shared mappings included."""
    return _status_bytes(_PROC / str(pid) / "status", "VmRSS")


def available_bytes() -> int | None:
    """Return the memory that new programs may use."""
    return _status_bytes(_PROC / "meminfo", "MemAvailable")


def _status_bytes(path: Path, name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB$", path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found.group(1)) * 1024 if found else None


def machine() -> dict[str, str]:
    """Name the machine and the versions."""
    model = platform.processor() or "unknown processor"
    cpuinfo = _PROC / "cpuinfo"
    if cpuinfo.exists():
        found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())
        model = found.group(1) if found else model
    total = _status_bytes(_PROC / "meminfo", "MemTotal")
    return {
        "cpu": f"{os.cpu_count()} x {model}",
        "memory": "unknown" if total is None else f"{total / 2**30:.0f} GiB",
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
    }
