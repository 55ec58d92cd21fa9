"""Memory for stores: reserved once, resident only where touched, given back page by page.

On Linux a store lives in a sparse memfd: address space is reserved in full, pages appear when they are written and
go back with ``MADV_REMOVE`` although arrays still look at them, nothing stays behind after ``kill -9``, and a process
on the same host can map the descriptor. Elsewhere it is private memory, and stores grow by moving to a larger piece.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import os
import sys
import weakref
from abc import ABC, abstractmethod
from typing import ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from reverb_async.errors import ResourceExhausted

Scalar = TypeVar("Scalar", bound=np.generic)

PAGE = mmap.PAGESIZE
ALIGNMENT = 64


class Backing(ABC):
    """One piece of reserved memory, zero until written.

    Attributes:
        sparse: whether untouched pages cost nothing on any machine, so that reserving far too much is free.
        array: all of it, uint8 ``[nbytes]``, beginning at a page.
        fd: the descriptor another process can map, or None.
    """

    sparse: ClassVar[bool]
    array: NDArray[np.uint8]
    fd: int | None

    @abstractmethod
    def __init__(self, nbytes: int) -> None: ...

    @abstractmethod
    def release(self, start: int, stop: int) -> None:
        """Give back the pages that lie wholly within ``[start, stop)``; nobody needs what they hold."""

    @abstractmethod
    def resident_bytes(self) -> int:
        """Return how much memory is in use now; an upper bound where that cannot be asked."""


class PrivateBacking(Backing):
    """Plain memory of this process.

    Raises:
        ResourceExhausted: there is not enough memory.
    """

    sparse = False

    def __init__(self, nbytes: int) -> None:
        try:
            memory = np.zeros(
                nbytes + PAGE, np.uint8
            )  # calloc: where the platform can do that, pages appear when touched
        except MemoryError as error:
            raise ResourceExhausted(f"no memory for a store of {nbytes} bytes") from error
        start = -memory.ctypes.data % PAGE
        self.array = memory[start : start + nbytes]
        self.fd = None

    def release(self, start: int, stop: int) -> None:
        """Do nothing: these pages stay until the store is gone."""

    def resident_bytes(self) -> int:
        """Return the size."""
        return self.array.nbytes


if sys.platform == "linux":
    import fcntl

    class SharedBacking(Backing):
        """A sparse memfd, mapped once.

        Raises:
            ResourceExhausted: no address space or file descriptor is left.
        """

        sparse = True

        def __init__(self, nbytes: int) -> None:
            nbytes = round_up(max(nbytes, 1), PAGE)
            try:
                fd = os.memfd_create("reverb_async", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            except OSError as error:
                raise ResourceExhausted(f"no memory file for a store ({error.strerror}); raise `ulimit -n`") from error
            weakref.finalize(self, os.close, fd).atexit = False
            self.fd = fd
            try:
                os.ftruncate(fd, nbytes)
                # A file shortened by someone else who maps it would kill this process (SIGBUS): hence the seals.
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
                self._map = _mapped(fd, nbytes)
            except OSError as error:
                raise ResourceExhausted(
                    f"cannot reserve {nbytes} bytes for a store ({error.strerror}): see `ulimit -v` and `ulimit -f`"
                ) from error
            self.array = np.frombuffer(self._map, np.uint8)  # it keeps the mapping alive: views outlive this object

        def release(self, start: int, stop: int) -> None:
            """Give back the pages that lie wholly within ``[start, stop)``; they read as zeros then."""
            start, stop = round_up(start, PAGE), stop - stop % PAGE
            if start < stop:
                with contextlib.suppress(OSError):  # pages locked in memory (mlockall) stay
                    self._map.madvise(mmap.MADV_REMOVE, start, stop - start)

        def resident_bytes(self) -> int:
            """Return the size of the pages that exist."""
            assert self.fd is not None
            return os.fstat(self.fd).st_blocks * 512

    def _mapped(fd: int, nbytes: int) -> mmap.mmap:
        if sys.version_info >= (3, 13):
            return mmap.mmap(fd, nbytes, trackfd=False)
        return mmap.mmap(fd, nbytes)  # keeps a duplicate of the descriptor

    # A Python that was built for an older Linux (glibc before 2.27) knows no memory files, whatever the system does.
    _has_memory_files = hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS")
    PlatformBacking: type[Backing] = SharedBacking if _has_memory_files else PrivateBacking
else:
    PlatformBacking: type[Backing] = PrivateBacking


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


def sparse_zeros(shape: tuple[int, ...], dtype: np.dtype[Scalar]) -> NDArray[Scalar]:
    """Return a zeroed array, written here and there, that takes no memory but the pages that are written.

    NumPy asks the system for huge pages: then a few scattered entries take 2 MiB each.

    Raises:
        MemoryError: there is no address space for it.
    """
    if not hasattr(mmap, "MADV_NOHUGEPAGE"):
        return np.zeros(shape, dtype)
    size = math.prod(shape)
    try:
        memory = mmap.mmap(-1, max(1, size * dtype.itemsize), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"cannot reserve {size * dtype.itemsize} bytes ({error.strerror})") from error
    with contextlib.suppress(OSError):  # a system without huge pages
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype, size).reshape(shape)


def physical_memory() -> int:
    """Return the machine's memory in bytes, or 64 GiB where that cannot be asked."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 1 << 36


def address_of(memory: NDArray[np.uint8]) -> int:
    """Return where writable memory of at least a byte begins; `ctypes.data` would take three times as long."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory.data))


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    """Return an uninitialised, writable, C-contiguous array that begins at a multiple of 64 bytes."""
    nbytes = dtype.itemsize
    for extent in shape:
        nbytes *= extent
    room = np.empty(nbytes + ALIGNMENT - 1, np.uint8)
    return np.ndarray(shape, dtype, room, -address_of(room) % ALIGNMENT)
