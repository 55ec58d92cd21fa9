"""A virtual environment with the peers in it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

# dm-reverb 0.14.0 is its newest release; it needs this TensorFlow, CPython <= 3.11 and NumPy 1.
_DM_REVERB = ("dm-reverb==0.14.0", "tensorflow==2.14.*", "numpy<2", "dm-tree")

# The tf-agents for that TensorFlow, and what its replay buffers import: without pygame and the like, which it demands.
_TF_AGENTS = (
    *("tf-agents==0.18.0", "tensorflow-probability==0.22.1", "gym==0.23.0", "gym-notices", "gin-config"),
    *("cloudpickle", "decorator", "pillow"),
)

_PYTHON = "python3.11"
_CHOSEN = "REVERB_ASYNC_PEER_PYTHON"


class NoEnvironmentError(Exception):
    """The environment cannot be made here; the text says why."""


def make_environment(directory: Path) -> str:
    """Make the environment of the benchmarks; return how to use it.

    Raises:
        SystemExit: there is no Python 3.11, or an installation failed.
    """
    try:
        _make(directory, (*_DM_REVERB, "cpprb"))
    except NoEnvironmentError as error:
        raise SystemExit(str(error)) from None
    inside = _interpreter(directory.absolute())
    return f"made; now: python -m benchmarks peers --dm-reverb-python {inside} --cpprb"


def shared_environment() -> Path:
    """Return the interpreter of an environment with dm-reverb and tf-agents that all runs of a user share.

    The first run makes it, in the user's cache folder, which takes minutes; a second one that comes meanwhile waits for
    it. The environment variable REVERB_ASYNC_PEER_PYTHON names another interpreter, to be taken as it is.

    Raises:
        NoEnvironmentError: this machine cannot have it.
    """
    if chosen := os.environ.get(_CHOSEN):
        return Path(chosen).absolute()  # Not resolved: the link is the environment.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reverb_async"
    digest = hashlib.sha256(" ".join((*_DM_REVERB, *_TF_AGENTS)).encode()).hexdigest()[:8]
    directory = cache / f"peer-{_DM_REVERB[0].replace('==', '-')}-{digest}"
    if not _interpreter(directory).exists():
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f"{directory.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _interpreter(directory).exists():
                _make_whole(directory)
    return _interpreter(directory)


def _make_whole(directory: Path) -> None:
    """Make the shared environment beside its place and rename it: an interrupted run leaves no half of one there."""
    shutil.rmtree(directory, ignore_errors=True)
    unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=directory.parent))
    try:
        _make(unfinished, _DM_REVERB, alone=_TF_AGENTS)
        unfinished.rename(directory)  # Only `bin/python` is used, and it works wherever the folder stands.
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _make(directory: Path, packages: Sequence[str], *, alone: Sequence[str] = ()) -> None:
    """Make an environment with packages, and with further ones whose own demands are ignored."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise NoEnvironmentError(f"dm-reverb 0.14.0 is for Linux on x86_64 only, this is {platform.platform()}")
    subprocess.run([_find_python(), "-m", "venv", str(directory)], check=True)
    _install(directory, packages)
    if alone:
        _install(directory, ["--no-deps", *alone])


def _install(directory: Path, arguments: Sequence[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(_interpreter(directory.absolute())), "-m", "pip", "install", "--quiet", *arguments]
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        said = "; ".join(done.stderr.strip().splitlines()[-2:])
        raise NoEnvironmentError(f"pip could not install {', '.join(arguments)}: {said}")


def _find_python() -> str:
    """Return a Python 3.11 that can make environments."""
    for candidate in (sys.executable, shutil.which(_PYTHON)):
        code = "import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != (3, 11))"
        if candidate and not subprocess.run([candidate, "-c", code], stderr=subprocess.DEVNULL).returncode:
            return candidate
    raise NoEnvironmentError(f"dm-reverb 0.14.0 needs {_PYTHON}, and there is none on the PATH that has venv")


def _interpreter(directory: Path) -> Path:
    return directory / "bin" / "python"
