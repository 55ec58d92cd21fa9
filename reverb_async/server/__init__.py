"""Servers: tables behind TCP, Unix sockets and the in-process transport."""

from reverb_async.server.server import Server

__all__ = ["Server"]
