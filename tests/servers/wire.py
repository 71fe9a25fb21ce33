"""Where requests and replies begin and end: HTTP/1.1, and PostgreSQL's protocol 3."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
from collections.abc import Iterator
from typing import Protocol

from servers.faults import Request

PIECE = 1 << 16


class HungUp(ConnectionError):
    """The other side closed the connection in the middle of something."""


class Wire:
    """One connection, read through a buffer."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._buffer = b""
        if sock.family == socket.AF_INET:
            # Many small pieces: each would wait for the other side to acknowledge the one before.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def fill(self) -> bool:
        """Wait for more bytes; False at the end."""
        more = self.sock.recv(PIECE)
        self._buffer += more
        return bool(more)

    def has_more(self) -> bool:
        """Whether bytes are buffered."""
        return bool(self._buffer)

    def take(self, size: int) -> bytes:
        """Take exactly this many bytes."""
        while len(self._buffer) < size:
            if not self.fill():
                raise HungUp("in the middle of a message")
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    def take_all(self) -> bytes:
        """Take what is buffered."""
        return self.take(len(self._buffer))

    def until(self, mark: bytes) -> bytes:
        """Take all up to and with a mark."""
        while mark not in self._buffer:
            if not self.fill():
                raise HungUp("in the middle of a line")
        return self.take(self._buffer.index(mark) + len(mark))

    def pieces(self, size: int) -> Iterator[bytes]:
        """Take this many bytes as they come."""
        while size:
            if not self._buffer and not self.fill():
                raise HungUp("in the middle of a body")
            piece = self.take(min(size, len(self._buffer)))
            size -= len(piece)
            yield piece

    def rest(self) -> Iterator[bytes]:
        """Take all that comes until the other side hangs up."""
        while self._buffer or self.fill():
            yield self.take(len(self._buffer))

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self.sock.sendall(data)

    def shut_down(self) -> None:
        """Wake whoever waits for this connection; it is over."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self, *, reset: bool = False) -> None:
        """Hang up; by a reset, as a crashed machine or a firewall would, or in order."""
        with contextlib.suppress(OSError):
            if reset:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def wait_for_either(first: Wire, second: Wire) -> Wire:
    """Wait until one has something to read, and say which."""
    for wire in (first, second):
        if wire.has_more():
            return wire
    with selectors.DefaultSelector() as selector:
        for wire in (first, second):
            selector.register(wire.sock, selectors.EVENT_READ, wire)
        return selector.select()[0][0].data


class Language(Protocol):
    """What a proxy has to know of a protocol."""

    def request(self, client: Wire) -> Request:
        """Read a request up to its body."""

    def body(self, client: Wire, request: Request) -> Iterator[bytes]:
        """Read the body of a request."""

    def reply(self, server: Wire, request: Request) -> Iterator[bytes]:
        """Read a reply: first its head, then its body in pieces."""


class Http:
    """HTTP/1.1 without pipelining and "Expect"."""

    def request(self, client: Wire) -> Request:
        """Read the head."""
        head = client.until(b"\r\n\r\n")
        fields = headers(head)
        return Request(
            head,
            int(fields.get("content-length", 0)),
            "chunked" in fields.get("transfer-encoding", ""),
        )

    def body(self, client: Wire, request: Request) -> Iterator[bytes]:
        """Read what the head announced."""
        return chunks(client) if request.chunked else client.pieces(request.size)

    def reply(self, server: Wire, request: Request) -> Iterator[bytes]:
        """Read the head, and what it announced."""
        head = server.until(b"\r\n\r\n")
        yield head
        fields = headers(head)
        status = int(head.split(None, 2)[1])
        if request.method == "HEAD" or status in (204, 304):
            return
        if "chunked" in fields.get("transfer-encoding", ""):
            yield from chunks(server)
        elif "content-length" in fields:
            yield from server.pieces(int(fields["content-length"]))
        else:
            yield from server.rest()


def headers(head: bytes) -> dict[str, str]:
    """The headers by their names in small letters."""
    lines = head.decode("latin-1").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines if line)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def chunks(wire: Wire) -> Iterator[bytes]:
    """Read a chunked body, framing included."""
    while True:
        line = wire.until(b"\r\n")
        yield line
        size = int(line.split(b";")[0], 16)
        yield from wire.pieces(size + 2)
        if size == 0:
            return


class Postgres:
    """PostgreSQL's protocol, of one connection, without COPY and pipelines."""

    START = 196608  # protocol 3.0
    SMALL_TALK = (80877103, 80877104)  # asking for TLS or GSS: answered by one byte
    ANSWERED = b"QSF"  # query, sync, function call
    GOODBYE = b"X"

    def __init__(self) -> None:
        self._started = False

    def request(self, client: Wire) -> Request:
        """Read all messages up to the one that is answered."""
        if not self._started:
            return self._start(client)
        messages = b""
        while True:
            kind, message = self._message(client)
            messages += message
            if kind in self.ANSWERED or kind in self.GOODBYE:
                return Request(messages)

    def _start(self, client: Wire) -> Request:
        length = client.take(4)
        message = length + client.take(int.from_bytes(length, "big") - 4)
        self._started = int.from_bytes(message[4:8], "big") not in self.SMALL_TALK
        return Request(message)

    def body(self, client: Wire, request: Request) -> Iterator[bytes]:
        """Nothing is left behind the head."""
        return iter(())

    def reply(self, server: Wire, request: Request) -> Iterator[bytes]:
        """Read all messages up to "ready for query"."""
        if request.head[:1] == self.GOODBYE:
            yield from server.rest()
            return
        if not self._started:
            yield server.take(1)
            return
        kind = b""
        while kind != b"Z":
            kind, message = self._message(server)
            yield message

    def _message(self, wire: Wire) -> tuple[bytes, bytes]:
        head = wire.take(5)
        return head[:1], head + wire.take(int.from_bytes(head[1:], "big") - 4)
