"""Source files of vLLM releases, read out of their wheels by HTTP ranges: nothing is installed or downloaded whole."""

import io
import re
import subprocess
import sys
import zipfile
from functools import cache
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urljoin
from urllib.request import Request, urlopen

CACHE = Path("~/.cache/fastgrpo/vllm_sources").expanduser()
_TIMEOUT_S = 60
_CHUNK = 1 << 16  # bytes read ahead: one request for a file's header and, mostly, its contents


class _Remote(io.RawIOBase):
    """A file behind HTTP, read by ranges. OSError when the server does not serve them."""

    def __init__(self, url: str):
        self._url, self._position = url, 0
        with urlopen(Request(url, method="HEAD"), timeout=_TIMEOUT_S) as response:
            self._length = int(response.headers["Content-Length"])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        end = min(self._position + len(buffer), self._length)
        if end <= self._position:
            return 0
        request = Request(self._url, headers={"Range": f"bytes={self._position}-{end - 1}"})
        with urlopen(request, timeout=_TIMEOUT_S) as response:
            if response.status != 206:
                raise OSError(f"{self._url} does not serve byte ranges")
            data = response.read(end - self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _index_url() -> str:
    """Where this environment's pip looks: its configuration files, PIP_INDEX_URL, or its own default."""
    from pip._internal.models.index import PyPI

    settings = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    found = dict(re.findall(r"^(\S+)\.index-url='(.+)'$", settings, re.MULTILINE))
    url = found.get(":env:") or found.get("install") or found.get("global") or PyPI.simple_url
    return url.rstrip("/") + "/"


Release = tuple[int, int, int]


@cache
def _wheels() -> dict[Release, str]:
    """Release -> address of its x86-64 wheel, as pip's index lists them; pre-releases are left out."""
    page = _index_url() + "vllm/"
    with urlopen(Request(page, headers={"Accept": "text/html"}), timeout=_TIMEOUT_S) as response:
        page, text = response.url, response.read().decode()
    wheels: dict[Release, str] = {}
    for link in map(unescape, re.findall(r'href="([^"#]+)', text)):
        if match := re.search(r"/vllm-(\d+)\.(\d+)\.(\d+)-[^/]*x86_64\.whl$", link):
            major, minor, patch = map(int, match.groups())
            wheels[major, minor, patch] = urljoin(page, link)
    return wheels


@cache
def _wheel(release: Release) -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BufferedReader(_Remote(_wheels()[release]), _CHUNK))


def newest_patch(minor: tuple[int, int]) -> Release:
    """The last release of a minor version. OSError if there is none or the index cannot be read."""
    releases = [release for release in _wheels() if release[:2] == minor]
    if not releases:
        raise OSError(f"the package index lists no x86-64 wheel of vllm {minor[0]}.{minor[1]}")
    return max(releases)


def source(release: Release, path: str, cache_folder: Path = CACHE) -> str:
    """Text of one file of a release, such as `vllm/sampling_params.py`; read from `cache_folder` if it is there.

    KeyError if the release has no such file, OSError if it cannot be read.
    """
    kept = cache_folder / ".".join(map(str, release)) / path
    if not kept.exists():
        contents = _wheel(release).read(path)
        kept.parent.mkdir(parents=True, exist_ok=True)
        (whole := kept.with_name(kept.name + ".part")).write_bytes(contents)
        whole.replace(kept)
    return kept.read_text()
