"""TLS at both ends: what users say about it, and contexts that follow their files."""

from __future__ import annotations

import logging
import os
import ssl
from dataclasses import dataclass

from reverb_async.errors import InvalidArgument
from reverb_async.security.files import State, state_of

logger = logging.getLogger("reverb_async")

HANDSHAKE_S = 10.0
"""A peer that has not finished its handshake by then is dropped."""

SHUTDOWN_S = 1.0
"""What a peer has to answer the end of a TLS connection; then it is dropped."""

Path = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class ServerTLS:
    """A server's certificate; connections are TLS 1.2 or later, and 1.3 where clients are asked for certificates.

    The files are read again when they change: connections made afterwards get what is new, others stay. While what is
    new cannot be used, the server goes on with what it had, and logs why.

    Attributes:
        certificate: file with the certificate and those it depends on, PEM.
        key: file with its private key, PEM, without a passphrase.
        client_ca: file with certificates, PEM: clients must show one that these have signed. None: nobody is asked.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """The files."""
        return tuple(os.fspath(path) for path in (self.certificate, self.key, self.client_ca) if path is not None)

    def load(self) -> ssl.SSLContext:
        """Read the files.

        Raises:
            InvalidArgument: one cannot be used; says which and why.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _set_up(context)
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        _load_certificate(context, self.certificate, self.key, "ServerTLS")
        if self.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            # TLS 1.2 would resume sessions without a look at a certificate that may not be good any more.
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            _load_authorities(context, self.client_ca, "ServerTLS(client_ca=)")
        return context


@dataclass(frozen=True, slots=True)
class ClientTLS:
    """How a client checks its server, and what it shows of itself; the server must have a certificate for its name.

    The files are read again when they change, for the next connection.

    Attributes:
        ca: file with certificates, PEM, one of which must have signed the server's; None: those of the system.
        certificate: file with the client's certificate, PEM, for servers that ask for one.
        key: file with its private key, PEM; None: it is in the same file.
        server_name: the name in the server's certificate; None: the address's.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if self.key is not None and self.certificate is None:
            raise InvalidArgument("ClientTLS has a key and no certificate: give both, or neither")

    def load(self) -> ssl.SSLContext:
        """Read the files, or return what was made of them if they have not changed.

        Raises:
            InvalidArgument: one cannot be used; says which and why.
        """
        paths = [os.fspath(path) for path in (self.ca, self.certificate, self.key) if path is not None]
        state = state_of(paths)
        known = _client_contexts.get(self)
        if known is not None and known[0] == state:
            return known[1]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _set_up(context)
        if self.ca is None:
            context.load_default_certs()
        else:
            _load_authorities(context, self.ca, "ClientTLS(ca=)")
        if self.certificate is not None:
            _load_certificate(context, self.certificate, self.key, "ClientTLS")
        if len(_client_contexts) >= _MAX_CLIENT_CONTEXTS:
            _client_contexts.clear()
        _client_contexts[self] = state, context
        return context


_MAX_CLIENT_CONTEXTS = 16
_client_contexts: dict[ClientTLS, tuple[State, ssl.SSLContext]] = {}


class ServerContext:
    """What a listening server gives to `ssl`: one context that hands each handshake over to the latest one.

    Args:
        tls: the files.

    Raises:
        InvalidArgument: one cannot be used.

    Attributes:
        context: for every listener.
    """

    def __init__(self, tls: ServerTLS) -> None:
        self._tls = tls
        self._state = state_of(tls.paths)
        self.context = self._latest = tls.load()
        # OpenSSL asks it in every handshake, whether the client names a server or not.
        self.context.sni_callback = self._hand_over

    def _hand_over(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        if self._latest is not self.context:
            connection.context = self._latest

    def refresh(self) -> None:
        """Read the files again if they have changed; what cannot be used is logged, once."""
        state = state_of(self._tls.paths)
        if state == self._state:
            return
        self._state = state
        try:
            self._latest = self._tls.load()
        except InvalidArgument as error:
            logger.error("%s; the certificate in use stays", error)
        else:
            logger.info("new connections get the certificate now in %s", self._tls.certificate)


def _set_up(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")  # of TLS 1.2: what HTTP/2 does not forbid
    context.set_alpn_protocols(["h2"])


def _load_certificate(context: ssl.SSLContext, certificate: Path, key: Path | None, where: str) -> None:
    def no_passphrase() -> str:  # OpenSSL would ask the terminal for it.
        raise InvalidArgument(f"{where}: the key in {key or certificate} needs a passphrase: store it without one")

    try:
        context.load_cert_chain(certificate, key, password=no_passphrase)
    except OSError as error:
        _check_readable(certificate, where)
        _check_readable(key or certificate, where)
        files = f"{certificate}" if key is None else f"{certificate} and {key}"
        why = "they do not belong together" if "MISMATCH" in str(error.args) else f"no PEM certificate and key: {error}"
        raise InvalidArgument(f"{where}: {files} cannot be used: {why}") from error


def _load_authorities(context: ssl.SSLContext, path: Path, where: str) -> None:
    _check_readable(path, where)
    try:
        context.load_verify_locations(path)
    except OSError as error:
        raise InvalidArgument(f"{where}: {path} has no certificates in PEM: {error}") from error


def _check_readable(path: Path, where: str) -> None:
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise InvalidArgument(f"{where}: {path} cannot be read: {error.strerror or error}") from error
