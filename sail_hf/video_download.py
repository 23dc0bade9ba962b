"""Videos of URLs, and of streams that cannot seek, to temporary files; within limits, and without trust."""

import http.client
import ipaddress
import socket
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from .video_limits import VideoError, VideoLimits

# Seconds of silence that end a download.
_SILENCE = 60
_CHUNK = 2**20


def download(url: str, limits: VideoLimits) -> tuple[BinaryIO, str]:
    """Download an http(s) URL.

    Returns: a temporary file that vanishes when it is closed, and the URL without what may be secret in it.

    Raises:
        VideoError: the download fails, is cut short, exceeds a limit, or leads (by a redirect, too) to where it may not.
    """
    parts = urllib.parse.urlsplit(url)
    # Queries and user names of links hold tokens: they do not belong in messages.
    name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    guard = _Guard(name, limits)
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "sail_hf"})
        with guard.timer(), guard.opener().open(request, timeout=_SILENCE) as response:
            return copy_to_temporary_file(response, name, limits, response.length, guard.begin), name
    except (OSError, http.client.HTTPException, ValueError) as error:
        limits.check("download_seconds", time.monotonic() - guard.begin, name)  # the cut has many faces
        if isinstance(error, VideoError):
            raise
        raise VideoError(f"{name}: the download failed ({_reason(error)})") from None


def copy_to_temporary_file(
    stream: BinaryIO, name: str, limits: VideoLimits, stated: int | None = None, begin: float | None = None
) -> BinaryIO:
    """All of a stream; the copy vanishes when it is closed.

    Args:
        stated: bytes that the stream has announced.
        begin: when its time began to count, by the monotonic clock. Defaults to now.
    """
    limits.check("download_bytes", stated or 0, name)
    begin = time.monotonic() if begin is None else begin
    file = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as its reader)
    try:
        chunk = None
        while chunk != b"":
            chunk = stream.read(_CHUNK) or b""
            file.write(chunk)
            limits.check("download_bytes", file.tell(), name)
            limits.check("download_seconds", time.monotonic() - begin, name)
        if stated is not None and file.tell() != stated:
            raise VideoError(f"{name}: the download was cut short: {file.tell():,} of {stated:,} bytes arrived")
        if not file.tell():
            raise VideoError(f"{name}: empty (0 bytes)")
    except BaseException:
        file.close()
        raise
    return file


class _Guard:
    """Watches over the connections of one download, at every redirect: where they lead, and how long they last."""

    def __init__(self, name: str, limits: VideoLimits):
        self._name, self._limits = name, limits
        self.begin = time.monotonic()
        self._sockets: list[socket.socket] = []

    @contextmanager
    def timer(self) -> Iterator[None]:
        """Cuts the connections when the time is over, however slowly they trickle."""
        timer = threading.Timer(self._limits.download_seconds, self._cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _cut(self) -> None:
        for connection in self._sockets:
            with suppress(OSError):  # closed by now
                # Below TLS, whose own shutdown would wait for the other side.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def opener(self) -> urllib.request.OpenerDirector:
        """For http and https alone: urllib's own opener knows ftp, files and data as well."""
        opener = urllib.request.OpenerDirector()
        handlers = [_HTTPHandler(self), _HTTPSHandler(self), urllib.request.UnknownHandler()]
        handlers += [urllib.request.HTTPDefaultErrorHandler(), urllib.request.HTTPRedirectHandler()]
        handlers += [urllib.request.HTTPErrorProcessor()]
        if self._limits.allow_private_addresses:
            handlers.append(urllib.request.ProxyHandler())
        for handler in handlers:
            opener.add_handler(handler)
        return opener

    def check_host(self, host: str) -> None:
        if self._limits.allow_private_addresses:
            return
        for *_, (address, *_) in socket.getaddrinfo(host, None):
            found = ipaddress.ip_address(address)
            found = getattr(found, "ipv4_mapped", None) or found
            if not found.is_global or found.is_multicast:
                raise VideoError(
                    f"{self._name}: {host} is {found}, an address of this machine or its network, where a URL may not "
                    "lead here (allow_private_addresses, SAIL_ALLOW_PRIVATE_ADDRESSES)"
                )

    def admit(self, connection: socket.socket) -> None:
        self._sockets.append(connection)
        self._limits.check("download_seconds", time.monotonic() - self.begin, self._name)
        self.check_host(connection.getpeername()[0])


class _Watched:
    """A connection that is checked before and after it is made: a name may change its address in between."""

    def __init__(self, *args, guard: _Guard, **kwargs):
        super().__init__(*args, **kwargs)
        self._guard = guard

    def connect(self) -> None:
        self._guard.check_host(self.host)
        super().connect()
        self._guard.admit(self.sock)


class _HTTPConnection(_Watched, http.client.HTTPConnection):
    pass


class _HTTPSConnection(_Watched, http.client.HTTPSConnection):
    pass


class _HTTPHandler(urllib.request.HTTPHandler):
    def __init__(self, guard: _Guard):
        super().__init__()
        self._guard = guard

    def http_open(self, request):
        return self.do_open(_HTTPConnection, request, guard=self._guard)


class _HTTPSHandler(urllib.request.HTTPSHandler):
    def __init__(self, guard: _Guard):
        super().__init__()
        self._guard = guard

    def https_open(self, request):
        return self.do_open(_HTTPSConnection, request, guard=self._guard)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, http.client.IncompleteRead):
        return "it was cut short: fewer bytes arrived than were stated"
    if isinstance(error, OSError):  # URLError and timeouts are OSErrors
        return str(getattr(error, "strerror", None) or getattr(error, "reason", None) or error)
    return type(error).__name__  # the text of these errors repeats the URL
