"""A proxy before the S3 server that makes trouble on demand: slow, failing, cutting off.

    python s3_proxy.py PORT SERVER_PORT FOLDER

`FOLDER/faults.json` says what share of requests meets which fault, and may change at any time;
`FOLDER/met.json` counts those that did.
"""

import asyncio
import contextlib
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import aiohttp
from aiohttp import web
from yarl import URL

_SLOW_DOWN = """<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"""
_STALL_S = 10.0
_HOPS = {"transfer-encoding", "connection", "keep-alive", "expect"}


class Proxy:
    """Hands requests on as they are, or not."""

    def __init__(self, target: int, folder: Path) -> None:
        self._target, self._folder = target, folder
        self._dice = random.Random(0)
        self._met: Counter[str] = Counter()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request."""
        body = await request.read()
        if request.path == "/proxy-is-up":
            return web.Response(text="yes")
        faults = json.loads((self._folder / "faults.json").read_text())
        drawn = self._dice.random()
        for fault, share in faults.items():
            if drawn < share:
                self._met[fault] += 1
                (self._folder / "met.json").write_text(json.dumps(self._met))
                answer = await self._fail(fault, request)
                if answer is not None:
                    return answer
                break
            drawn -= share
        return await self._pass_on(request, body)

    async def _fail(self, fault: str, request: web.Request) -> web.Response | None:
        if fault == "slow_down":
            return web.Response(status=503, text=_SLOW_DOWN, content_type="application/xml")
        if fault == "stall":
            await asyncio.sleep(_STALL_S)
            return None
        assert request.transport is not None
        request.transport.abort()  # a reset, for the other side
        return web.Response()

    async def _pass_on(self, request: web.Request, body: bytes) -> web.StreamResponse:
        # As written: a path that is encoded anew would not fit its signature.
        url = URL(f"http://127.0.0.1:{self._target}{request.raw_path}", encoded=True)
        sent = {k: v for k, v in request.headers.items() if k.lower() not in _HOPS}
        try:
            async with (
                aiohttp.ClientSession(auto_decompress=False) as session,
                session.request(
                    request.method, url, headers=sent, data=body, allow_redirects=False
                ) as found,
            ):
                headers = {k: v for k, v in found.headers.items() if k.lower() not in _HOPS}
                content = await found.read()
        except aiohttp.ClientError:  # the server is gone: so are we
            answer = await self._fail("reset", request)
            assert answer is not None
            return answer
        if request.method == "HEAD":
            response = web.StreamResponse(status=found.status, headers=headers)
            await response.prepare(request)
            return response
        headers.pop("Content-Length", None)
        return web.Response(status=found.status, headers=headers, body=content)


@dataclass(frozen=True)
class Faults:
    """What a running proxy does."""

    folder: Path

    @contextlib.contextmanager
    def met(self, **shares: float) -> Iterator[None]:
        """Let shares of the requests meet faults: slow_down (503), reset, stall (10 s)."""
        (self.folder / "faults.json").write_text(json.dumps(shares))
        try:
            yield
        finally:
            (self.folder / "faults.json").write_text("{}")

    def count(self) -> dict[str, int]:
        """Requests that met each fault so far."""
        file = self.folder / "met.json"
        return json.loads(file.read_text()) if file.exists() else {}


@contextlib.contextmanager
def proxy(port: int, target: int, folder: Path) -> Iterator[Faults]:
    """Run the proxy in a process of its own."""
    (folder / "faults.json").write_text("{}")
    process = subprocess.Popen([sys.executable, __file__, str(port), str(target), str(folder)])
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{port}/proxy-is-up"):
                break
            time.sleep(0.1)
        else:
            raise RuntimeError("the proxy does not answer")
        yield Faults(folder)
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    application = web.Application(client_max_size=1024**3)
    handler = Proxy(int(sys.argv[2]), Path(sys.argv[3]))
    application.router.add_route("*", "/{tail:.*}", handler.handle)
    web.run_app(application, host="127.0.0.1", port=int(sys.argv[1]), print=None)
