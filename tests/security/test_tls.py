from __future__ import annotations

import contextlib
import pickle
import ssl

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from reverb_async.errors import InvalidArgument
from reverb_async.security import ClientTLS, ServerContext, ServerTLS


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def files(tmp_path, authority):
    """Return the paths of a certificate, its key and its authority."""
    issued = authority.issue_cert("localhost")
    write(issued, tmp_path)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return tmp_path / "certificate.pem", tmp_path / "key.pem", tmp_path / "ca.pem"


def write(issued, folder):
    (folder / "certificate.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(folder / "key.pem")


def shake_hands(server, client, name="localhost", session=None):
    """Shake hands in memory; return the client's and the server's end."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(to_client, to_server, server_hostname=name, session=session)
    far = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(6):
        for end in (near, far):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return near, far


def serial(certificate):
    return certificate["serialNumber"]


def test_both_ends_speak_tls_1_2_or_later_and_http2(files):
    certificate, key, ca = files
    server, client = ServerTLS(certificate, key).load(), ClientTLS(ca=ca).load()
    near, far = shake_hands(server, client)
    assert near.version() == "TLSv1.3"
    assert near.selected_alpn_protocol() == far.selected_alpn_protocol() == "h2"
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    near, _ = shake_hands(server, client)
    assert near.version() == "TLSv1.2"
    assert near.cipher()[0].startswith("ECDHE-")
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(ca)
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        shake_hands(server, old)


def test_the_servers_name_and_authority_are_checked(files, tmp_path):
    certificate, key, ca = files
    server = ServerTLS(certificate, key).load()
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(server, ClientTLS(ca=ca).load(), "elsewhere")
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    for stranger in (ClientTLS(), ClientTLS(ca=tmp_path / "other.pem")):
        with pytest.raises(ssl.SSLCertVerificationError):
            shake_hands(server, stranger.load())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_clients_with_certificates_show_them_anew_in_every_handshake(files, tmp_path, authority, version):
    certificate, key, ca = files
    authority.issue_cert("me@here.example").private_key_and_cert_chain_pem.write_to_path(tmp_path / "me.pem")
    server = ServerTLS(certificate, key, client_ca=ca).load()
    client = ClientTLS(ca=ca, certificate=tmp_path / "me.pem").load()
    client.maximum_version = version
    if version < ssl.TLSVersion.TLSv1_3:
        with pytest.raises(ssl.SSLError, match="UNSUPPORTED_PROTOCOL"):
            shake_hands(server, client)
        return
    near, far = shake_hands(server, client)
    far.write(b"x")
    assert near.read(1) == b"x"  # What would make a session that can be resumed came before it.
    again, _ = shake_hands(server, client, session=near.session)
    assert not again.session_reused


def test_a_client_is_asked_for_a_certificate_where_there_is_an_authority_for_it(files, tmp_path, authority):
    certificate, key, ca = files
    server = ServerTLS(certificate, key, client_ca=ca).load()
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        shake_hands(server, ClientTLS(ca=ca).load())
    authority.issue_cert("me@here.example").private_key_and_cert_chain_pem.write_to_path(tmp_path / "me.pem")
    _, far = shake_hands(server, ClientTLS(ca=ca, certificate=tmp_path / "me.pem").load())
    assert ("email", "me@here.example") in far.getpeercert()["subjectAltName"]
    foreign = trustme.CA().issue_cert("me@here.example")
    foreign.private_key_and_cert_chain_pem.write_to_path(tmp_path / "foreign.pem")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(server, ClientTLS(ca=ca, certificate=tmp_path / "foreign.pem").load())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda certificate, key, ca: key.unlink(), r"ServerTLS: \S+key.pem cannot be read: No such file"),
        (lambda certificate, key, ca: certificate.unlink(), r"ServerTLS: \S+certificate.pem cannot be read"),
        (lambda certificate, key, ca: certificate.write_text("x"), r"cannot be used: no PEM certificate and key"),
        (lambda certificate, key, ca: key.write_bytes(b""), r"cannot be used: no PEM certificate and key"),
        (lambda certificate, key, ca: ca.write_text(""), r"ServerTLS\(client_ca=\): \S+ca.pem has no certificates"),
        (lambda certificate, key, ca: ca.unlink(), r"ServerTLS\(client_ca=\): \S+ca.pem cannot be read"),
    ],
)
def test_files_that_cannot_be_used_are_named(files, spoil, message):
    spoil(*files)
    with pytest.raises(InvalidArgument, match=message):
        ServerTLS(*files[:2], client_ca=files[2]).load()


def test_a_key_of_another_certificate_or_with_a_passphrase_is_refused(files, authority):
    certificate, key, _ = files
    plain = load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(plain.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    with pytest.raises(InvalidArgument, match=r"the key in \S+ needs a passphrase: store it without one"):
        ServerTLS(certificate, key).load()
    authority.issue_cert("localhost").private_key_pem.write_to_path(key)
    with pytest.raises(InvalidArgument, match="they do not belong together"):
        ServerTLS(certificate, key).load()


def test_what_clients_are_told_is_a_value(files):
    tls = ClientTLS(ca=files[2], server_name="replay")
    assert pickle.loads(pickle.dumps(tls)) == tls
    assert hash(tls) == hash(ClientTLS(ca=files[2], server_name="replay"))
    assert tls.load() is tls.load()
    with pytest.raises(InvalidArgument, match="a key and no certificate"):
        ClientTLS(key="k")


def test_a_client_reads_its_files_again_when_they_change(files, tmp_path):
    tls = ClientTLS(ca=files[2])
    before = tls.load()
    other = trustme.CA()
    other.cert_pem.write_to_path(files[2])
    after = tls.load()
    assert after is not before
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    other.issue_cert("localhost").configure_cert(server)
    shake_hands(server, after)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(server, before)


class TestServerContext:
    def test_new_handshakes_get_the_new_certificate(self, files, tmp_path, authority):
        certificate, key, ca = files
        served, client = ServerContext(ServerTLS(certificate, key)), ClientTLS(ca=ca).load()
        first = serial(shake_hands(served.context, client)[0].getpeercert())
        write(authority.issue_cert("localhost"), tmp_path)
        assert serial(shake_hands(served.context, client)[0].getpeercert()) == first
        served.refresh()
        near, _ = shake_hands(served.context, client)
        assert serial(near.getpeercert()) != first
        assert near.selected_alpn_protocol() == "h2"

    def test_a_client_that_names_no_server_gets_it_too(self, files, tmp_path, authority):
        certificate, key, ca = files
        served, client = ServerContext(ServerTLS(certificate, key)), ClientTLS(ca=ca).load()
        client.check_hostname = False
        first = serial(shake_hands(served.context, client, None)[0].getpeercert())
        write(authority.issue_cert("localhost"), tmp_path)
        served.refresh()
        assert serial(shake_hands(served.context, client, None)[0].getpeercert()) != first

    def test_clients_are_checked_with_the_new_authority(self, files, tmp_path, authority):
        certificate, key, ca = files
        authority.cert_pem.write_to_path(tmp_path / "clients.pem")
        served = ServerContext(ServerTLS(certificate, key, client_ca=tmp_path / "clients.pem"))
        authority.issue_cert("me@here.example").private_key_and_cert_chain_pem.write_to_path(tmp_path / "me.pem")
        client = ClientTLS(ca=ca, certificate=tmp_path / "me.pem").load()
        shake_hands(served.context, client)
        other = trustme.CA()
        other.cert_pem.write_to_path(tmp_path / "clients.pem")
        served.refresh()
        with pytest.raises(ssl.SSLCertVerificationError):
            shake_hands(served.context, client)
        other.issue_cert("me@here.example").private_key_and_cert_chain_pem.write_to_path(tmp_path / "me.pem")
        shake_hands(served.context, ClientTLS(ca=ca, certificate=tmp_path / "me.pem").load())

    def test_while_the_files_do_not_fit_the_old_certificate_stays_and_that_is_logged_once(
        self, files, tmp_path, authority, caplog
    ):
        certificate, key, ca = files
        served, client = ServerContext(ServerTLS(certificate, key)), ClientTLS(ca=ca).load()
        first = serial(shake_hands(served.context, client)[0].getpeercert())
        new = authority.issue_cert("localhost")
        certificate.write_bytes(b"".join(blob.bytes() for blob in new.cert_chain_pems))
        for _ in range(3):
            served.refresh()
            assert serial(shake_hands(served.context, client)[0].getpeercert()) == first
        (record,) = caplog.records
        assert record.levelname == "ERROR"
        assert record.getMessage().endswith("do not belong together; the certificate in use stays")
        new.private_key_pem.write_to_path(key)
        served.refresh()
        assert serial(shake_hands(served.context, client)[0].getpeercert()) != first
