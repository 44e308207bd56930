"""Published files: found in huggingface_hub's cache, or downloaded into it.

In: a `HubFile` of the registry. Out: the path of a file that is whole and, after a download, has the SHA-256
that the registry states. Knows nothing about what is in the file.

Addresses, tokens, client, locks and the cache's layout are huggingface_hub's, so HF_HOME, HF_HUB_CACHE,
HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE and the proxy variables work as users know them, and other programs find
the file afterwards. The transfer is our own, because `hf_hub_download` of today (2.4) throws an interrupted
download away. Ours fills `<etag>.incomplete` beside the blobs, continues there, checks the whole file, and
only then gives it the name under which programs look for it. Needs huggingface_hub 1.0 or later.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from masklet.errors import Cancelled, DownloadError
from masklet.registry import BundledModel, HubFile

Progress = Callable[[int, int], None]  # bytes done, bytes in all
Cancel = Callable[[], bool]

_HASH_BYTES = 1 << 20  # between two looks at `cancel`
_LOCK_SECONDS = 0.5  # between two looks at `cancel` while another process downloads the same file
# Seconds before each new attempt when the last one brought nothing new; one that did starts the list again.
_PAUSES = (0.5, 1.0, 2.0, 4.0)
_TRANSIENT = {408, 429, 500, 502, 503, 504}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SAFE_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]*")


@dataclass(frozen=True)
class _Source:
    """What the hub says about a file, and where the cache keeps it."""

    file: HubFile
    url: str  # of the exact commit
    headers: dict[str, str]
    commit: str
    etag: str  # the blob's name in the cache; for large files their SHA-256
    folder: Path  # the repository's in the cache

    @property
    def blob(self) -> Path:
        return self.folder / "blobs" / self.etag

    @property
    def partial(self) -> Path:
        return self.folder / "blobs" / f"{self.etag}.incomplete"

    @property
    def sha256(self) -> str | None:
        return self.file.sha256 or (self.etag if _SHA256.fullmatch(self.etag) else None)


def cached(file: HubFile | BundledModel) -> Path | None:
    """The file in the package or in huggingface_hub's cache, None when it isn't there. Never touches the
    network.

    Looks at the size, not at the hash, which would take seconds on every start; `verify` does.
    """
    if isinstance(file, BundledModel):
        return file.path
    snapshots = _repo_folder(file.repo_id) / "snapshots"
    # Any commit will do, because the registry says what the file must be; the branch's own comes first.
    for path in (
        snapshots / _branch_commit(file) / file.filename,
        *sorted(snapshots.glob(f"*/{file.filename}")),
    ):
        if _size(path) == file.size_bytes:
            return path
    return None


def fetch(
    file: HubFile | BundledModel,
    *,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    endpoint: str | None = None,
    offline: bool = False,
) -> Path:
    """The local path of `file`, which is downloaded when the cache doesn't have it.

    `progress(done, total)` gets bytes, `done` starting at what an earlier download left; it can fall when a
    server cannot continue and the file starts anew. `cancel()` is asked often; True raises Cancelled.
    `endpoint` replaces HF_ENDPOINT. `offline` forbids the network, as HF_HUB_OFFLINE does.

    Raises DownloadError with the next step. What has arrived by then, by Ctrl-C or by `cancel`, is kept and
    continued by the next call, unless its content is wrong. Several processes may fetch the same file.
    """
    if isinstance(file, BundledModel):
        return file.path
    found = cached(file)
    if found is not None:
        return found
    from huggingface_hub import constants

    address = (endpoint or constants.ENDPOINT).rstrip("/")
    if offline or constants.HF_HUB_OFFLINE:
        variable = "HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE") else "TRANSFORMERS_OFFLINE"
        raise _offline_error(file, "offline=True" if offline else variable)
    if not _is_web_address(address):
        raise DownloadError(
            f"HF_ENDPOINT is {address!r}; it must be an address such as https://huggingface.co."
        )
    try:
        source = _locate(file, address)
        with _lock(source, progress, cancel):
            found = cached(file)  # another process may have been faster
            if found is not None:
                return found
            if not _is_right(source.blob, source, cancel):
                _download(source, progress, cancel)
            return _publish(source)
    except _foreign_errors() as error:
        raise _explained(error, file, address) from error


def _is_web_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, a bracket that isn't closed
        return False


def verify(file: HubFile, path: Path, *, cancel: Cancel | None = None) -> None:
    """Check size and SHA-256 of a copy of `file`. Raises DownloadError; leaves the copy alone."""
    try:
        got = _mismatch(path, file.size_bytes, file.sha256, cancel)
    except OSError as error:
        raise DownloadError(f"{path} cannot be read: {error.strerror or error}.") from error
    if got is not None:
        raise DownloadError(
            f"{path} is not the published {file.filename}: {got}. Delete it and run `{file.pull_command}`."
        )


# ------------------------------------------------------------------------------------------------- the cache


def _repo_folder(repo_id: str) -> Path:
    # `constants` alone: the rest of huggingface_hub takes half a second to import.
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repo_id.replace('/', '--')}"


def _branch_commit(file: HubFile) -> str:
    try:
        return (_repo_folder(file.repo_id) / "refs" / file.revision).read_text(encoding="ascii").strip()
    except (OSError, UnicodeError):
        return file.revision


def _publish(source: _Source) -> Path:
    """Give the blob its name in the snapshot of its commit, and the commit that of its branch."""
    from huggingface_hub import constants

    path = source.folder / "snapshots" / source.commit / source.file.filename
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        if getattr(constants, "HF_HUB_DISABLE_SYMLINKS", False):  # huggingface_hub 1.0 lacks it
            raise NotImplementedError
        temporary.symlink_to(os.path.relpath(source.blob, path.parent))
        os.replace(temporary, path)
    except (OSError, NotImplementedError):
        # As huggingface_hub does where links are not to be had: the file itself lies in the snapshot.
        temporary.unlink(missing_ok=True)
        os.replace(source.blob, path)

    if source.file.revision != source.commit:
        reference = source.folder / "refs" / source.file.revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        temporary = reference.parent / f".{secrets.token_hex(8)}.tmp"
        temporary.write_text(source.commit, encoding="ascii")
        os.replace(temporary, reference)
    return path


@contextmanager
def _lock(source: _Source, progress: Progress | None, cancel: Cancel | None) -> Iterator[None]:
    """huggingface_hub's own lock of the blob: one process downloads, the others wait for it."""
    from huggingface_hub.utils import WeakFileLock

    path = source.folder.parent / ".locks" / source.folder.name / f"{source.etag}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    source.blob.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(WeakFileLock(path, timeout=_LOCK_SECONDS))
                break
            except TimeoutError:
                _report(progress, _size(source.partial), source.file.size_bytes)
                _stop_if(cancel)
        yield


# ---------------------------------------------------------------------------------------------- the transfer


def _locate(file: HubFile, endpoint: str) -> _Source:
    """Ask the hub for the file's commit and identity, and refuse what is not the published file."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    headers = build_hf_headers(library_name="masklet")
    url = hf_hub_url(file.repo_id, file.filename, revision=file.revision, endpoint=endpoint)
    metadata = get_hf_file_metadata(url, headers=headers, endpoint=endpoint)
    commit, etag = metadata.commit_hash or "", metadata.etag or ""
    if not _SAFE_NAME.fullmatch(commit) or not _SAFE_NAME.fullmatch(etag):  # they become file names
        raise DownloadError(
            f"{endpoint} answered, but not like a Hugging Face hub (commit {commit!r}, etag {etag!r}). "
            "Check HF_ENDPOINT, and whether a proxy or a login page stands in between."
        )

    other = None
    if metadata.size is not None and metadata.size != file.size_bytes:
        other = f"{metadata.size} bytes instead of {file.size_bytes}"
    elif file.sha256 and _SHA256.fullmatch(etag) and etag != file.sha256:
        other = f"SHA-256 {etag} instead of {file.sha256}"
    if other is not None:
        raise DownloadError(
            f"{file.filename} in {file.repo_id} at {endpoint} is not the published file: {other}. "
            "Nothing was downloaded. If HF_ENDPOINT names a mirror, unset it; otherwise update masklet, or "
            f"download {file.manual_url} and give the file's path."
        )
    return _Source(
        file=file,
        url=hf_hub_url(file.repo_id, file.filename, revision=commit, endpoint=endpoint),
        headers={**headers, "Accept-Encoding": "identity"},
        commit=commit,
        etag=etag,
        folder=_repo_folder(file.repo_id),
    )


def _download(source: _Source, progress: Progress | None, cancel: Cancel | None) -> None:
    """Fill the partial file, check it, and make it the blob."""
    total = source.file.size_bytes
    if _size(source.partial) > total:
        source.partial.unlink()
    _check_room(source.partial, total)
    _report(progress, _size(source.partial), total)

    failures = 0
    while (before := _size(source.partial)) < total:
        error = _attempt(source, progress, cancel)
        if _size(source.partial) > before:
            failures = 0
            continue
        if failures == len(_PAUSES):
            raise error or DownloadError(
                f"The server stopped sending {source.file.filename} at {before} of {total} bytes, and asking "
                f"again {failures} times brought nothing. What has arrived is kept: "
                f"run `{source.file.pull_command}` to continue."
            )
        _wait(_PAUSES[failures], cancel)
        failures += 1

    got = _mismatch(source.partial, total, source.sha256, cancel)
    if got is not None:
        source.partial.unlink()
        raise DownloadError(
            f"The download of {source.file.filename} is damaged: {got}. It was removed. Run "
            f"`{source.file.pull_command}` again. If it stays so, a proxy or mirror changes the file: "
            f"download {source.file.manual_url} by other means and give the file's path."
        )
    os.replace(source.partial, source.blob)


def _attempt(source: _Source, progress: Progress | None, cancel: Cancel | None) -> Exception | None:
    """One request for what is missing. Returns the error when another attempt may help, raises the others."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        _transfer(source, progress, cancel)
    except HfHubHTTPError as error:
        if error.response.status_code == 416:  # the server's file ends before ours
            source.partial.unlink(missing_ok=True)
        elif error.response.status_code not in _TRANSIENT:
            raise
        return error
    except _client_errors() as error:
        return error
    return None


def _transfer(source: _Source, progress: Progress | None, cancel: Cancel | None) -> None:
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import hf_raise_for_status

    total, start = source.file.size_bytes, _size(source.partial)
    headers = {**source.headers, **({"Range": f"bytes={start}-"} if start else {})}
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with ExitStack() as stack:
        client: Any = get_session()  # follows redirects, and shows the token to the hub alone
        response = stack.enter_context(client.stream("GET", source.url, headers=headers, timeout=timeout))
        hf_raise_for_status(response)
        sink = stack.enter_context(open(source.partial, "ab"))
        continued = response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if start and not (response.status_code == 206 and continued):
            sink.truncate(0)
            start = 0
        done = start
        # As they arrive: chunks of a given size would lose what came before a cut.
        for chunk in response.iter_bytes():
            _stop_if(cancel)
            sink.write(chunk[: total - done])  # a server that sends too much doesn't fill the disk
            done = min(total, done + len(chunk))
            _report(progress, done, total)
            if done == total:
                break
        sink.flush()
        os.fsync(sink.fileno())


# --------------------------------------------------------------------------------------------------- checks


def _mismatch(path: Path, size: int, sha256: str | None, cancel: Cancel | None) -> str | None:
    """What is wrong with a file, None when nothing is."""
    if path.stat().st_size != size:
        return f"it has {path.stat().st_size} bytes, expected are {size}"
    if sha256 is None:
        return None
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_HASH_BYTES):
            _stop_if(cancel)
            digest.update(block)
    got = digest.hexdigest()
    return None if got == sha256 else f"its SHA-256 is {got}, expected is {sha256}"


def _is_right(blob: Path, source: _Source, cancel: Cancel | None) -> bool:
    """True for a blob that is there and whole, as when another commit of the repository has it too."""
    return blob.is_file() and _mismatch(blob, source.file.size_bytes, source.sha256, cancel) is None


def _check_room(partial: Path, total: int) -> None:
    missing, free = total - _size(partial), shutil.disk_usage(partial.parent).free
    if missing > free:
        raise DownloadError(
            f"The disk of {partial.parent} has {free / 1e6:.0f} MB free, {missing / 1e6:.0f} MB are needed. "
            "Make room, or let HF_HUB_CACHE name a folder on another disk."
        )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # not there, or a folder in between is not one
        return 0


def _report(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)


def _stop_if(cancel: Cancel | None) -> None:
    if cancel is not None and cancel():
        raise Cancelled("The download was cancelled; what has arrived is kept.")


def _wait(seconds: float, cancel: Cancel | None) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        _stop_if(cancel)
        time.sleep(min(left, 0.1))


# ----------------------------------------------------------------------------------------------- next steps


def _client_errors() -> tuple[type[Exception], ...]:
    """The base of the HTTP client's errors: httpx's under huggingface_hub 1, httpx2's under 2."""
    from huggingface_hub.errors import HfHubHTTPError

    return tuple(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")  # type: ignore[misc]


def _foreign_errors() -> tuple[type[Exception], ...]:
    # ValueError: a repository's name that huggingface_hub refuses.
    return (OSError, ValueError, *_client_errors())


def _offline_error(file: HubFile, reason: str) -> DownloadError:
    folder = _repo_folder(file.repo_id)
    return DownloadError(
        f"{file.filename} is not in the cache and {reason} forbids the network. Allow it and run "
        f"`{file.pull_command}`; or run that on another machine and copy its folder {folder.name} to "
        f"{folder.parent}; or give the path of a file that you have."
    )


def _explained(error: Exception, file: HubFile, endpoint: str) -> DownloadError:
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return DownloadError(_status_message(error, file, endpoint))
    if isinstance(error, _client_errors()):
        return DownloadError(
            f"{endpoint} cannot be reached ({_in_one_line(error)}). Check the network, the proxy variables "
            f"and HF_ENDPOINT, then run `{file.pull_command}`: it continues with what has arrived. "
            f"Without network: download {file.manual_url} on another machine and give the file's path."
        )
    if isinstance(error, OSError):
        return DownloadError(_disk_message(error, _repo_folder(file.repo_id).parent))
    return DownloadError(f"{file.filename} of {file.repo_id} cannot be asked for: {_in_one_line(error)}.")


def _status_message(error: Any, file: HubFile, endpoint: str) -> str:
    from huggingface_hub import get_token
    from huggingface_hub.errors import GatedRepoError

    status = error.response.status_code
    said = f"{endpoint} answered {status} for {file.filename} of {file.repo_id}"
    page = f"https://huggingface.co/{file.repo_id}"
    login = "run `hf auth login` (or set HF_TOKEN)"
    token = get_token() is not None
    if isinstance(error, GatedRepoError):
        return (
            f"{said}: its licence must be accepted first. Log in and accept it at {page}, then {login} "
            f"with a token of that account, and run `{file.pull_command}`."
        )
    if status in (401, 403) and token:
        return (
            f"{said}: it refuses your token. A public file needs none: `hf auth logout`, or unset HF_TOKEN. "
            f"For a private or gated one ask for access at {page} and {login} with a token that may read it."
        )
    if status in (401, 403):
        return f"{said}: it wants to know who asks. Ask for access at {page}, then {login}."
    if status == 404:
        return (
            f"{said}: no such file at revision {file.revision}. If HF_ENDPOINT names a mirror, unset it; "
            f"or download {file.manual_url} and give the file's path."
        )
    if status == 429:
        return f"{said}: too many requests. Wait some minutes; {login} raises the limit. Nothing is lost."
    if status >= 500:
        return f"{said}: the trouble is on its side. Try again later; what has arrived is kept."
    return f"{said}: {_in_one_line(error)}."


def _disk_message(error: OSError, cache: Path) -> str:
    another = "let HF_HUB_CACHE name another folder"
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):  # Windows has no quota error
        return f"The disk of {cache} is full. What has arrived is kept: make room and rerun, or {another}."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"The cache cannot be written: {_in_one_line(error)}. Change its permissions, or {another}."
    return f"The cache {cache} cannot be used: {_in_one_line(error)}. Repair or remove it, or {another}."


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
