"""Fetching pinned files from a URL or a folder: known SHA-256 and row count, resumed, never replacing what differs.

A file is collected in ``.NAME.part`` beside its place and takes its name only when its hash is right. A broken transfer
leaves the part, and the next attempt, or the next run, asks the server for the rest (HTTP Range); a server that ignores
this is read from the start.
"""

import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from codes.common.cli import RunFailed, progress
from codes.common.records import InputError, file_sha256
from codes.common.run_info import redact

ATTEMPTS = 4
TIMEOUT_SECONDS = 30.0
LARGEST_FILE = 1 << 28
_BLOCK = 1 << 16


@dataclass(frozen=True)
class PinnedFile:
    """A file that may only be this one: its name, rows (lines that are not blank) and SHA-256 in hexadecimal."""

    name: str
    rows: int
    sha256: str


def fetch_pinned_file(source: str, file: PinnedFile, folder: Path, *, attempts: int = ATTEMPTS) -> bool:
    """Put the file from ``source`` (a URL or a folder that holds it) into ``folder``; False if it was there already.

    Raises InputError where another file has the name, or a source folder's file is absent or another one; RunFailed
    where a server's is, or where it cannot be had. Nothing wrong ever stands under the file's name.
    """
    place = folder / file.name
    if place.exists():
        found = file_sha256(place)
        if found != file.sha256:
            raise InputError(f"{place}: is there with sha256 {found}, not {file.sha256}; move it away to fetch it")
        return False
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{file.name}.part"
    if is_url(source):
        url = f"{source.rstrip('/')}/{urllib.parse.quote(file.name)}"
        left_over = part.exists()
        _download(url, part, attempts)
        if left_over and file_sha256(part) != file.sha256:
            # What an earlier run left may be of another file; then the whole is wrong and is fetched afresh.
            part.unlink()
            _download(url, part, attempts)
    else:
        _copy(Path(source) / file.name, part)
    origin = redact(f"{source.rstrip('/')}/{file.name}")
    try:
        _check(part, file, origin)
    except InputError as error:
        part.unlink()
        if is_url(source):
            raise RunFailed(str(error)) from None
        raise
    os.replace(part, place)
    return True


def is_url(source: str) -> bool:
    return re.match(r"https?://", source) is not None


def _copy(origin: Path, part: Path) -> None:
    if not origin.is_file():
        raise InputError(f"{origin}: no such file")
    shutil.copyfile(origin, part)


def _check(part: Path, file: PinnedFile, origin: str) -> None:
    found = file_sha256(part)
    if found != file.sha256:
        raise InputError(f"{origin}: sha256 is {found}, expected {file.sha256}; it is another file")
    with open(part, "rb") as lines:
        rows = sum(1 for line in lines if line.strip())
    if rows != file.rows:
        raise InputError(f"{origin}: {rows} rows, expected {file.rows}")


# --- Over HTTP ---------------------------------------------------------------------------------------------------


def _download(url: str, part: Path, attempts: int) -> None:
    """Fill ``part`` until the server says that it is whole. Raises RunFailed after the last attempt; the part stays."""
    for attempt in range(1, attempts + 1):
        try:
            if _download_rest(url, part):
                return
            problem = "the transfer ended early"
        except urllib.error.HTTPError as error:
            problem = f"the server answered {error.code} {error.reason}"
            if error.code < 500 and error.code not in (408, 429):
                break
        except (OSError, http.client.HTTPException) as error:
            problem = str(getattr(error, "reason", error)) or type(error).__name__
        except ValueError as error:
            raise InputError(f"{redact(url)}: is no URL that can be read: {error}") from None
        if attempt < attempts:
            time.sleep(min(0.5 * 2**attempt, 10.0))
    raise RunFailed(
        f"{redact(url)}: could not be fetched ({problem}); run the same command again to continue, "
        "or give a folder that holds the files (--from DIR)"
    )


def _download_rest(url: str, part: Path) -> bool:
    """Append to ``part`` what is missing of the file behind ``url``; whether it is whole afterwards."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", "User-Agent": "contrastrm"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        # Nothing follows what is there: whole, or too long and then caught by its hash.
        return True
    with response:
        if response.status == 206 and _range_start(response) != have:
            raise ConnectionError("the server sent another range than the one asked for")
        if response.status != 206:
            have = 0
        length = response.headers.get("Content-Length")
        expected = have + int(length) if length and length.isdigit() else None
        have = _append(response, part, have, expected)
    return expected is None or have >= expected


def _range_start(response) -> int | None:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _append(response, part: Path, have: int, expected: int | None) -> int:
    """Write the body after the first ``have`` bytes, as it arrives; returns the size reached."""
    with open(part, "ab", buffering=0) as file, progress(total=expected, desc=part.name, unit="B") as bar:
        file.truncate(have)
        bar.update(have)
        while block := response.read1(_BLOCK):
            have += len(block)
            if have > LARGEST_FILE:
                raise RunFailed(f"{part}: the server sends more than {LARGEST_FILE} bytes; given up")
            file.write(block)
            bar.update(len(block))
    return have
