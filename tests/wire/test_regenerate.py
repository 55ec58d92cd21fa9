"""The generated code is what the `.proto` files say."""

from __future__ import annotations

import ast
import subprocess
import sys

from google.protobuf import descriptor_pb2

from reverb_async.wire.regenerate import DESCRIPTORS, GENERATED, generate, generate_descriptors


def test_the_committed_code_is_what_the_compiler_makes_of_the_protos(tmp_path):
    generate(tmp_path / "generated")

    def sources(root):
        return {
            str(path.relative_to(root)): ast.dump(ast.parse(path.read_text())) for path in sorted(root.rglob("*.py"))
        }

    assert sources(tmp_path / "generated") == sources(GENERATED), "run `python -m reverb_async.wire.regenerate`"


def test_the_committed_descriptors_are_what_the_compiler_makes_of_the_protos(tmp_path):
    generate_descriptors(tmp_path / "made")
    made, committed = (
        descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes()) for path in (tmp_path / "made", DESCRIPTORS)
    )
    assert made == committed, "run `python -m reverb_async.wire.regenerate`"


def test_the_generated_code_needs_neither_grpcio_nor_protobuf():
    packages = ["reverb_async.v1", "grpc.health.v1", "deepmind.reverb", "tensorflow"]
    names = [f"reverb_async.wire.generated.{package}" for package in packages]
    hidden = ["grpc", "grpc_tools", "google.protobuf", "betterproto2_compiler"]
    program = f"import sys; sys.modules.update(dict.fromkeys({hidden})); import {', '.join(names)}"
    subprocess.run([sys.executable, "-c", program], check=True)
