"""The token's way to Ray's dashboard: through no proxy, to no other address, and only as a token."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from raylane.cluster.errors import FailedError, UsageError
from raylane.deployments.rollout.serve_api import ServeApi

SCALE = "/api/v1/applications/raylane-model-tiny/deployments/replica/scale"
PROXY_VARIABLES = [
    name for scheme in ("http", "https", "all") for name in (f"{scheme}_proxy", f"{scheme}_proxy".upper())
]


class Server(ThreadingHTTPServer):
    """Answers every request alike and keeps what it saw: path and token."""

    def __init__(self, host: str, status: int, body: str, headers: dict[str, str]) -> None:
        super().__init__((host, 0), Handler)
        self.status, self.body, self.headers = status, body, headers
        self.seen: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]!s}:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body.encode())

    do_GET = do_PUT = do_CONNECT = do_POST

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(
    host: str = "127.0.0.1", status: int = 200, body: str = "{}", headers: dict[str, str] | None = None
) -> Iterator[Server]:
    with Server(host, status, body, headers or {}) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret-token")
    for name in ("no_proxy", "NO_PROXY", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"])
@pytest.mark.parametrize("variable", PROXY_VARIABLES)
def test_no_proxy_sees_the_token(monkeypatch: pytest.MonkeyPatch, variable: str, host: str) -> None:
    with serving(status=503) as proxy, serving(host) as dashboard:
        monkeypatch.setenv(variable, proxy.url)
        ServeApi(dashboard.url).scale("tiny", 3)
    assert dashboard.seen == [(SCALE, "Bearer secret-token")]
    assert proxy.seen == []


def test_a_redirect_is_not_followed_and_is_named() -> None:
    with (
        serving() as elsewhere,
        serving(status=302, headers={"Location": elsewhere.url}) as dashboard,
        pytest.raises(FailedError, match="302"),
    ):
        ServeApi(dashboard.url).scale("tiny", 3)
    assert elsewhere.seen == []


@pytest.mark.parametrize("body", ["<html>a login page</html>", json.dumps(["a list"])])
def test_another_server_at_that_address_is_named(body: str) -> None:
    with serving(body=body) as other, pytest.raises(FailedError, match="no answer of Ray's dashboard"):
        ServeApi(other.url).scale("tiny", 3)


@pytest.mark.parametrize("url", ["http://127.0.0.1:none", "http://[::1", "127.0.0.1:1"])
def test_an_address_that_is_no_url_is_named(url: str) -> None:
    with pytest.raises(FailedError, match="no answer"):
        ServeApi(url).scale("tiny", 3)


@pytest.mark.parametrize("token", ["line\nend", "tab\tin it", "ümlaut"])
def test_a_token_that_no_header_can_carry_is_named_but_not_shown(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    with pytest.raises(UsageError, match="RAY_AUTH_TOKEN: not a token") as refused:
        ServeApi("http://127.0.0.1:1").scale("tiny", 3)
    assert token not in str(refused.value)


def test_the_line_end_of_a_token_file_is_no_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret-token\n")
    with serving() as dashboard:
        ServeApi(dashboard.url).scale("tiny", 3)
    assert dashboard.seen == [(SCALE, "Bearer secret-token")]
