"""Generates what is made of `protos/`: ``python -m reverb_async.wire.regenerate`` (needs the ``dev`` extra)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROTOS = Path(__file__).parents[2] / "protos"
GENERATED = Path(__file__).parent / "generated"
DESCRIPTORS = Path(__file__).parents[1] / "config" / "reverb_config.binpb"


def generate(target: Path) -> None:
    """Compile every file under `protos/` into the package directory `target`, which is made if missing.

    Raises:
        subprocess.CalledProcessError: the compiler refused a file; its own words went to stderr.
    """
    target.mkdir(parents=True, exist_ok=True)
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    _compile(
        f"--python_betterproto2_out={target}",
        "--python_betterproto2_opt=client_generation=async",
        "--python_betterproto2_opt=server_generation=async",
        *sources,
    )


def generate_descriptors(target: Path) -> None:
    """Write what protobuf needs to know to read dm-reverb's server configuration into the file `target`.

    Raises:
        subprocess.CalledProcessError: as for `generate`.
    """
    _compile("--include_imports", f"--descriptor_set_out={target}", "deepmind/reverb/reverb_config.proto")


def _compile(*args: str) -> None:
    # protoc looks for the plugin, and the plugin for ruff, on the PATH: both are installed beside this interpreter.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", *args]
    subprocess.run(command, check=True, env={**os.environ, "PATH": path}, cwd=PROTOS)


if __name__ == "__main__":
    generate(GENERATED)
    generate_descriptors(DESCRIPTORS)
