"""A proxy between a client and a server on this machine that makes faults as it is told."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from servers.faults import (
    Answer,
    CutReply,
    CutRequest,
    Delay,
    Fault,
    Hold,
    LoseReply,
    Request,
    Reset,
    Rule,
    Stall,
    StallReply,
    Throttle,
)
from servers.ports import PORTS
from servers.wire import Http, HungUp, Language, Postgres, Wire, wait_for_either

HOST = "127.0.0.1"


class Cut(Exception):
    """This connection ends here, by a reset."""


class Proxy:
    """Forwards connections from a port of its own; a thread for each.

    Parameters
    ----------
    target : (host, port) or Path
        Where the server listens: TCP, or a Unix socket.
    language : {"http", "postgres"}

    Attributes
    ----------
    port : int
    endpoint : str
        "http://127.0.0.1:<port>"
    connections : int
        How many were accepted.
    requests : list of Request
        All that came, whatever was done to them.
    """

    def __init__(self, target: tuple[str, int] | Path, language: str = "http") -> None:
        self._target = target
        self._language: type[Language] = {"http": Http, "postgres": Postgres}[language]
        self._rules: list[Rule] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._live: dict[threading.Thread, set[Wire]] = {}
        self.connections = 0
        self.requests: list[Request] = []
        self._listener = self._bind()
        self.port: int = self._listener.getsockname()[1]
        self._accepting: threading.Thread | None = None
        self._listen()

    @property
    def endpoint(self) -> str:
        """The address for clients of HTTP."""
        return f"http://{HOST}:{self.port}"

    @property
    def open(self) -> int:
        """How many connections there are now."""
        with self._lock:
            return len(self._live)

    def add(
        self,
        fault: Fault,
        *,
        when: Callable[[Request], bool] | bytes | str | None = None,
        times: int | None = None,
        skip: int = 0,
    ) -> Rule:
        """Do something to requests from now on; the first rule that takes a request counts.

        Parameters
        ----------
        when : callable, bytes or str, optional
            Which requests: by a function, or by what their head contains. All if not given.
        times : int, optional
            How many of them; all if not given.
        skip : int
            How many of them pass before.

        Returns
        -------
        Rule
            Its `applied` tells how often it was done.
        """
        if isinstance(when, str):
            when = when.encode()
        if isinstance(when, bytes):
            needle = when
            rule = Rule(fault, lambda request: needle in request.head, times, skip)
        else:
            rule = Rule(fault, when or (lambda request: True), times, skip)
        with self._lock:
            self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Do nothing to requests from now on."""
        with self._lock:
            self._rules.clear()

    def cut_all(self) -> None:
        """Cut the connections that there are."""
        with self._lock:
            wires = [wire for wires in self._live.values() for wire in wires]
        for wire in wires:
            wire.shut_down()

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Refuse connections for the block, and cut those that there are."""
        self._stop_listening()
        self.cut_all()
        try:
            yield
        finally:
            self._listener = self._bind(self.port)
            self._listen()

    def close(self) -> None:
        """Cut everything; no thread is left."""
        self._closing.set()
        self._stop_listening()
        while True:
            # One that was just accepted may have got its connection to the server after the cut.
            self.cut_all()
            with self._lock:
                threads = list(self._live)
            if not threads:
                return
            threads[0].join(0.1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _bind(self, port: int | None = None) -> socket.socket:
        rng = random.SystemRandom()
        for trial in itertools.count():
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((HOST, port or rng.choice(PORTS)))
                listener.listen(128)
            except OSError:
                listener.close()
                if port is not None or trial > 50:
                    raise
            else:
                return listener
        raise AssertionError

    def _listen(self) -> None:
        self._wake, woken = socket.socketpair()
        self._accepting = threading.Thread(
            target=self._accept, args=(Wire(self._listener), Wire(woken)), name="test-proxy"
        )
        self._accepting.start()

    def _stop_listening(self) -> None:
        if self._accepting is not None:
            self._wake.close()
            self._accepting.join()
            self._accepting = None

    def _accept(self, listener: Wire, woken: Wire) -> None:
        with listener.sock, woken.sock:
            while wait_for_either(listener, woken) is listener:
                client, _ = listener.sock.accept()
                self._start(Wire(client))

    def _start(self, client: Wire) -> None:
        thread = threading.Thread(target=self._serve, args=(client,), name="test-proxy-connection")
        with self._lock:
            self.connections += 1
            self._live[thread] = {client}
        thread.start()

    def _serve(self, client: Wire) -> None:
        wires = self._live[threading.current_thread()]
        reset = False
        try:
            server = self._connect()
            with self._lock:
                wires.add(server)
            Conversation(self, self._language(), client, server).run()
        except (Cut, OSError):  # OSError: either side cut it, and the other one is to see that
            reset = True
        finally:
            for wire in list(wires):
                wire.close(reset=reset)
            with self._lock:
                del self._live[threading.current_thread()]

    def _connect(self) -> Wire:
        if isinstance(self._target, Path):
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(str(self._target))
            except OSError:
                server.close()
                raise
        else:
            server = socket.create_connection(self._target)
        return Wire(server)

    def fault_for(self, request: Request) -> Fault | None:
        """Note a request, and choose what to do to it."""
        with self._lock:
            self.requests.append(request)
            return next((rule.fault for rule in self._rules if rule.takes(request)), None)

    def wait(self, seconds: float) -> None:
        """Wait, but no longer than until `close`."""
        if self._closing.wait(seconds):
            raise Cut

    def wait_for(self, release: threading.Event) -> None:
        """Wait for an event, but no longer than until `close`."""
        while not release.wait(0.01):
            if self._closing.is_set():
                raise Cut


class Conversation:
    """One connection of a client and the one of its own to the server."""

    def __init__(self, proxy: Proxy, language: Language, client: Wire, server: Wire) -> None:
        self._proxy = proxy
        self._language = language
        self._client = client
        self._server = server

    def run(self) -> None:
        """Forward requests and replies until one side hangs up."""
        while True:
            if wait_for_either(self._client, self._server) is self._server:
                # Not asked: a farewell, or the end.
                if not self._server.has_more() and not self._server.fill():
                    return
                self._client.send(self._server.take_all())
            elif not self._client.has_more() and not self._client.fill():
                return
            else:
                request = self._language.request(self._client)
                self._exchange(request, self._proxy.fault_for(request))

    def _exchange(self, request: Request, fault: Fault | None) -> None:
        match fault:
            case Reset():
                raise Cut
            case Stall():
                self._wait_for_hang_up()
            case Delay():
                self._proxy.wait(fault.seconds)
            case Hold():
                self._proxy.wait_for(fault.release)
            case CutRequest():
                self._forward_some(request, fault.after)
                raise Cut
            case Answer():
                self._answer(request, fault)
                return
        self._forward(request)
        self._give_back(self._language.reply(self._server, request), fault)

    def _forward(self, request: Request) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            # A server may answer and hang up before it has read everything.
            self._server.send(request.head)
            for piece in self._language.body(self._client, request):
                self._server.send(piece)

    def _forward_some(self, request: Request, size: int) -> None:
        self._server.send(request.head)
        for piece in self._language.body(self._client, request):
            self._server.send(piece[:size])
            size -= len(piece)
            if size <= 0:
                return

    def _answer(self, request: Request, answer: Answer) -> None:
        if answer.done:
            self._forward(request)
            self._swallow(self._language.reply(self._server, request))
        else:
            self._swallow(self._language.body(self._client, request))
        self._client.send(answer.encode(body=request.method != "HEAD"))

    def _give_back(self, reply: Iterator[bytes], fault: Fault | None) -> None:
        match fault:
            case LoseReply():
                self._swallow(reply)
                raise Cut
            case StallReply(after=None):
                self._wait_for_hang_up()
            case CutReply() | StallReply():
                self._client.send(next(reply))
                self._send_some(reply, fault.after)
                if isinstance(fault, StallReply):
                    self._wait_for_hang_up()
                raise Cut
            case Throttle():
                self._client.send(next(reply))
                self._trickle(reply, fault)
            case _:
                for piece in reply:
                    self._client.send(piece)

    def _send_some(self, pieces: Iterator[bytes], size: int) -> None:
        while size > 0 and (piece := next(pieces, None)) is not None:
            self._client.send(piece[:size])
            size -= len(piece)

    def _trickle(self, pieces: Iterator[bytes], throttle: Throttle) -> None:
        for piece in pieces:
            for start in range(0, len(piece), throttle.piece):
                self._client.send(piece[start : start + throttle.piece])
                self._proxy.wait(throttle.wait)

    def _swallow(self, pieces: Iterator[bytes]) -> None:
        for _ in pieces:
            pass

    def _wait_for_hang_up(self) -> None:
        with contextlib.suppress(HungUp):
            self._swallow(self._client.rest())
        raise Cut
