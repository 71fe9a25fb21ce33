"""What a `Proxy` can do to an exchange between a client and a server.

An exchange is one request and its reply: of HTTP, or of PostgreSQL's protocol (all messages up to
the one that the server answers; the server's up to "ready for query").
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Request:
    """The beginning of a request.

    Attributes
    ----------
    head : bytes
        Of HTTP the request line and the headers; of PostgreSQL all messages.
    size : int
        Bytes of the body that follows the head.
    """

    head: bytes
    size: int = 0
    chunked: bool = False

    @property
    def line(self) -> str:
        """The request line of HTTP: "PUT /bucket/key?query HTTP/1.1"."""
        return self.head.partition(b"\r\n")[0].decode("latin-1")

    @property
    def method(self) -> str:
        """The method of HTTP."""
        return self.line.partition(" ")[0]


@dataclass(frozen=True)
class Fault:
    """Base of the faults."""


@dataclass(frozen=True)
class Reset(Fault):
    """Cut the connection before anything is forwarded."""


@dataclass(frozen=True)
class CutRequest(Fault):
    """Forward the head and this many bytes of the body, then cut both connections."""

    after: int = 0


@dataclass(frozen=True)
class CutReply(Fault):
    """Forward the request, give back the head and this many bytes of the body, then cut."""

    after: int = 0


@dataclass(frozen=True)
class LoseReply(Fault):
    """Forward the request, wait for the whole reply, give nothing of it back, and cut."""


@dataclass(frozen=True)
class Stall(Fault):
    """Forward nothing and say nothing, until the client hangs up."""


@dataclass(frozen=True)
class StallReply(Fault):
    """Forward the request; give back this many bytes of the body, then say nothing more."""

    after: int | None = None
    """None: not even the head."""


@dataclass(frozen=True)
class Delay(Fault):
    """Wait before the request is forwarded; it is forwarded even if the client has gone."""

    seconds: float


@dataclass(frozen=True)
class Hold(Fault):
    """Keep the request until the event is set; then forward it, even if the client has gone."""

    release: threading.Event


@dataclass(frozen=True)
class Throttle(Fault):
    """Give the body of the reply back in small pieces with waits between them."""

    piece: int
    wait: float


@dataclass(frozen=True)
class Answer(Fault):
    """Answer in the server's stead, in the words of S3.

    Parameters
    ----------
    status : int
    code : str
        The error code of S3: "SlowDown".
    headers : tuple of (name, value)
    done : bool
        Whether the request is forwarded (and its reply dropped): the server did it, yet says no.
    """

    status: int
    code: str = "InternalError"
    headers: tuple[tuple[str, str], ...] = ()
    done: bool = False

    def encode(self, *, body: bool = True) -> bytes:
        """The whole answer; one to HEAD has no body."""
        content = (
            '<?xml version="1.0" encoding="UTF-8"?>'
            f"<Error><Code>{self.code}</Code><Message>made by the proxy</Message></Error>"
        ).encode()
        lines = [f"HTTP/1.1 {self.status} {self.code}", "Content-Type: application/xml"]
        lines += [f"Content-Length: {len(content)}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        return "\r\n".join([*lines, "", ""]).encode() + (content if body else b"")


@dataclass
class Rule:
    """A fault, and the requests that it is for.

    Attributes
    ----------
    times : int or None
        How many requests it is still for; None for all.
    skip : int
        How many requests that match pass before it begins.
    """

    fault: Fault
    when: Callable[[Request], bool] = field(default=lambda request: True)
    times: int | None = None
    skip: int = 0
    applied: int = 0

    def takes(self, request: Request) -> bool:
        """Whether it is for this request; it is counted then."""
        if self.times == self.applied or not self.when(request):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.applied += 1
        return True
