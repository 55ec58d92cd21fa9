"""The command that makes tokens."""

from __future__ import annotations

import stat
import subprocess
import sys

import pytest

from reverb_async.security.tokens import Tokens
from reverb_async.tokens import main


def new(capsys, *args):
    status = main(["new", *args])
    said = capsys.readouterr()
    return status, said.out.strip(), said.err


def test_it_prints_the_secret_and_adds_the_hash_to_the_file(tmp_path, capsys):
    path = tmp_path / "tokens"
    _, first, _ = new(capsys, "actor", "--scope", "write", "--file", str(path))
    _, second, _ = new(capsys, "learner", "--scope", "read,write", "--file", str(path))
    tokens = Tokens(path)
    assert tokens.find(first).name == "actor"
    assert tokens.find(second).scopes == {"read", "write"}
    assert first not in path.read_text()
    assert [entry.name for entry in tmp_path.iterdir()] == ["tokens"]
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_it_keeps_the_files_mode_and_what_else_stands_there(tmp_path, capsys):
    path = tmp_path / "tokens"
    path.write_text("# ours")
    path.chmod(0o640)
    assert new(capsys, "actor", "--scope", "write", "--file", str(path))[0] == 0
    assert path.read_text().startswith("# ours\nactor write sha256:")
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_without_a_file_it_says_what_to_put_there(tmp_path, capsys):
    status, secret, said = new(capsys, "actor", "--scope", "admin")
    assert status == 0
    line = said.removeprefix("the line for the server's tokens file: ")
    (tmp_path / "tokens").write_text(line)
    assert Tokens(tmp_path / "tokens").find(secret).name == "actor"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("a b", "--scope", "read"), "a name is up to 64"),
        (("a", "--scope", "reads"), "token 'a': scopes are read, write, admin"),
        (("taken", "--scope", "read", "--file", "FILE"), "there is a token named 'taken': delete its line to replace"),
        (("a", "--scope", "read", "--file", "FOLDER"), "cannot be"),
    ],
)
def test_mistakes_are_one_clear_line_and_change_nothing(tmp_path, capsys, args, message):
    path = tmp_path / "tokens"
    new(capsys, "taken", "--scope", "read", "--file", str(path))
    before = path.read_text()
    places = {"FILE": str(path), "FOLDER": str(tmp_path)}
    status, secret, said = new(capsys, *(places.get(arg, arg) for arg in args))
    assert (status, secret) == (2, "")
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1
    assert path.read_text() == before


def test_it_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "reverb_async.tokens", "new", "a", "--scope", "read"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith("ra_")
