"""Free ports of this machine."""

from __future__ import annotations

import random
import socket

GRPC_OFFSET = 10_000  # SeaweedFS takes a second port this much higher beside each of its ports
PORTS = range(10_240, 22_500)  # both below what systems hand out to outgoing connections


def free_ports(count: int) -> list[int]:
    """Choose ports whose neighbours for gRPC are free as well."""
    rng = random.SystemRandom()  # not the one that pytest-randomly seeds alike in all workers
    found: list[int] = []
    while len(found) < count:
        port = rng.choice(PORTS)
        if port not in found and is_free(port) and is_free(port + GRPC_OFFSET):
            found.append(port)
    return found


def is_free(port: int) -> bool:
    """Whether nobody listens at this port of 127.0.0.1."""
    with socket.socket() as trial:
        try:
            trial.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
