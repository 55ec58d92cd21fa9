from __future__ import annotations

import os
import sys

import pytest

from reverb_async.errors import InvalidArgument
from reverb_async.security.tokens import MAX_TOKENS, Token, Tokens, digest_of, make_token, read_tokens

DIGEST = "sha256:" + "0" * 64


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tokens"


def test_a_token_is_found_by_its_secret_alone(path):
    (secret, token), (other, second) = make_token("learner", ["read", "write"]), make_token("ops", ["admin"])
    path.write_text(f"# who\n\n{token.to_line()}  # the learner\n{second.to_line()}\n")
    tokens = Tokens(path)
    assert tokens.find(secret) == token == Token("learner", frozenset({"read", "write"}), digest_of(secret))
    assert tokens.find(other) == second
    for wrong in ("", secret[:-1], secret + "x", token.digest.hex(), token.to_line(), "learner"):
        assert tokens.find(wrong) is None


def test_secrets_are_long_and_neither_kept_nor_shown(path):
    secrets = {make_token("a", ["read"])[0] for _ in range(50)}
    assert len(secrets) == 50
    assert all(len(secret) >= 43 for secret in secrets)  # 256 bits in base64
    secret, token = make_token("a", ["read"])
    assert secret not in token.to_line()
    assert secret not in repr(token)
    assert token.digest.hex() not in repr(token)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no token: nobody could do anything; `python -m reverb_async.tokens new` makes one"),
        ("# nothing", "has no token"),
        ("a read", "line 1: a line is: name scope"),
        (f"a read {DIGEST}0", "line 1: a line is: name scope"),
        (f"\na read {DIGEST[:-1]}", "line 2: a line is"),
        (f"a all {DIGEST}", "line 1: scopes are read, write, admin, with commas between them, got 'all'"),
        (f"a read,,write {DIGEST}", "line 1: scopes are"),
        (f"a/b read {DIGEST}", "line 1: a name is up to 64 of"),
        (f"{'a' * 65} read {DIGEST}", "line 1: a name is up to 64 of"),
        (f"a read {DIGEST}\na write {DIGEST[:-1]}1", "line 2: there are two tokens named 'a'"),
    ],
)
def test_a_wrong_line_is_named(path, text, message):
    path.write_text(text)
    with pytest.raises(InvalidArgument) as error:
        Tokens(path)
    assert str(error.value).startswith(f"{path}: {message}")


def test_a_secret_in_the_wrong_place_is_not_repeated(path):
    secret, _ = make_token("a", ["read"])
    path.write_text(f"a read {secret}")
    with pytest.raises(InvalidArgument) as error:
        Tokens(path)
    assert secret not in str(error.value)


def test_a_file_that_cannot_be_read_is_named(path):
    with pytest.raises(InvalidArgument, match="cannot be read: No such file"):
        Tokens(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidArgument, match="is not UTF-8 text, see byte 0"):
        Tokens(path)


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX's")
def test_a_file_that_everybody_may_change_is_refused(path):
    path.write_text(make_token("a", ["read"])[1].to_line())
    path.chmod(0o666)
    with pytest.raises(InvalidArgument, match=r"everybody on this machine may change it: chmod o-w"):
        Tokens(path)


def test_the_number_of_tokens_is_bounded(path):
    path.write_text("".join(f"t{n} read sha256:{n:064x}\n" for n in range(MAX_TOKENS + 1)))
    with pytest.raises(InvalidArgument, match=f"has {MAX_TOKENS + 1} tokens; at most {MAX_TOKENS}"):
        read_tokens(os.fspath(path))


class TestRefresh:
    def test_what_is_written_holds_from_then_on(self, path):
        (old, first), (new, second) = make_token("a", ["read"]), make_token("b", ["read"])
        path.write_text(first.to_line())
        tokens = Tokens(path)
        assert not tokens.refresh()
        path.write_text(second.to_line() + "\n")
        assert tokens.refresh()
        assert tokens.find(old) is None
        assert not tokens.has(first)
        assert tokens.find(new) == second
        assert tokens.has(second)

    def test_a_token_with_other_scopes_is_another(self, path):
        secret, token = make_token("a", ["read", "write"])
        path.write_text(token.to_line())
        tokens = Tokens(path)
        path.write_text(Token("a", frozenset({"read"}), token.digest).to_line())
        assert tokens.refresh()
        assert not tokens.has(token)
        assert tokens.find(secret).scopes == {"read"}

    @pytest.mark.parametrize("broken", ["", "nonsense", None])
    def test_a_broken_file_changes_nothing_and_is_logged_once(self, path, broken, caplog):
        secret, token = make_token("a", ["read"])
        path.write_text(token.to_line())
        tokens = Tokens(path)
        if broken is None:
            path.unlink()
        else:
            path.write_text(broken)
        assert not tokens.refresh()
        assert not tokens.refresh()
        assert tokens.find(secret) == token
        (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
        assert record.getMessage().endswith("; the tokens in use stay")
        path.write_text(make_token("b", ["read"])[1].to_line())
        assert tokens.refresh()
        assert tokens.find(secret) is None
