"""Videos of URLs: whole, within limits, and from nowhere else than asked."""

import http.server
import ipaddress
import itertools
import os
import socket
import threading
import time
from pathlib import Path

import pytest
from numbered_video import read_number, render

from sail_hf import VideoError, VideoLimits
from sail_hf.video_reading import open_video


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> bytes:
    return render(tmp_path_factory.mktemp("videos") / "numbered.mp4").read_bytes()


@pytest.fixture(scope="module")
def server(data) -> str:
    """A server of well-behaved and of hostile answers."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def head(self, **headers) -> None:
            self.send_response(302 if "Location" in headers else 200)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()

        def trickle(self) -> None:
            for _ in range(200):
                self.wfile.write(b"x")
                time.sleep(0.05)

        def do_GET(self):
            kind, _, target = self.path.partition("=")
            try:
                if kind.startswith("/numbered.mp4"):
                    self.head(Content_Length=len(data))
                    self.wfile.write(data)
                elif kind == "/no-length.mp4":
                    self.head()
                    self.wfile.write(data)
                elif kind == "/half.mp4":
                    self.head(Content_Length=len(data))
                    self.wfile.write(data[: len(data) // 2])
                elif kind == "/half-chunked.mp4":
                    self.protocol_version = "HTTP/1.1"
                    self.head(Transfer_Encoding="chunked")
                    self.wfile.write(b"ffff\r\n" + data[:1000])
                elif kind == "/nothing.mp4":
                    self.head(Content_Length=0)
                elif kind == "/large.mp4":
                    self.head(Content_Length=10**13)
                elif kind == "/endless.mp4":
                    self.head()
                    while True:
                        self.wfile.write(bytes(2**16))
                elif kind == "/slow-head.mp4":
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nServer: ")
                    self.trickle()
                elif kind == "/slow-body.mp4":
                    self.head()
                    self.trickle()
                elif kind == "/slow-length.mp4":
                    self.head(Content_Length=10**6)
                    self.trickle()
                elif kind == "/to":
                    self.head(Location=target)
                else:
                    self.send_error(404)
            except OSError:
                pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.daemon_threads = True
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def numbers(url: str, **limits) -> list[int]:
    with open_video(url, limits=VideoLimits(**limits)) as reader:
        return [read_number(frame) for frame in reader.frames_at([0.0, 0.51, 1.99])]


@pytest.mark.parametrize("path", ["/numbered.mp4", "/no-length.mp4", "/to=/numbered.mp4"])
def test_whole_videos(server, path):
    assert numbers(server + path) == [0, 15, 59]
    assert numbers(server.replace("http:", "HTTP:") + path) == [0, 15, 59]


def test_errors_name_the_video_and_keep_secrets(server):
    with pytest.raises(VideoError, match="missing.mp4: the download failed \\(HTTP 404") as caught:
        open_video(f"{server}/missing.mp4?token=secret")
    assert "secret" not in str(caught.value)
    for url in (server.replace("http://", "http://user:secret@"), "http://user:secret@nowhere.invalid"):
        with pytest.raises(VideoError, match="numbered.mp4: the download failed") as caught:
            open_video(f"{url}/numbered.mp4")
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "limits", "words"),
    [
        ("/half.mp4", {}, r"half.mp4: the download was cut short: [\d,]+ of [\d,]+ bytes arrived"),
        ("/half-chunked.mp4", {}, "half-chunked.mp4: the download failed .it was cut short"),
        ("/nothing.mp4", {}, r"nothing.mp4: empty \(0 bytes\)"),
        (
            "/large.mp4",
            {},
            "large.mp4: download bytes 10,000,000,000,000 is above the limit of 8,589,934,592.*SAIL_MAX",
        ),
        ("/endless.mp4", {"download_bytes": 10**6}, "endless.mp4: download bytes .* is above the limit of 1,000,000"),
        ("/to=ftp://127.0.0.1/a.mp4", {}, "the download failed .unknown url type: ftp"),
        ("/to=file:///etc/hostname", {}, "the download failed .HTTP 302"),
        ("/to=/to=/to=/to=data:text/plain,x", {}, "the download failed .HTTP 302"),
    ],
)
def test_what_is_no_whole_video_within_the_limits(server, path, limits, words):
    files = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else None
    with pytest.raises(VideoError, match=words) as caught:
        open_video(server + path, limits=VideoLimits(**limits))
    del caught
    assert files is None or len(os.listdir("/proc/self/fd")) <= files + 1, "the server's end may still be closing"


@pytest.mark.parametrize("path", ["/slow-head.mp4", "/slow-body.mp4", "/slow-length.mp4", "/to=/slow-body.mp4"])
def test_a_byte_now_and_then_ends(server, path):
    begin = time.monotonic()
    with pytest.raises(
        VideoError, match="mp4: download seconds .* is above the limit of 0.3.*SAIL_MAX_DOWNLOAD_SECONDS"
    ):
        open_video(server + path, limits=VideoLimits(download_seconds=0.3))
    assert time.monotonic() - begin < 2
    assert not any(
        isinstance(thread, threading.Timer) and not thread.finished.is_set() for thread in threading.enumerate()
    )


PRIVATE = "an address of this machine or its network"


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "169.254.169.254", "10.1.2.3"]
    + ["192.168.0.1", "[fe80::1]", "[fd00::1]", "0.0.0.0", "100.64.0.1", "224.0.0.1"],
)
def test_addresses_of_this_machine_and_its_network_are_refused_where_a_server_says_so(host, monkeypatch):
    def connect(*_):
        raise AssertionError("nothing may be connected to")

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(VideoError, match=PRIVATE):
        open_video(f"http://{host}:9/a.mp4", limits=VideoLimits(allow_private_addresses=False))
    monkeypatch.setenv("SAIL_ALLOW_PRIVATE_ADDRESSES", "0")
    with pytest.raises(VideoError, match=PRIVATE):
        open_video(f"https://{host}:9/a.mp4")


def test_every_hop_is_checked(server, monkeypatch):
    """127.0.0.1 plays a public address here, 127.0.0.2 a private one."""
    public = property(lambda address: str(address) != "127.0.0.2")
    monkeypatch.setattr(ipaddress.IPv4Address, "is_global", public)
    monkeypatch.setenv("http_proxy", "http://127.0.0.2:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert numbers(f"{server}/to=/numbered.mp4", allow_private_addresses=False) == [0, 15, 59]
    private = server.replace("127.0.0.1", "127.0.0.2")
    with pytest.raises(VideoError, match=rf"127.0.0.2 is 127.0.0.2, {PRIVATE}"):
        numbers(f"{server}/to={private}/numbered.mp4", allow_private_addresses=False)


def test_a_name_that_changes_its_address_after_the_check_is_refused(server, monkeypatch):
    answers = itertools.chain(["93.184.216.34"], itertools.repeat("127.0.0.1"))
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: resolve(next(answers), *rest, **more))
    url = server.replace("127.0.0.1", "rebinding.example")
    with pytest.raises(VideoError, match=f"127.0.0.1, {PRIVATE}"):
        numbers(f"{url}/numbered.mp4", allow_private_addresses=False)


def test_streams_that_cannot_seek_have_limits_too(data):
    class Pipe:
        def __init__(self, blocks):
            self._blocks = iter(blocks)

        def read(self, size):
            return next(self._blocks, b"")

    with open_video(Pipe([data[:1000], data[1000:]])) as reader:
        assert read_number(next(reader.frames_at([0.51]))) == 15
    with pytest.raises(VideoError, match="the Pipe: download bytes 11,000 is above the limit of 10,000"):
        open_video(Pipe(itertools.repeat(bytes(1000))), limits=VideoLimits(download_bytes=10_000))
    with pytest.raises(VideoError, match="the Pipe: download seconds .* is above the limit of 0.1"):
        open_video(Pipe(itertools.repeat(b"x")), limits=VideoLimits(download_seconds=0.1))
