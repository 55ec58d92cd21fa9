"""Generates `wire/generated/` from `protos/`: ``python -m reverb_async.wire.regenerate`` (needs the ``dev`` extra)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROTOS = Path(__file__).parents[2] / "protos"
GENERATED = Path(__file__).parent / "generated"


def generate(target: Path) -> None:
    """Compile every file under `protos/` into the package directory `target`, which is made if missing.

    Raises:
        subprocess.CalledProcessError: the compiler refused a file; its own words went to stderr.
    """
    target.mkdir(parents=True, exist_ok=True)
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    command = [
        *(sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", f"--python_betterproto2_out={target}"),
        "--python_betterproto2_opt=client_generation=async",
        "--python_betterproto2_opt=server_generation=async",
        *sources,
    ]
    # protoc looks for the plugin, and the plugin for ruff, on the PATH: both are installed beside this interpreter.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    subprocess.run(command, check=True, env={**os.environ, "PATH": path}, cwd=target)


if __name__ == "__main__":
    generate(GENERATED)
