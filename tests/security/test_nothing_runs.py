"""What comes over the wire is data: nothing of it is executed, unpickled, or taken for a path or a type to be made."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

import reverb_async
from reverb_async.compat.tensors import decode_tensor
from reverb_async.core.dtypes import dtype_from_name, is_supported
from reverb_async.errors import InvalidArgument
from reverb_async.protocol.inserting import InsertRequestReader
from reverb_async.protocol.message import Message
from reverb_async.wire.codec import unpack_map

ROOT = Path(reverb_async.__file__).parent

MODULES = {
    *("pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "dbm", "code", "codeop"),
    *("subprocess", "pty", "runpy", "importlib", "imp", "ctypes", "cffi", "yaml", "xmlrpc", "multiprocessing"),
}
CALLS = {"eval", "exec", "compile", "__import__", "execfile", "breakpoint"}
ATTRIBUTES = {
    *("os.system", "os.popen", "os.execv", "os.execve", "os.execvp", "os.spawnv", "os.posix_spawn", "os.fork"),
    *("np.load", "np.save", "np.savez", "np.fromfile", "np.memmap", "np.loadtxt", "np.genfromtxt", "np.fromstring"),
}
KEYWORDS = {"allow_pickle", "shell", "object_hook", "object_pairs_hook"}

EXCEPTIONS = {
    ("wire/regenerate.py", "subprocess"): "makes the generated classes, for those who change the protocol",
    ("checkpoint/npz.py", "np.savez"): "exports plain arrays, and reads nothing",
    ("checkpoint/saving.py", "importlib"): "asks for this package's version",
    ("core/dtypes.py", "importlib"): "imports ml_dtypes, where it is installed",
    ("core/storage/backing.py", "ctypes"): "asks where our own memory lies",
    ("serve.py", "ctypes"): "gives the C library's free memory back to the system",
}


def found_in(path: Path) -> set[str]:
    """Return what a file has of the above."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names} & MODULES
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module).split(".")[0]} & MODULES
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                found |= {node.func.id} & CALLS
            found |= {keyword.arg for keyword in node.keywords if keyword.arg} & KEYWORDS
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found |= {f"{node.value.id}.{node.attr}"} & ATTRIBUTES
    return found


def test_the_package_has_no_means_to_run_what_it_receives() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), what)
        for path in ROOT.rglob("*.py")
        for what in found_in(path)
        if "generated" not in path.relative_to(ROOT).parts
    }
    assert found == EXCEPTIONS.keys()


def test_the_search_finds_what_it_looks_for(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text(
        "import os, pickle.x\nfrom marshal import loads\neval('1')\nos.system('x')\nf(a, allow_pickle=True)\nnp.load\n"
    )
    assert found_in(bad) == {"pickle", "marshal", "eval", "os.system", "allow_pickle", "np.load"}


@pytest.mark.parametrize(
    "name",
    [
        *(kind for kind in np.typecodes["All"]),
        *(
            "object",
            "O",
            "O8",
            "V8",
            "void",
            "M8[s]",
            "m8",
            ">i4",
            "<f4",
            "=f4",
            "f4,f4",
            "(2,)f4",
            "3f4",
            "int",
            "float",
        ),
        *(
            "numpy.float32",
            "__import__('os')",
            "float32\0",
            "FLOAT32",
            "U0",
            "S0",
            "U٣",
            "S9999999",
            "T",
            "",
            "a" * 10_000,
        ),
    ],
)
def test_a_dtype_comes_by_a_name_of_the_list_and_no_other_way(name: str) -> None:
    """NumPy's own notation is a small language, in which ``"O"`` is a pointer."""
    with pytest.raises(InvalidArgument, match="names no supported dtype"):
        dtype_from_name(name)
    with pytest.raises(InvalidArgument):
        InsertRequestReader(Message({"groups": [[0, [[name, []]]]]})).groups()


@pytest.mark.parametrize("number", range(256))
def test_a_tensor_is_of_a_plain_dtype_or_refused(number: int) -> None:
    """TensorFlow's VARIANT (21) and RESOURCE (20) have executed an attacker's code in clients of DeepMind's Reverb."""
    variant = b"\x08" + (bytes([number]) if number < 128 else bytes([number & 127 | 128, number >> 7]))
    shape = b"\x12\x04\x12\x02\x08\x01"
    for content in (b"", b"\x22\x02\x01\x04\x00", b"\x72\x02\x0a\x00", b"\x7a\x02\x0a\x00"):
        try:
            values = decode_tensor(variant + shape + content)
        except InvalidArgument:
            continue
        assert number not in (20, 21)
        assert is_supported(values.dtype)


@pytest.mark.parametrize(
    "packed",
    [
        b"\x81\xa1x\xc7\x01\x05a",  # an extension type
        b"\x81\xa1x\xd6\xff\x00\x00\x00\x00",  # a timestamp
        b"\x81\xa1x\xdd\xff\xff\xff\xff",  # an array of 4 G elements
        b"\x81\xa1x\xdf\xff\xff\xff\xff",  # a map of as many
        b"\x81\xa1x" + b"\x91" * 100_000 + b"\x00",  # deep nesting
    ],
)
def test_a_header_is_plain_values(packed: bytes) -> None:
    with pytest.raises(InvalidArgument):
        unpack_map(packed)
