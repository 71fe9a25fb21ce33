"""The servers and the proxy of the tests: they do what they say, and never outlive the tests."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import psycopg
import pytest
from servers.faults import (
    Answer,
    CutReply,
    CutRequest,
    Delay,
    Hold,
    LoseReply,
    Reset,
    Stall,
    StallReply,
    Throttle,
)
from servers.ports import free_ports
from servers.postgres import PostgresServer
from servers.process import ServerDied, ServerProcess, is_alive
from servers.proxy import Proxy
from servers.s3 import S3Server

TESTS = Path(__file__).parents[1]


# The servers


def test_a_bucket_is_there_and_keeps_bytes(s3_server, s3_bucket):
    s3_server.client.put_object(Bucket=s3_bucket, Key="k", Body=b"bytes")
    assert s3_server.client.get_object(Bucket=s3_bucket, Key="k")["Body"].read() == b"bytes"


def test_a_bucket_that_was_never_made_takes_nothing(s3_server):
    with pytest.raises(s3_server.client.exceptions.NoSuchBucket):
        s3_server.client.put_object(Bucket="never-made", Key="k", Body=b"bytes")


def test_a_killed_s3_server_has_all_that_it_acknowledged_when_it_is_started_again():
    with S3Server() as server:
        endpoint, bucket = server.endpoint, server.new_bucket()
        for i in range(20):
            server.client.put_object(Bucket=bucket, Key=f"k{i}", Body=b"%d" % i * 1000)
        server.kill()
        assert not server.running
        server.start()
        assert server.endpoint == endpoint
        for i in range(20):
            body = server.client.get_object(Bucket=bucket, Key=f"k{i}")["Body"].read()
            assert body == b"%d" % i * 1000
        server.stop()
        server.start()
        assert server.client.list_objects_v2(Bucket=bucket)["KeyCount"] == 20
        folder, process = server.folder, psutil.Process(server.pid)
    assert not folder.exists()
    assert not is_alive(process)


def test_an_s3_server_listens_on_this_machine_alone(s3_server):
    listening = [
        connection.laddr.ip
        for connection in psutil.Process(s3_server.pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert set(listening) == {"127.0.0.1"}


def test_a_database_is_there_and_empty(postgres_url):
    with psycopg.connect(postgres_url.replace("+psycopg", "")) as connection:
        count = connection.execute(
            "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        ).fetchone()
    assert count == (0,)


def test_a_killed_postgres_has_all_that_it_acknowledged_when_it_is_started_again():
    with PostgresServer() as server:
        with server.connect() as connection:
            connection.execute("CREATE TABLE t (i int)")
            connection.execute("INSERT INTO t SELECT generate_series(1, 100)")
            server.kill()
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
        server.start()
        with server.connect() as connection:
            assert connection.execute("SELECT count(*) FROM t").fetchone() == (100,)
        folder = server.folder
        server.kill()
    assert not folder.exists()


def test_a_frozen_postgres_says_nothing_until_it_is_let_go():
    with PostgresServer() as server, server.connect() as connection:
        backend = psutil.Process(connection.info.backend_pid)
        with server.frozen():
            assert psutil.Process(server.pid).status() == psutil.STATUS_STOPPED
            assert backend.status() == psutil.STATUS_STOPPED
        assert connection.execute("SELECT 1").fetchone() == (1,)


HOLDER = """
import sys, time
sys.path.insert(0, {tests!r})
from servers.{module} import {name}
server = {name}()
server.start()
print(server.pid, server.folder, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize(("module", "name"), [("s3", "S3Server"), ("postgres", "PostgresServer")])
def test_a_server_ends_with_the_tests_however_they_end(module, name, ending):
    program = HOLDER.format(tests=str(TESTS), module=module, name=name)
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as holder:
        pid, folder = holder.stdout.readline().split()
        server = psutil.Process(int(pid))
        guard = server.parent()
        # To the whole group, as the terminal does it on Ctrl-C.
        os.killpg(holder.pid, ending)
    with contextlib.suppress(psutil.NoSuchProcess):
        guard.wait(30)
    assert not is_alive(server)
    assert not Path(folder).exists()


def test_a_server_that_cannot_start_says_why(tmp_path):
    process = ServerProcess(["/bin/sh", "-c", "echo the reason; exit 3"], tmp_path, {})
    with pytest.raises(ServerDied, match="the reason"):
        process.wait_ready(lambda: False)
    process.end(signal.SIGKILL)
    with pytest.raises(ServerDied, match="not-there"):
        ServerProcess([str(tmp_path / "not-there")], tmp_path, {})


# The proxy


class Handler(BaseHTTPRequestHandler):
    """Keeps what it is sent, and answers with ten bytes, in the way that the path asks for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.seen.append((self.command, self.path, b""))
        self.send_response(200)
        if self.path == "/chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"4\r\n0123\r\n6\r\n456789\r\n0\r\n\r\n")
            return
        self.send_header("Content-Length", "10")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(b"0123456789")

    do_HEAD = do_GET

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.command, self.path, body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args):
        pass


class Web(ThreadingHTTPServer):
    """Says nothing about connections that broke, as they are meant to."""

    def handle_error(self, request, client_address):
        assert isinstance(sys.exc_info()[1], ConnectionError)


@pytest.fixture
def web():
    server = Web(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    server.seen = []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def proxy(web):
    with Proxy(web.server_address) as proxy:
        yield proxy
    assert not [t for t in threading.enumerate() if t.name.startswith("test-proxy")]


@pytest.fixture
def client(proxy):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)) as it:
        yield it


def ask(client, method="GET", path="/", body=None):
    client.request(method, path, body)
    reply = client.getresponse()
    return reply.status, reply.read()


@pytest.mark.parametrize("path", ["/", "/chunked"])
def test_forwards_many_exchanges_of_one_connection(proxy, client, web, path):
    for _ in range(3):
        assert ask(client, path=path) == (200, b"0123456789")
        assert ask(client, "HEAD") == (200, b"")
        assert ask(client, "PUT", "/x", b"y" * 300_000) == (204, b"")
    assert proxy.connections == 1
    assert len(proxy.requests) == 9
    assert web.seen[2] == ("PUT", "/x", b"y" * 300_000)


@pytest.mark.parametrize("fault", [Reset(), LoseReply(), CutReply(4), CutRequest(0)])
def test_cuts(proxy, client, web, fault):
    rule = proxy.add(fault, times=1)
    with pytest.raises((ConnectionResetError, http.client.HTTPException)):
        ask(client)
    assert rule.applied == 1
    client.close()
    assert ask(client) == (200, b"0123456789")
    assert proxy.connections == 2
    # The head of a request that is cut may be lost with the connection.
    assert len(web.seen) in {Reset: {1}, CutRequest: {1, 2}}.get(type(fault), {2})


def test_a_reply_that_is_cut_gives_what_came_before(proxy, client):
    proxy.add(CutReply(4))
    client.request("GET", "/")
    reply = client.getresponse()
    assert reply.read(4) == b"0123"
    with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
        reply.read()


def test_a_request_that_is_cut_is_no_whole_one(proxy, client, web):
    proxy.add(CutRequest(100_000))
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        ask(client, "PUT", "/x", b"y" * 300_000)
    assert ("PUT", "/x", b"y" * 300_000) not in web.seen


@pytest.mark.parametrize("done", [False, True])
def test_answers_in_the_stead_of_the_server(proxy, client, web, done):
    proxy.add(Answer(503, "SlowDown", (("Retry-After", "1"),), done=done), times=2)
    status, body = ask(client, "PUT", "/x", b"body")
    assert status == 503
    assert b"<Code>SlowDown</Code>" in body
    assert ask(client, "HEAD") == (503, b"")
    assert ask(client) == (200, b"0123456789")
    assert [method for method, _, _ in web.seen] == (["PUT", "HEAD", "GET"] if done else ["GET"])


@pytest.mark.parametrize("fault", [Stall(), StallReply(), StallReply(4)])
def test_stalls_until_the_client_hangs_up(proxy, client, fault):
    proxy.add(fault, times=1)
    client.timeout = 0.1
    with pytest.raises(TimeoutError):
        ask(client)
    client.close()
    client.timeout = 30
    assert ask(client) == (200, b"0123456789")


@pytest.mark.parametrize(
    "fault", [Stall(), StallReply(), StallReply(4), Delay(600), Throttle(1, 600)]
)
def test_closing_ends_what_is_held_up(web, fault):
    with (
        Proxy(web.server_address) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port)) as it,
    ):
        rule = proxy.add(fault)
        it.sendall(b"GET / HTTP/1.1\r\n\r\n")
        if isinstance(fault, StallReply | Throttle) and fault != StallReply():
            assert it.recv(1)
        while not rule.applied:
            time.sleep(0.001)
    assert not [t for t in threading.enumerate() if t.name.startswith("test-proxy")]


def test_a_request_that_is_held_arrives_after_the_client_has_gone(proxy, client, web):
    release = threading.Event()
    proxy.add(Hold(release), times=1)
    client.timeout = 0.1
    with pytest.raises(TimeoutError):
        ask(client)
    client.close()
    assert not web.seen
    release.set()
    while proxy.open:
        time.sleep(0.001)
    assert len(web.seen) == 1


@pytest.mark.parametrize("fault", [Delay(0.01), Throttle(3, 0.001)])
def test_slow_is_whole_all_the_same(proxy, client, fault):
    proxy.add(fault)
    assert ask(client) == (200, b"0123456789")
    assert ask(client, path="/chunked") == (200, b"0123456789")


def test_rules_choose_their_requests(proxy, client):
    first = proxy.add(Answer(500), when="GET /a", skip=1, times=2)
    second = proxy.add(Answer(429), when=lambda request: request.method == "HEAD")
    assert [ask(client, path="/a")[0] for _ in range(4)] == [200, 500, 500, 200]
    assert [ask(client, "HEAD", "/a")[0] for _ in range(2)] == [429, 429]
    assert ask(client, path="/b")[0] == 200
    assert (first.applied, second.applied) == (2, 2)
    proxy.clear()
    assert ask(client, "HEAD")[0] == 200


def test_refuses_connections_and_takes_them_again(proxy, client):
    assert ask(client)[0] == 200
    with proxy.refusing():
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            ask(client)
        client.close()
        with pytest.raises(ConnectionRefusedError):
            ask(client)
    client.close()
    assert ask(client)[0] == 200


def test_a_server_that_hangs_up_is_passed_on(proxy, client, web):
    assert ask(client)[0] == 200
    proxy.cut_all()
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        ask(client)


def test_a_dead_server_is_a_cut_connection():
    with Proxy(("127.0.0.1", free_ports(1)[0])) as proxy:
        client = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
        with (
            contextlib.closing(client),
            pytest.raises((ConnectionError, http.client.HTTPException)),
        ):
            ask(client)


def test_s3_through_a_proxy_checks_signatures_all_the_same(s3_server, s3_bucket):
    import obstore
    from obstore.store import S3Store

    with Proxy((s3_server.host, s3_server.port)) as proxy:
        store = S3Store(
            s3_bucket,
            endpoint=proxy.endpoint,
            region=s3_server.region,
            access_key_id=s3_server.access_key,
            secret_access_key=s3_server.secret_key,
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )
        obstore.put(store, "k", b"x" * 7_000_000)
        assert bytes(obstore.get(store, "k").bytes()) == b"x" * 7_000_000
        assert obstore.list(store).collect()[0]["path"] == "k"
        assert proxy.requests


def test_postgres_through_a_proxy(postgres_server, postgres_url):
    name = postgres_url.partition("?")[0].rpartition("/")[2]
    with Proxy(postgres_server.socket, "postgres") as proxy:
        url = postgres_server.url(name, proxy.port).replace("+psycopg", "")
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE t (i int)")
            connection.execute("INSERT INTO t VALUES (%s)", (1,))
            connection.commit()
            rows = connection.execute("SELECT repeat('x', 200000), i FROM t").fetchall()
            assert rows == [("x" * 200_000, 1)]
            rule = proxy.add(LoseReply(), when=b"COMMIT", times=1)
            connection.execute("INSERT INTO t VALUES (2)")
            with pytest.raises(psycopg.OperationalError):
                connection.commit()
        assert rule.applied == 1
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT count(*) FROM t").fetchone() == (2,)
