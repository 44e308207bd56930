"""Downloads from a server on this machine that answers like the hub, and what is in the cache afterwards."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import huggingface_hub
import pytest
from huggingface_hub import constants

from masklet.errors import Cancelled, DownloadError
from masklet.io import hub
from masklet.io.hub import cached, fetch, verify
from masklet.registry import HubFile, find

CONTENT = random.Random(7).randbytes(400_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MODEL = dataclasses.replace(find("sam2.1_hiera_tiny"), size_bytes=len(CONTENT), sha256=SHA256)
COMMIT = "c0ffee" * 6 + "c0de"
HELD = 150_000  # bytes that arrive before a connection breaks
HUB_PATH = f"/{MODEL.repo_id}/resolve/{{}}/{MODEL.filename}"


@dataclasses.dataclass
class Hub:
    """What the server says and does; a test changes it as it goes."""

    address: str = ""
    storage: str = ""  # another host, to which the hub redirects
    body: bytes = CONTENT
    etag: str = SHA256
    commit: str | None = COMMIT
    size: int = len(CONTENT)  # as the hub's own header says
    head_status: int = 200
    get_statuses: list[int] = dataclasses.field(default_factory=list)  # one for each GET; then 200
    error_headers: dict[str, str] = dataclasses.field(default_factory=dict)
    cuts: list[int] = dataclasses.field(default_factory=list)  # bytes that each GET sends; then all
    short_length: bool = False  # a cut answer's Content-Length is that of what it sends
    ranges: bool = True
    delay: float = 0.0  # seconds before each 50,000 bytes
    clients: int = 1  # the storage answers when so many have asked the hub
    requests: list[tuple[str, str, dict[str, str]]] = dataclasses.field(default_factory=list)

    def gets(self) -> list[str]:
        """The Range header of each GET to the storage."""
        return [
            headers.get("range", "")
            for method, path, headers in self.requests
            if method == "GET" and path.startswith("/storage")
        ]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        state = self.note()
        if state.head_status != 200:
            return self.answer(state.head_status, state.error_headers)
        headers = {"X-Linked-Etag": f'"{state.etag}"', "X-Linked-Size": str(state.size)}
        if state.commit is not None:
            headers["X-Repo-Commit"] = state.commit
        return self.answer(302, {**headers, "Location": f"{state.storage}/storage/blob?signature=1"})

    def do_GET(self) -> None:
        state = self.note()
        if not self.path.startswith("/storage"):
            return self.answer(302, {"Location": f"{state.storage}/storage/blob?signature=1"})
        deadline = time.monotonic() + 30
        while [method for method, _, _ in state.requests].count("HEAD") < state.clients:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        if state.get_statuses and (status := state.get_statuses.pop(0)) != 200:
            return self.answer(status, state.error_headers)
        start = 0
        if state.ranges and (wanted := self.headers.get("Range")):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(state.body):
                return self.answer(416, {"Content-Range": f"bytes */{len(state.body)}"})
        return self.send_body(state, start)

    def send_body(self, state: Hub, start: int) -> None:
        rest = state.body[start:]
        sent = rest[: state.cuts.pop(0)] if state.cuts else rest
        self.send_response(206 if start else 200)
        if start:
            end = len(state.body) - 1
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(state.body)}")
        self.send_header("Content-Length", str(len(sent) if state.short_length else len(rest)))
        self.end_headers()
        for offset in range(0, len(sent), 50_000):
            time.sleep(state.delay)
            self.wfile.write(sent[offset : offset + 50_000])
        self.close_connection = len(sent) < len(rest)

    def note(self) -> Hub:
        headers = {name.lower(): value for name, value in self.headers.items()}
        state = cast(HubServer, self.server).state
        state.requests.append((self.command, self.path, headers))
        return state

    def answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": "0", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


class HubServer(ThreadingHTTPServer):
    daemon_threads = True
    state: Hub

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves early is what some tests are about."""


@pytest.fixture(scope="module")
def client() -> Iterator[None]:
    """huggingface_hub's client lives for the process and takes a third of a second to make."""
    yield
    huggingface_hub.close_session()


@pytest.fixture
def server(client: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "_PAUSES", (0.01, 0.01))
    with HubServer(("127.0.0.1", 0), Handler) as listening:
        port = listening.server_port
        listening.state = Hub(f"http://127.0.0.1:{port}", f"http://localhost:{port}")
        # What HF_ENDPOINT does when huggingface_hub is imported.
        template = f"{listening.state.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", listening.state.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        thread = threading.Thread(target=listening.serve_forever, args=(0.02,))
        thread.start()
        yield listening.state
        listening.shutdown()
        thread.join()


def folder() -> Path:
    return Path(constants.HF_HUB_CACHE) / "models--facebook--sam2.1-hiera-tiny"


def partial() -> Path:
    return folder() / "blobs" / f"{SHA256}.incomplete"


def refuse(*parts: str, file: HubFile = MODEL, **options: Any) -> str:
    """The message with which `fetch` fails. It holds all `parts`, and nothing is claimed to be there."""
    with pytest.raises(DownloadError) as caught:
        fetch(file, **options)
    message = str(caught.value)
    for part in parts:
        assert part in message
    assert cached(file) is None
    return message


def stop_after(count: int, how: BaseException) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done >= count:
            raise how

    return progress


# --------------------------------------------------------------------------------------------- the good way


def test_a_download_is_where_huggingface_hub_keeps_it(server: Hub) -> None:
    assert cached(MODEL) is None
    path = fetch(MODEL)
    assert path.read_bytes() == CONTENT
    assert path == cached(MODEL) == folder() / "snapshots" / COMMIT / MODEL.filename
    assert path.resolve() == (folder() / "blobs" / SHA256).resolve()
    assert sorted(entry.name for entry in (folder() / "blobs").iterdir()) == [SHA256]

    found = huggingface_hub.hf_hub_download(MODEL.repo_id, MODEL.filename, local_files_only=True)
    assert Path(found) == path
    assert huggingface_hub.try_to_load_from_cache(MODEL.repo_id, MODEL.filename) == str(path)
    report = huggingface_hub.scan_cache_dir(constants.HF_HUB_CACHE)
    assert (report.warnings, report.size_on_disk) == ([], len(CONTENT))
    # The branch is asked for, the commit that it stands for is downloaded.
    assert [path for _, path, _ in server.requests[:2]] == [HUB_PATH.format("main"), HUB_PATH.format(COMMIT)]


def test_what_is_cached_is_not_asked_for_again(server: Hub) -> None:
    path = fetch(MODEL)
    server.requests.clear()
    assert fetch(MODEL) == path
    assert server.requests == []


def test_a_file_that_huggingface_hub_downloaded_is_used(server: Hub) -> None:
    path = huggingface_hub.hf_hub_download(MODEL.repo_id, MODEL.filename, endpoint=server.address)
    server.requests.clear()
    assert str(cached(MODEL)) == str(fetch(MODEL)) == path
    assert server.requests == []


def test_progress_counts_bytes_up_to_the_size(server: Hub) -> None:
    calls: list[tuple[int, int]] = []
    fetch(MODEL, progress=lambda done, total: calls.append((done, total)))
    assert (calls[0], calls[-1]) == ((0, len(CONTENT)), (len(CONTENT), len(CONTENT)))
    assert calls == sorted(calls)
    assert len(calls) > 5


def test_an_endpoint_can_be_given(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    other = "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "ENDPOINT", other)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{other}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    assert fetch(MODEL, endpoint=f"{server.address}/").read_bytes() == CONTENT


def test_the_token_goes_to_the_hub_and_not_to_its_storage(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(MODEL)
    sent = [
        (path.startswith("/storage"), headers.get("authorization")) for _, path, headers in server.requests
    ]
    assert sent == [(False, "Bearer hf_secret"), (False, "Bearer hf_secret"), (True, None)]


def test_the_twin_is_a_file_like_any_other(server: Hub) -> None:
    assert MODEL.twin is not None
    twin = dataclasses.replace(MODEL.twin, size_bytes=len(CONTENT), sha256=SHA256)
    assert fetch(twin).name == "model.safetensors"
    assert cached(MODEL) is None
    server.requests.clear()
    assert fetch(MODEL).resolve() == fetch(twin).resolve()  # here both names mean the same blob
    assert server.gets() == []


def test_without_links_the_file_itself_lies_in_the_snapshot(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True, raising=False)
    path = fetch(MODEL)
    assert (path.is_symlink(), path.read_bytes()) == (False, CONTENT)
    assert list((folder() / "blobs").iterdir()) == []
    assert fetch(MODEL) == path


def test_a_file_without_a_known_hash_is_held_against_the_hubs(server: Hub) -> None:
    unknown = dataclasses.replace(MODEL, sha256=None)
    server.body = b"?" * len(CONTENT)
    refuse(f"expected is {SHA256}", file=unknown)
    server.body = CONTENT
    assert fetch(unknown).read_bytes() == CONTENT


# ------------------------------------------------------------------------------------------------ the cache


def test_a_file_of_another_commit_or_without_a_branch_is_found(server: Hub) -> None:
    path = fetch(MODEL)
    (folder() / "refs" / "main").unlink()
    assert cached(MODEL) == path
    (folder() / "refs" / "main").write_text("d" * 40)
    assert cached(MODEL) == path


def test_a_cached_file_of_another_size_is_replaced(server: Hub) -> None:
    path = fetch(MODEL)
    path.resolve().write_bytes(CONTENT[:1000])
    assert cached(MODEL) is None
    assert fetch(MODEL).read_bytes() == CONTENT


def test_a_damaged_blob_is_not_given_a_name(server: Hub) -> None:
    """As after a crash of the machine: the blob is there and has the right size, but another content."""
    (folder() / "blobs").mkdir(parents=True)
    (folder() / "blobs" / SHA256).write_bytes(bytes(len(CONTENT)))
    assert fetch(MODEL).read_bytes() == CONTENT


def test_a_good_blob_is_not_downloaded_again(server: Hub) -> None:
    (folder() / "blobs").mkdir(parents=True)
    (folder() / "blobs" / SHA256).write_bytes(CONTENT)
    assert fetch(MODEL).read_bytes() == CONTENT
    assert server.gets() == []


def test_verify_tells_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "copy.pt"
    with pytest.raises(DownloadError, match="cannot be read"):
        verify(MODEL, path)
    path.write_bytes(CONTENT)
    verify(MODEL, path)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(DownloadError, match=f"399999 bytes, expected are 400000.*{MODEL.pull_command}"):
        verify(MODEL, path)
    path.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(DownloadError, match=f"expected is {SHA256}"):
        verify(MODEL, path)
    assert path.exists()


# ------------------------------------------------------------------------------------------------- resuming


def test_a_broken_connection_is_continued_where_it_broke(server: Hub) -> None:
    server.cuts = [HELD, HELD]
    assert fetch(MODEL).read_bytes() == CONTENT
    assert server.gets() == ["", f"bytes={HELD}-", f"bytes={2 * HELD}-"]


def test_patience_is_new_after_each_bit_of_progress(server: Hub) -> None:
    server.cuts = [HELD, 0, 0, 50_000, 0, 0, 50_000, 0, 0]
    assert fetch(MODEL).read_bytes() == CONTENT


def test_trouble_of_the_server_is_waited_out(server: Hub) -> None:
    server.get_statuses = [503, 429]
    assert fetch(MODEL).read_bytes() == CONTENT
    assert len(server.gets()) == 3


def test_a_download_that_failed_is_continued_by_the_next_call(server: Hub) -> None:
    server.cuts = [HELD, 0, 0, 0]
    refuse(server.address, MODEL.pull_command, "continues")
    assert partial().read_bytes() == CONTENT[:HELD]

    server.requests.clear()
    calls: list[int] = []
    assert fetch(MODEL, progress=lambda done, total: calls.append(done)).read_bytes() == CONTENT
    assert calls[0] == HELD
    assert server.gets() == [f"bytes={HELD}-"]
    assert not partial().exists()


def test_a_server_that_ends_early_without_an_error_is_caught(server: Hub) -> None:
    server.short_length = True
    server.cuts = [HELD, 0, 0, 0]
    refuse(f"at {HELD} of {len(CONTENT)} bytes", "is kept", MODEL.pull_command)
    assert partial().read_bytes() == CONTENT[:HELD]
    assert fetch(MODEL).read_bytes() == CONTENT


def test_a_server_that_cannot_continue_starts_anew(server: Hub) -> None:
    server.ranges = False
    server.cuts = [HELD]
    calls: list[int] = []
    assert fetch(MODEL, progress=lambda done, total: calls.append(done)).read_bytes() == CONTENT
    assert calls != sorted(calls)
    assert calls[-1] == len(CONTENT)


def test_a_server_that_never_gets_further_is_given_up(server: Hub) -> None:
    server.ranges = False
    server.cuts = [HELD] * 20
    refuse("cannot be reached")
    assert len(server.gets()) < 6


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(1)])
def test_ctrl_c_leaves_what_arrived(server: Hub, stop: BaseException) -> None:
    with pytest.raises(type(stop)):
        fetch(MODEL, progress=stop_after(HELD, stop))
    assert cached(MODEL) is None
    assert HELD <= (kept := partial().stat().st_size) < len(CONTENT)
    server.requests.clear()
    assert fetch(MODEL).read_bytes() == CONTENT
    assert server.gets() == [f"bytes={kept}-"]


def test_ctrl_c_while_the_file_is_checked_leaves_it_unnamed(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(hub, "_mismatch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fetch(MODEL)
    assert cached(MODEL) is None
    assert partial().read_bytes() == CONTENT
    server.requests.clear()
    assert fetch(MODEL).read_bytes() == CONTENT
    assert server.gets() == []


def test_cancel_leaves_what_arrived(server: Hub) -> None:
    arrived: list[int] = []
    with pytest.raises(Cancelled):
        fetch(MODEL, progress=lambda done, _: arrived.append(done), cancel=lambda: arrived[-1:] > [HELD])
    assert cached(MODEL) is None
    assert HELD < partial().stat().st_size == arrived[-1] < len(CONTENT)
    assert fetch(MODEL).read_bytes() == CONTENT


def test_a_slow_server_is_left(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    server.delay = 0.4
    refuse("Timeout", MODEL.pull_command)


# -------------------------------------------------------------------------------------------- wrong content


def test_a_wrong_file_is_removed(server: Hub) -> None:
    server.body = CONTENT[:-1] + b"?"
    got = hashlib.sha256(server.body).hexdigest()
    refuse("damaged", f"SHA-256 is {got}, expected is {SHA256}", "was removed", MODEL.url)
    assert list((folder() / "blobs").iterdir()) == []
    server.body = CONTENT
    assert fetch(MODEL).read_bytes() == CONTENT


@pytest.mark.parametrize("rubbish", [b"x" * HELD, b"x" * len(CONTENT), b"x" * (len(CONTENT) + 1)])
def test_rubbish_from_before_is_found_out(server: Hub, rubbish: bytes) -> None:
    partial().parent.mkdir(parents=True)
    partial().write_bytes(rubbish)
    if len(rubbish) <= len(CONTENT):
        refuse("damaged", "was removed")
    assert fetch(MODEL).read_bytes() == CONTENT


def test_a_server_whose_file_ends_before_ours_is_asked_for_all(server: Hub) -> None:
    partial().parent.mkdir(parents=True)
    partial().write_bytes(b"x" * HELD)
    server.get_statuses = [416]
    assert fetch(MODEL).read_bytes() == CONTENT
    assert server.gets() == [f"bytes={HELD}-", ""]


def test_a_server_that_sends_too_much_does_not_fill_the_disk(server: Hub) -> None:
    server.body = CONTENT + bytes(10**6)
    assert fetch(MODEL).stat().st_size == len(CONTENT)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": 5}, "5 bytes instead of 400000"),
        ({"etag": "0" * 64}, f"SHA-256 {'0' * 64} instead of {SHA256}"),
    ],
)
def test_another_file_under_the_name_is_not_even_started(
    server: Hub, change: dict[str, Any], said: str
) -> None:
    for name, value in change.items():
        setattr(server, name, value)
    refuse(said, "not the published file", "update masklet", MODEL.url)
    assert server.gets() == []


@pytest.mark.parametrize(
    "change", [{"commit": None}, {"commit": "../../x"}, {"etag": "../../x"}, {"etag": ".."}]
)
def test_a_server_that_is_no_hub_is_refused(server: Hub, change: dict[str, Any], tmp_path: Path) -> None:
    for name, value in change.items():
        setattr(server, name, value)
    refuse("not like a Hugging Face hub", "HF_ENDPOINT")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------ the hub says no


@pytest.mark.parametrize(
    ("status", "code", "token", "parts"),
    [
        (
            401,
            "GatedRepo",
            None,
            ["licence must be accepted", "https://huggingface.co/facebook/", "hf auth login"],
        ),
        (403, "GatedRepo", "hf_x", ["licence must be accepted", "token of that account", MODEL.pull_command]),
        (401, "RepoNotFound", None, ["Ask for access", "hf auth login", "HF_TOKEN"]),
        (401, "", "hf_x", ["refuses your token", "hf auth logout"]),
        (403, "", "hf_x", ["refuses your token", "may read it"]),
        (404, "RepoNotFound", None, ["no such file", "HF_ENDPOINT", MODEL.url]),
        (404, "EntryNotFound", None, ["no such file", MODEL.url]),
        (404, "RevisionNotFound", None, ["revision main", MODEL.url]),
        (429, "", None, ["too many requests", "Wait"]),
        (500, "", None, ["on its side", "Try again later"]),
        (418, "", None, ["418"]),
    ],
)
def test_a_refusal_gives_the_next_step(
    server: Hub,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    code: str,
    token: str | None,
    parts: list[str],
) -> None:
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    server.head_status = status
    server.error_headers = {"X-Error-Code": code} if code else {}
    message = refuse(f"answered {status} for {MODEL.filename} of {MODEL.repo_id}", *parts)
    assert "\n" not in message
    assert "hf_x" not in message
    assert server.gets() == []


def test_a_refusal_of_the_transfer_is_told_at_once(server: Hub) -> None:
    server.get_statuses = [403]
    refuse("answered 403", "hf auth login")
    assert len(server.gets()) == 1


def test_a_server_that_stays_in_trouble_is_given_up(server: Hub) -> None:
    server.get_statuses = [503] * 9
    refuse("answered 503", "Try again later")


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://127.0.0.1:9",
        "http://192.0.2.1",
        "nonsense",
        "ftp://127.0.0.1",
        "http://",
        "http://127.0.0.1:port",
        "http://[::",
    ],
)
def test_an_address_that_does_not_answer_is_told(server: Hub, endpoint: str) -> None:
    refuse(endpoint.rstrip("/"), "HF_ENDPOINT", endpoint=endpoint)
    assert server.requests == []


def test_a_repository_that_cannot_be_is_told(server: Hub) -> None:
    refuse("a--b..c", file=dataclasses.replace(MODEL, repo_id="a--b..c"))


# ------------------------------------------------------------------------------------- offline, disk, locks


@pytest.mark.parametrize("reason", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "offline=True"])
def test_offline_nothing_is_asked_for(server: Hub, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    by_caller = reason == "offline=True"
    if not by_caller:
        monkeypatch.setenv(reason, "1")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    copied = [folder().name, str(folder().parent), "path of a file"]
    refuse(reason, MODEL.pull_command, *copied, offline=by_caller)
    assert server.requests == []


def test_offline_a_cached_file_is_found(server: Hub) -> None:
    path = fetch(MODEL)
    server.requests.clear()
    assert fetch(MODEL, offline=True) == path
    assert server.requests == []


def test_a_disk_without_room_is_told_before_the_download(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(shutil.disk_usage("."))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6 - 1000, 1000))
    refuse("0 MB free", "HF_HUB_CACHE")
    assert server.gets() == []


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "is full"),
        (errno.EROFS, "cannot be written"),
        (errno.EACCES, "cannot be written"),
        (errno.EIO, "cannot be used"),
    ],
)
def test_a_disk_that_fails_is_told(
    server: Hub, monkeypatch: pytest.MonkeyPatch, code: int, said: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        refuse(said, "HF_HUB_CACHE")
    assert fetch(MODEL).read_bytes() == CONTENT


def test_a_cache_that_is_no_folder_is_told(
    server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file"))
    refuse(str(tmp_path / "file"), "HF_HUB_CACHE")


def test_waiting_for_another_process_can_be_cancelled(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_LOCK_SECONDS", 0.05)
    partial().parent.mkdir(parents=True)
    partial().write_bytes(CONTENT[:HELD])
    lock = folder().parent / ".locks" / folder().name / f"{SHA256}.lock"
    lock.parent.mkdir(parents=True)
    seen: list[int] = []
    with huggingface_hub.utils.WeakFileLock(lock), pytest.raises(Cancelled):
        fetch(MODEL, progress=lambda done, _: seen.append(done), cancel=lambda: len(seen) == 2)
    assert seen == [HELD, HELD]  # how far the other one has come
    assert fetch(MODEL).read_bytes() == CONTENT


@pytest.mark.parametrize("links", [True, False])
def test_two_processes_download_once(server: Hub, links: bool) -> None:
    server.clients, server.delay = 2, 0.02
    program = (
        "import dataclasses; from masklet.io.hub import fetch; from masklet.registry import find\n"
        f"model = dataclasses.replace(find({MODEL.name!r}), size_bytes={len(CONTENT)}, sha256={SHA256!r})\n"
        "print(fetch(model), end='')"
    )
    settings = {"HF_HUB_CACHE": constants.HF_HUB_CACHE, "HF_ENDPOINT": server.address}
    settings["HF_HUB_DISABLE_SYMLINKS"] = "0" if links else "1"
    sources = {"PYTHONPATH": str(Path(hub.__file__).parents[2])}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program], env={**os.environ, **settings, **sources}, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=60)[0].decode() for process in running]
    assert printed == [str(cached(MODEL))] * 2
    assert [process.returncode for process in running] == [0, 0]
    assert [method for method, _, _ in server.requests].count("HEAD") == 2
    assert server.gets() == [""]
