"""The service on a port, until a signal ends it."""

import ipaddress
import socket
from collections.abc import Callable
from contextlib import suppress

import uvicorn

from calrec_lite.errors import InputError
from calrec_lite.serve.app import Settings, create_app
from calrec_lite.serve.known import KnownUsers
from calrec_lite.serve.lists import Lists

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
SHORTEST_TOKEN = 16
SPARE = 64  # connections beyond those that may wait: pages, searches, `/health`


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def names_of(host: str) -> list[str]:
    """What a browser of this machine may call a service on the loopback address `host`."""
    return [*LOCAL_NAMES, f"[{host}]" if ":" in host else host]


def require_safe(host: str, token: str | None) -> None:
    """Raise InputError where strangers could ask without a token, or with one that is guessed."""
    if token is None and not is_loopback(host):
        raise InputError(
            f"--host {host}: others can reach it; set a token of {SHORTEST_TOKEN} characters or more in "
            "CALREC_LITE_TOKEN (or --token), or leave --host out"
        )
    if token is not None and (len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable()):
        raise InputError(f"--token: needs {SHORTEST_TOKEN} printable ASCII characters or more")


def bound(host: str, port: int) -> socket.socket:
    """A socket that is bound, so that a wrong address is found before a model is loaded; it does not listen yet.

    Raises:
        InputError: the address cannot be had.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, kind)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"--host {host} --port {port}: {reason}; name another one (--port 0: any that is free)"
        ) from None
    return opened


def address_of(opened: socket.socket) -> str:
    """The address a browser takes."""
    host, port = opened.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def serve(
    lists: Lists, opened: socket.socket, settings: Settings, known: KnownUsers | None, started: Callable[[], None]
) -> int:
    """Answer until SIGINT or SIGTERM; what was asked before that is still answered. Returns how many lists were made.

    Args:
        started: called when requests are taken.
    """
    app = create_app(lists, settings, known)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=settings.room + SPARE,
        timeout_graceful_shutdown=max(1, round(settings.timeout)),
    )
    server = _Server(config, started)
    with suppress(KeyboardInterrupt):  # the signal once more, after the end that it asked for
        server.run(sockets=[opened])
    return int(app.state.service.engine.answered)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._say_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._say_started()
