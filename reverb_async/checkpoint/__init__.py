"""Keeping what a server holds on disk."""

from reverb_async.checkpoint.checkpointer import Checkpointer
from reverb_async.checkpoint.write_ahead import Durability

__all__ = ["Checkpointer", "Durability"]
