"""`MemoryOffer` as the message of the wire, and back."""

from __future__ import annotations

from reverb_async.protocol.hello import MemoryOffer
from reverb_async.wire.generated.reverb_async import v1


def memory_offer_to_proto(offer: MemoryOffer) -> v1.SharedMemory:
    """Return the message."""
    return v1.SharedMemory(
        pid=offer.pid,
        pid_namespace=offer.pid_namespace,
        uid=offer.uid,
        host=offer.host,
        control_fd=offer.fd,
        token=offer.token,
    )


def memory_offer_from_proto(message: v1.SharedMemory) -> MemoryOffer:
    """Return what a message says; whether it makes sense is for the client to find out."""
    return MemoryOffer(message.pid, message.pid_namespace, message.uid, message.host, message.control_fd, message.token)
