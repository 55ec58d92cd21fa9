"""Who may do what, and how both ends know whom they speak to: TLS and tokens."""

from reverb_async.security.credentials import Credentials, TokenSource
from reverb_async.security.tls import ClientTLS, ServerContext, ServerTLS
from reverb_async.security.tokens import SCOPES, Token, Tokens

__all__ = ["SCOPES", "ClientTLS", "Credentials", "ServerContext", "ServerTLS", "Token", "TokenSource", "Tokens"]
