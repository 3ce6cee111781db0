"""Where a mirror's objects are: in a bucket, or in a folder. Each is written whole or not at all.

All names are relative to the mirror, with slashes. The one thing that a mirror needs besides
reading and writing is `create`, which of several writers lets one succeed.
"""

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

from tvf.errors import InputError
from tvf.files import write_whole
from tvf.owners import temporary_beside

# Protocols that can create an object only where there is none, and the library for each.
LIBRARIES = {"s3": "s3fs", "gs": "gcsfs", "file": ""}
IN_MEMORY = 16 << 20  # bytes: larger files are uploaded in parts
# So that a server which does not answer costs seconds, and is tried again later.
S3_OPTIONS = {
    "config_kwargs": {
        "connect_timeout": 5,
        "read_timeout": 30,
        "retries": {"max_attempts": 2},
        "max_pool_connections": 32,
    }
}


class Unreachable(Exception):
    """The mirror does not answer, or not with what was asked for."""


class Store(Protocol):
    """The objects of a mirror. Every method raises Unreachable."""

    def read(self, name: str) -> bytes:
        """An object's content; FileNotFoundError if there is none."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write an object, or replace it."""
        ...

    def create(self, name: str, content: bytes) -> bool:
        """Write an object if there is none of this name; return whether there was none."""
        ...

    def upload(self, name: str, file: BinaryIO) -> None:
        """Write an object with the content of an open file."""
        ...

    def download(self, name: str, path: Path) -> None:
        """Write an object's content to the file `path`; FileNotFoundError if there is none."""
        ...

    def delete(self, name: str) -> None:
        """Delete an object, if there is one."""
        ...

    def listing(self, folder: str) -> dict[str, float]:
        """When the objects in `folder` were written, in seconds of the store's clock, by name."""
        ...


def check_mirror(url: object) -> None:
    """Raise InputError unless `url` can name a mirror."""
    if not isinstance(url, str) or "://" not in url:
        such = f"file://{url}" if str(url).startswith("/") else "s3://BUCKET/FOLDER"
        raise InputError(f"mirror={url} must be a URL, such as {such}, or null for none.")
    protocol, _, place = url.partition("://")
    if protocol not in LIBRARIES:
        raise InputError(
            f"mirror={url} must begin with {', '.join(f'{name}://' for name in LIBRARIES)}: these "
            "stores can create an object only where there is none, which keeps two machines from "
            "training the same job."
        )
    if protocol == "file":
        if not place.startswith("/") or not place.strip("/"):
            raise InputError(f"mirror={url} must name an absolute folder: file:///FOLDER.")
    elif not place.partition("/")[0] or not place.partition("/")[2].strip("/"):
        raise InputError(
            f"mirror={url} must name a bucket and a folder: {protocol}://BUCKET/FOLDER."
        )


def check_apart(url: str, folder: Path) -> None:
    """Raise InputError if the sweep's folder and its mirror are in each other."""
    if not url.startswith("file://"):
        return
    there, here = Path(unquote(urlsplit(url).path)).resolve(), folder.resolve()
    if there in (here, *here.parents) or here in there.parents:
        raise InputError(
            f"mirror={url} and the sweep's folder, {folder}, must not be in each other: choose "
            "another hydra.sweep.dir."
        )


def is_mirror(folder: Path) -> bool:
    """Whether a folder has the claims of a mirror's jobs."""
    return next(folder.glob("*/claims/*.json"), None) is not None


def open_store(url: str) -> Store:
    """The store at `url`. Raises InputError if its library is missing, and Unreachable."""
    check_mirror(url)
    protocol = url.partition("://")[0]
    if protocol == "file":
        return FolderStore(Path(unquote(urlsplit(url).path)))
    return ObjectStore(url, **(S3_OPTIONS if protocol == "s3" else {}))


class ObjectStore:
    """Objects in a bucket, by the library fsspec, whose libraries for it start threads."""

    def __init__(self, url: str, **options: Any) -> None:
        protocol = url.partition("://")[0]
        try:
            import fsspec

            fsspec.get_filesystem_class(protocol)
        except ImportError as error:
            library = LIBRARIES.get(protocol, "fsspec")
            command = "pip install 'tvf[s3]'" if library == "s3fs" else f"pip install {library}"
            raise InputError(
                f"mirror={url} needs {library}, which cannot be imported ({error}): {command}."
            ) from error
        with _answers():
            # Without caches: another machine may have written meanwhile.
            self._fs, self._root = fsspec.url_to_fs(
                url, use_listings_cache=False, skip_instance_cache=True, **options
            )

    def read(self, name: str) -> bytes:
        with _answers(missing=True):
            return self._fs.cat_file(self._path(name))

    def write(self, name: str, content: bytes) -> None:
        with _answers():
            self._fs.pipe_file(self._path(name), content)

    def create(self, name: str, content: bytes) -> bool:
        try:
            with _answers():
                self._fs.pipe_file(self._path(name), content, mode="create")
        except FileExistsError:
            return False
        return True

    def upload(self, name: str, file: BinaryIO) -> None:
        size = file.seek(0, os.SEEK_END)
        if size <= IN_MEMORY or isinstance(file, io.BytesIO):
            file.seek(0)
            self.write(name, file.read())
            return
        with _answers():  # this very file, even if another has its name by now
            self._fs.put_file(f"/dev/fd/{file.fileno()}", self._path(name))

    def download(self, name: str, path: Path) -> None:
        with _answers(missing=True):
            self._fs.get_file(self._path(name), str(path))

    def delete(self, name: str) -> None:
        with _answers(missing=True), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def listing(self, folder: str) -> dict[str, float]:
        with _answers():
            found = self._fs.find(self._path(folder), detail=True)
            return {
                f"{folder}/{path.rpartition('/')[2]}": _modified(info)
                for path, info in found.items()
            }

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"


class FolderStore:
    """Files in a folder, of a disk that machines share or for a trial."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, name: str) -> bytes:
        with _answers(missing=True):
            return (self._root / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        with _answers():
            write_whole(self._path(name), content)

    def create(self, name: str, content: bytes) -> bool:
        with _answers():
            path = self._path(name)
            aside = temporary_beside(path)
            try:
                write_whole(aside, content)
                os.link(aside, path)
            except FileExistsError:
                return False
            finally:
                aside.unlink(missing_ok=True)
        return True

    def upload(self, name: str, file: BinaryIO) -> None:
        with _answers():
            path = self._path(name)
            aside = temporary_beside(path)
            file.seek(0)
            try:
                with aside.open("xb") as copy:
                    shutil.copyfileobj(file, copy)
                aside.replace(path)
            finally:
                aside.unlink(missing_ok=True)

    def download(self, name: str, path: Path) -> None:
        with _answers(missing=True):
            shutil.copyfile(self._root / name, path)

    def delete(self, name: str) -> None:
        with _answers():
            (self._root / name).unlink(missing_ok=True)

    def listing(self, folder: str) -> dict[str, float]:
        found = dict[str, float]()
        with _answers():
            for path in (self._root / folder).glob("[!.]*"):
                with suppress(FileNotFoundError):
                    found[f"{folder}/{path.name}"] = path.stat().st_mtime
        return found

    def _path(self, name: str) -> Path:
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


@contextmanager
def _answers(missing: bool = False) -> Iterator[None]:
    """Raise Unreachable for every error but FileExistsError and, if `missing`, FileNotFoundError.

    Libraries raise errors of their own besides OSError.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, FileExistsError) or (missing and isinstance(error, FileNotFoundError)):
            raise
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Unreachable(said) from error


def _modified(info: dict[str, Any]) -> float:
    """When an object was written, by what its store says about it."""
    for key in ("LastModified", "updated", "mtime", "created"):
        if (when := info.get(key)) is not None:
            break
    else:
        raise Unreachable("the store does not say when an object was written")
    if isinstance(when, str):
        from datetime import datetime

        when = datetime.fromisoformat(when)
    return when if isinstance(when, float | int) else when.timestamp()
