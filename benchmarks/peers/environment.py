"""A virtual environment with the peers in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

# dm-reverb 0.14.0 is its newest release; it needs this TensorFlow, CPython <= 3.11 and NumPy 1.
_PACKAGES = ("dm-reverb==0.14.0", "tensorflow==2.14.*", "numpy<2", "dm-tree", "cpprb")
_PYTHON = "python3.11"


def make_environment(directory: Path) -> str:
    """Make the environment; return how to use it.

    Raises:
        SystemExit: there is no Python 3.11, or an installation failed.
    """
    python = sys.executable if sys.version_info[:2] == (3, 11) else shutil.which(_PYTHON)
    if python is None:
        raise SystemExit(f"dm-reverb 0.14.0 needs {_PYTHON}, and there is none on the PATH")
    subprocess.run([python, "-m", "venv", str(directory)], check=True)
    inside = directory.absolute() / "bin" / "python"  # Not resolved: the link is the environment.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    install = [str(inside), "-m", "pip", "install", "--quiet", *_PACKAGES]
    if subprocess.run(install, env=environment).returncode:
        raise SystemExit(f"pip could not install {', '.join(_PACKAGES)} into {directory}")
    return f"made; now: python -m benchmarks peers --dm-reverb-python {inside} --cpprb"
