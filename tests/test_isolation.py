"""What `conftest.py` promises: no network beyond this machine, caches of their own, globals put back."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

ELSEWHERE = "192.0.2.1"  # reserved for documentation (RFC 5737): no host answers there


@pytest.fixture
def local_server() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"here")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_other_machines_cannot_be_reached() -> None:
    with pytest.raises(OSError, match="only this machine"):
        socket.create_connection((ELSEWHERE, 80), timeout=1)
    with socket.socket() as plain, pytest.raises(OSError, match="only this machine"):
        plain.connect_ex((ELSEWHERE, 80))
    with socket.socket(type=socket.SOCK_DGRAM) as plain, pytest.raises(OSError, match="only this machine"):
        plain.sendto(b"", (ELSEWHERE, 53))
    with pytest.raises(OSError, match="only this machine"):
        socket.getaddrinfo("example.org", 80)


def test_downloads_fail_in_this_process_and_in_others() -> None:
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen("http://example.org/", timeout=5)
    program = "import urllib.request as r; r.urlopen('http://example.org/', timeout=5)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, text=True)
    assert "Connection refused" in done.stderr


def test_this_machine_can_be_reached(local_server: str) -> None:
    with urllib.request.urlopen(local_server, timeout=5) as answer:
        assert answer.read() == b"here"


def test_caches_are_not_the_users() -> None:
    for name in ("MASKLET_CACHE", "HF_HOME"):
        assert Path(tempfile.gettempdir()) in Path(os.environ[name]).parents


def _ignore(number: int, frame: object) -> None:
    """A signal handler of our own; whether SIGINT is ignored outside decides nothing then."""


class TestGlobals:
    """Two tests in this order: the second sees what the first left behind."""

    def test_changed(self, tmp_path: Path) -> None:
        os.environ["MASKLET_LEFT_BEHIND"] = os.environ["MASKLET_CACHE"] = "x"
        os.chdir(tmp_path)
        signal.signal(signal.SIGINT, _ignore)
        logging.getLogger("masklet").setLevel(logging.DEBUG)

    def test_put_back(self, tmp_path: Path) -> None:
        assert "MASKLET_LEFT_BEHIND" not in os.environ
        assert os.environ["MASKLET_CACHE"] != "x"
        assert tmp_path.parent not in Path.cwd().parents
        assert signal.getsignal(signal.SIGINT) is not _ignore
        assert logging.getLogger("masklet").level != logging.DEBUG
