"""Index files: caches of the rows, sealed so that what was not written here, whole, is never read as an index.

    magic (8 bytes) | length of the header (4, little-endian) | header, JSON | index (faiss_index.py) | HMAC-SHA256 (32)

The seal covers all before it. It is checked before anything is parsed, because FAISS's reader trusts its input: of
6,000 mutated files it took a third for good ones. The header names the collection's data and its index parameters, so
a file put in another's place is refused too. Names are made of UUIDs, and links are not followed.
"""

import contextlib
import fcntl
import hashlib
import hmac
import os
import shutil
from collections.abc import Collection as Many
from pathlib import Path
from typing import BinaryIO
from uuid import UUID, uuid4

import orjson
import structlog
from prometheus_client import Gauge

from services.vector.domain.index import VectorIndex
from services.vector.domain.model import Collection
from services.vector.storage.faiss_index import FaissIndex

log = structlog.get_logger(__name__)

_DISK_FREE = Gauge("headrace_vector_disk_free_bytes", "Free space where the index files are.")
_DISK_SIZE = Gauge("headrace_vector_disk_size_bytes", "Size of the file system where the index files are.")
_MAGIC = b"HRINDEX1"
_SEAL_BYTES = 32
_BLOCK = 1 << 20
_SUFFIX, _TEMPORARY = ".index", ".part"


class FileSnapshots:
    """The Snapshots (domain/index.py) in one folder, which several processes may share."""

    def __init__(self, folder: Path, key: bytes) -> None:
        """`key` seals the files; another one makes all of them worthless. Makes the folder."""
        self._folder = folder
        self._key = hmac.digest(key, b"headrace vector index file", hashlib.sha256)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _DISK_FREE.set_function(lambda: shutil.disk_usage(folder).free)
        _DISK_SIZE.set_function(lambda: shutil.disk_usage(folder).total)

    def load(self, collection: Collection) -> FaissIndex | None:
        """The index as it was written; None when there is none or it cannot be trusted, which removes it."""
        path = self._path(collection.data_id)
        try:
            with _open_to_read(path) as file:
                problem = self._problem(file, _start(collection))
                if problem is None:
                    return FaissIndex.read(collection, file)
        except FileNotFoundError:
            return None
        except (OSError, MemoryError, RuntimeError, ValueError) as error:
            problem = repr(error)
        log.warning("index_file_refused", file=path.name, problem=problem)
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def begin(self, collection: Collection, index: VectorIndex) -> "TemporaryFile":
        """Copy an index, which must be at rest meanwhile, into a temporary file. Raises OSError."""
        if not isinstance(index, FaissIndex):
            raise TypeError("only a FaissIndex has files")
        path = self._path(collection.data_id)
        temporary = TemporaryFile(path, self._key)
        try:
            temporary.file.write(_start(collection))
            temporary.file.flush()
            index.write(temporary.file)
            temporary.file.flush()
        except BaseException:
            temporary.discard()
            raise
        return temporary

    def remove(self, collection_data: Many[UUID]) -> None:
        """Delete the files of these data ids and what writers that died left behind."""
        for data_id in collection_data:
            self._path(data_id).unlink(missing_ok=True)
        for path in self._folder.glob(f"*{_TEMPORARY}"):
            with contextlib.suppress(OSError), _open_to_read(path) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()

    def data_ids(self) -> set[UUID]:
        """The data ids that have files."""
        found = set()
        for path in self._folder.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(ValueError):
                found.add(UUID(path.stem))
        return found

    def _path(self, data_id: UUID) -> Path:
        return self._folder / f"{data_id}{_SUFFIX}"

    def _problem(self, file: BinaryIO, start: bytes) -> str | None:
        """Why a file cannot be trusted; None = it can, and stands where the index begins."""
        size = file.seek(0, os.SEEK_END) - _SEAL_BYTES
        if size < len(_MAGIC):
            return "too short"
        digest = _digest(file, size, self._key)
        if not hmac.compare_digest(digest, file.read(_SEAL_BYTES)):
            return "its seal does not fit"
        file.seek(0)
        return None if file.read(len(start)) == start else "of another collection or version"


class TemporaryFile:
    """The UnsealedFile (domain/index.py). While it is open it is locked, which tells `remove` that its writer lives."""

    def __init__(self, path: Path, key: bytes) -> None:
        """Make it beside `path`, where it will be once sealed."""
        self._target = path
        self._path = path.with_name(f"{path.stem}.{uuid4().hex}{_TEMPORARY}")
        self._key = key
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        self.file = os.fdopen(os.open(self._path, flags, 0o600), "w+b")
        fcntl.flock(self.file, fcntl.LOCK_EX)

    def seal(self) -> None:
        """Make it durable and put it in place of the one before."""
        size = self.file.seek(0, os.SEEK_END)
        seal = _digest(self.file, size, self._key)
        self.file.seek(size)
        self.file.write(seal)
        self.file.flush()
        os.fsync(self.file.fileno())
        self._path.rename(self._target)
        self.file.close()
        _sync_folder(self._target.parent)

    def discard(self) -> None:
        """Remove it, unless it was sealed."""
        if not self.file.closed:
            self._path.unlink(missing_ok=True)
            self.file.close()


def _digest(file: BinaryIO, size: int, key: bytes) -> bytes:
    """The seal of the first `size` bytes; the file stands behind them afterwards."""
    digest = hmac.new(key, digestmod=hashlib.sha256)
    file.seek(0)
    left = size
    while left and (block := file.read(min(_BLOCK, left))):
        digest.update(block)
        left -= len(block)
    return digest.digest()


def _start(collection: Collection) -> bytes:
    """Magic and header, which a file must begin with to be this collection's. Without ef_search, which may change."""
    index = collection.index
    header = orjson.dumps(
        {
            "project": str(collection.project_id),
            "data": str(collection.data_id),
            "dimension": collection.dimension,
            "metric": collection.metric,
            "index": [index.type, index.m, index.ef_construction],
        }
    )
    return _MAGIC + len(header).to_bytes(4, "little") + header


def _open_to_read(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb")


def _sync_folder(folder: Path) -> None:
    """Make a rename durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
