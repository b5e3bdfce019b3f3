"""A proxy for the S3 server that injects faults: slow, failing, dropped and held requests.

    python s3_proxy.py PORT SERVER_PORT FOLDER

`FOLDER/faults.json` sets the share of requests for each fault, and may change at any time.
`FOLDER/met.json` counts the requests with faults. Faults of selected requests, and the counts of
all requests, are controlled through `CONTROL`, a path that is not a bucket.
"""

import asyncio
import contextlib
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from urllib.request import ProxyHandler, Request, build_opener

import aiohttp
from aiohttp import web
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from s3_server import ACCESS_KEY, SECRET
from yarl import URL

CONTROL = "/proxy-control"
_SLOW_DOWN = """<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"""
_STALL_S = 10.0
_HOPS = {"transfer-encoding", "connection", "keep-alive", "expect"}
_CONDITIONS = {"if-match", "if-none-match"}
_START_S = 60
#: Opens URLs of this machine directly, even if the environment sets a web proxy.
_DIRECTLY = build_opener(ProxyHandler({}))
_KEEP_S = 5.0  # shorter than servers keep idle connections; a PUT on a closed one would fail


@dataclass
class Chosen:
    """Requests selected by method and by a regular expression that is searched in `bucket/key`."""

    method: str
    pattern: str
    times: int

    def takes(self, method: str, path: str) -> bool:
        """Whether the request is one of the next `times` selected ones; each match counts down."""
        if not self.times or method != self.method or not re.search(self.pattern, path):
            return False
        self.times -= 1
        return True


class Proxy:
    """The proxy: passes requests on unchanged, or with a fault."""

    def __init__(self, target: int, folder: Path) -> None:
        self._target, self._folder = target, folder
        self._dice = random.Random(0)
        self._met: Counter[str] = Counter()
        self._requests: Counter[tuple[str, str]] = Counter()
        self._lost: list[Chosen] = []
        self._paused: list[Chosen] = []
        self._held: dict[asyncio.Future[bool], str] = {}  # the result says whether to pass it on
        self._ignores_conditions = False

    async def connect(self, _: web.Application) -> AsyncIterator[None]:
        """Open connections to the server while the proxy runs."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_S)
        async with aiohttp.ClientSession(
            connector=connector, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
        ) as self._session:
            yield

    async def control(self, request: web.Request) -> web.Response:
        """Handle a command of a test: its name and arguments as JSON."""
        order = await request.json()
        answer = getattr(self, f"_order_{order.pop('order')}")(**order)
        return web.json_response(answer)

    def _order_requests(self, method: str, prefix: str) -> dict[str, int]:
        return {
            path: count
            for (verb, path), count in self._requests.items()
            if verb == method and path.startswith(prefix)
        }

    def _order_reset(self) -> None:
        self._requests.clear()

    def _order_lose(self, method: str, pattern: str, times: int) -> None:
        self._lost.append(Chosen(method, pattern, times))

    def _order_ignore_conditions(self, yes: bool) -> None:
        self._ignores_conditions = yes

    def _order_pause(self, method: str, pattern: str, times: int) -> None:
        self._paused.append(Chosen(method, pattern, times))

    def _order_held(self) -> list[str]:
        return list(self._held.values())

    def _order_release(self, drop: bool) -> None:
        self._paused.clear()
        for request in self._held:
            request.set_result(not drop)
        self._held.clear()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Handle a request."""
        body = await request.read()
        if request.path == "/proxy-is-up":
            return web.Response(text="yes")
        path = unquote(request.raw_path.partition("?")[0]).lstrip("/")
        self._requests[request.method, path] += 1
        faults = json.loads((self._folder / "faults.json").read_text())
        drawn = self._dice.random()
        for fault, share in faults.items():
            if drawn < share:
                self._meet(fault)
                answer = await self._fail(fault, request)
                if answer is not None:
                    return answer
                break
            drawn -= share
        if any(chosen.takes(request.method, path) for chosen in self._paused) and (
            not await self._hold(path)
        ):
            return self._reset(request)
        lost = any(chosen.takes(request.method, path) for chosen in self._lost)
        answer = await self._pass_on(request, body)
        if lost:
            self._meet("lost_response")
            return self._reset(request)
        return answer

    def _meet(self, fault: str) -> None:
        self._met[fault] += 1
        (self._folder / "met.json").write_text(json.dumps(self._met))

    async def _hold(self, path: str) -> bool:
        """Wait until the request is released; return whether to pass it on."""
        released: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._held[released] = path
        return await released

    async def _fail(self, fault: str, request: web.Request) -> web.Response | None:
        if fault == "slow_down":
            return web.Response(status=503, text=_SLOW_DOWN, content_type="application/xml")
        if fault == "stall":
            await asyncio.sleep(_STALL_S)
            return None
        return self._reset(request)

    def _reset(self, request: web.Request) -> web.Response:
        if request.transport is not None:  # the client may have disconnected first
            request.transport.abort()  # the client sees a reset
        return web.Response()

    async def _pass_on(self, request: web.Request, body: bytes) -> web.StreamResponse:
        # Keep the encoding: another encoding of the path would not match its signature.
        url = URL(f"http://127.0.0.1:{self._target}{request.raw_path}", encoded=True)
        sent = {k: v for k, v in request.headers.items() if k.lower() not in _HOPS}
        if self._ignores_conditions and _CONDITIONS & {name.lower() for name in sent}:
            sent = _without_conditions(request.method, str(url), sent, body)
        try:
            async with self._session.request(
                request.method, url, headers=sent, data=body, allow_redirects=False
            ) as found:
                headers = {k: v for k, v in found.headers.items() if k.lower() not in _HOPS}
                content = await found.read()
        except aiohttp.ClientError:  # the server does not answer
            return self._reset(request)
        if request.method == "HEAD":
            response = web.StreamResponse(status=found.status, headers=headers)
            await response.prepare(request)
            return response
        headers.pop("Content-Length", None)
        return web.Response(status=found.status, headers=headers, body=content)


def _without_conditions(
    method: str, url: str, headers: dict[str, str], body: bytes
) -> dict[str, str]:
    """Return the headers without conditions, with a new signature because it covers them."""
    removed = _CONDITIONS | {"authorization", "x-amz-date"}
    unsigned = {k: v for k, v in headers.items() if k.lower() not in removed}
    signed = AWSRequest(method=method, url=url, headers=unsigned, data=body)
    S3SigV4Auth(Credentials(ACCESS_KEY, SECRET), "s3", "us-east-1").add_auth(signed)
    return dict(signed.headers.items())


@dataclass(frozen=True)
class Faults:
    """Control of a running proxy.

    Paths are `bucket/key`, as in `Location.path`; patterns are regular expressions that are
    searched in them.

    Attributes:
        folder: folder of the proxy's files.
        port: port of the proxy.
    """

    folder: Path
    port: int

    @contextlib.contextmanager
    def met(self, **shares: float) -> Iterator[None]:
        """Inject faults into shares of the requests: slow_down (503), reset, stall (10 s)."""
        (self.folder / "faults.json").write_text(json.dumps(shares))
        try:
            yield
        finally:
            (self.folder / "faults.json").write_text("{}")

    def count(self) -> dict[str, int]:
        """Return the number of requests with each fault so far."""
        file = self.folder / "met.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def requests(self, method: str, prefix: str) -> int:
        """Count requests of a method to paths with a prefix, since the reset."""
        return sum(self.paths(method, prefix).values())

    def paths(self, method: str, prefix: str) -> dict[str, int]:
        """Count requests of a method to paths with a prefix, by path, since the reset."""
        return dict(self._order("requests", method=method, prefix=prefix))

    def reset(self) -> None:
        """Count requests from zero."""
        self._order("reset")

    def lose_responses(self, method: str, pattern: str, times: int = 1) -> None:
        """Pass the next such requests on, but drop the connection instead of sending a response."""
        self._order("lose", method=method, pattern=pattern, times=times)

    @contextlib.contextmanager
    def ignored_conditions(self) -> Iterator[None]:
        """Remove If-Match and If-None-Match, to imitate a server that ignores them."""
        self._order("ignore_conditions", yes=True)
        try:
            yield
        finally:
            self._order("ignore_conditions", yes=False)

    @contextlib.contextmanager
    def paused(self, method: str, pattern: str, times: int = sys.maxsize) -> Iterator[None]:
        """Hold the next `times` such requests before they reach the server.

        Requests that are still held at the end of the block are dropped.
        """
        self._order("pause", method=method, pattern=pattern, times=times)
        try:
            yield
        finally:
            self.release(drop=True)

    def wait_until_held(self, timeout: float = 60.0) -> list[str]:
        """Wait until requests are held and return their paths; raises TimeoutError."""
        end = time.monotonic() + timeout
        while not (held := list(self._order("held"))):
            if time.monotonic() > end:
                raise TimeoutError(f"no request was held for {timeout:g} s")
            time.sleep(0.02)
        return held

    def release(self, drop: bool = False) -> None:
        """Pass held requests on (or drop them, as if they were never sent), and hold no more."""
        self._order("release", drop=drop)

    def _order(self, order: str, **arguments: object) -> Any:
        body = json.dumps({"order": order, **arguments}).encode()
        request = Request(f"http://127.0.0.1:{self.port}{CONTROL}", body)
        with _DIRECTLY.open(request) as answer:
            return json.load(answer)


@contextlib.contextmanager
def proxy(port: int, target: int, folder: Path) -> Iterator[Faults]:
    """Run the proxy in a separate process."""
    (folder / "faults.json").write_text("{}")
    process = subprocess.Popen([sys.executable, __file__, str(port), str(target), str(folder)])
    up = f"http://127.0.0.1:{port}/proxy-is-up"
    try:
        for _ in range(_START_S * 10):
            if process.poll() is not None:
                raise RuntimeError(f"the proxy on port {port} ended with {process.returncode}")
            with contextlib.suppress(OSError), _DIRECTLY.open(up):
                break
            time.sleep(0.1)
        else:
            raise RuntimeError(f"the proxy does not answer within {_START_S} s")
        yield Faults(folder, port)
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    application = web.Application(client_max_size=1024**3)
    handler = Proxy(int(sys.argv[2]), Path(sys.argv[3]))
    application.cleanup_ctx.append(handler.connect)
    application.router.add_post(CONTROL, handler.control)
    application.router.add_route("*", "/{tail:.*}", handler.handle)
    web.run_app(application, host="127.0.0.1", port=int(sys.argv[1]), print=None)
