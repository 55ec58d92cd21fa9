"""Whether a server runs on this host, as this user; and how its memory is mapped if so.

A memory file of another process is opened through ``/proc/<pid>/fd/<n>``, which Linux allows to the same user. Nothing
has a name in any file system, so nothing is left behind when either side is killed.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reverb_async.protocol.control_page import TOKEN_BYTES
from reverb_async.protocol.hello import MemoryOffer

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = Path("/proc/self/ns/pid")


def host_mark(token: bytes) -> bytes:
    """Return 16 bytes that only processes on this host, since it was started, get for the same token.

    The boot id itself stays here: a server says hello to strangers, too.

    Raises:
        OSError: the host does not tell.
    """
    return hashlib.blake2b(_BOOT_ID.read_bytes(), key=token, digest_size=16).digest()


def pid_namespace() -> int:
    """Return what tells this process's numbering of processes from others on the host; 0 if that is not known."""
    try:
        return _PID_NAMESPACE.stat().st_ino
    except OSError:
        return 0


def obstacle(offer: MemoryOffer | None) -> str | None:
    """Return why the memory that a server offers cannot be mapped from here; None if nothing speaks against it."""
    if sys.platform != "linux":
        return f"{sys.platform} cannot map the memory of another process"
    if not _CAN_SEE_SEALS:
        return "this Python was built for a Linux without memory files"
    if offer is None:
        return "the server does not share its memory"
    if len(offer.token) != TOKEN_BYTES:
        return f"the server's offer has a token of {len(offer.token)} bytes instead of {TOKEN_BYTES}"
    try:
        here = host_mark(offer.token)
    except OSError as error:
        return f"this host does not tell its boot id: {error.strerror}"
    if here != offer.host:
        return "the server is on another host"
    if offer.pid_namespace != pid_namespace():
        return "the server is in another container: its process number means nothing here"
    if offer.uid != os.geteuid():
        return "the server runs as another user"
    return None


def map_memory(pid: int, fd: int, nbytes: int, inode: int | None = None) -> NDArray[np.uint8]:
    """Map the first `nbytes` of a process's memory file, read-only; uint8 ``[nbytes]``, read-only.

    The mapping ends with the last view of the array. It holds no descriptor of ours from Python 3.13 on.

    Args:
        pid: the process.
        fd: its descriptor.
        nbytes: how much.
        inode: the file's; None takes any.

    Raises:
        OSError: there is no such process or descriptor, it is not ours, or not a memory file of this size and inode
            that can never shrink (reading behind its end would kill this process).
    """
    # O_NONBLOCK: if the number meanwhile stands for a pipe, opening it must not wait.
    descriptor = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if status.st_size < nbytes or (inode is not None and status.st_ino != inode) or not _never_shrinks(descriptor):
            raise OSError(errno.ESTALE, "that descriptor now stands for something else")
        return np.frombuffer(_mapped(descriptor, nbytes), np.uint8)
    finally:
        os.close(descriptor)


if sys.platform == "linux":
    import fcntl

    _CAN_SEE_SEALS = hasattr(fcntl, "F_GET_SEALS")

    def _never_shrinks(descriptor: int) -> bool:
        try:
            return bool(fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)
        except OSError:
            return False  # Only memory files have seals.

    def _mapped(descriptor: int, nbytes: int) -> mmap.mmap:
        if sys.version_info >= (3, 13):
            return mmap.mmap(descriptor, nbytes, access=mmap.ACCESS_READ, trackfd=False)
        return mmap.mmap(descriptor, nbytes, access=mmap.ACCESS_READ)

else:
    _CAN_SEE_SEALS = False

    def _never_shrinks(descriptor: int) -> bool:
        return False

    def _mapped(descriptor: int, nbytes: int) -> mmap.mmap:
        return mmap.mmap(descriptor, nbytes, access=mmap.ACCESS_READ)
