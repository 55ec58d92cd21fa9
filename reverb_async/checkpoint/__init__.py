"""Keeping what a server holds on disk."""

from reverb_async.checkpoint.checkpointer import Checkpointer

__all__ = ["Checkpointer"]
