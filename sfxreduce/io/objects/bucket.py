"""Objects below an address as ``s3://bucket/run.zarr``: which there are, and the bytes of one.

Endpoint, region and credentials are those of the environment of the process that asks, by the
names that all S3 programs know (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ...). They are handed
to nobody: neither an address nor a message holds any.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import IO, TYPE_CHECKING

from sfxreduce.errors import ObjectStoreError, RunNotFound, SchemaError, UsageError

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import S3Store

__all__ = [
    "SCHEME",
    "StoredObject",
    "endpoint",
    "fetch",
    "list_objects",
    "name_of",
    "version_of_all",
]

SCHEME = "s3://"

ENDPOINT = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_REGION", "AWS_DEFAULT_REGION")

MOST_OBJECTS = 1 << 20
"""Objects of a run: each is a file once it is fetched."""

MOST_ATTEMPTS = 10
"""Times that the rest of an object is asked for before its store counts as unreachable; each
comes after those that the client itself makes."""

MOST_RETRIES = 10
"""Of one request by the client, within half a minute."""

PATIENCE_SECONDS = 15
"""After which no other list of objects is asked for."""

PART_BYTES = 8 << 20
"""Bytes of an object that are in memory at a time."""

PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 5.0

REFUSED = r"status code: 4\d\d"
DENIED = r"status code: 40[13]"

IN_WORDS = {
    "NoSuchBucket": "there is no such bucket",
    "error sending request": "it cannot be reached",
    "operation timed out": "it does not answer",
    "builder error": "its endpoint is no https:// address, and AWS_ALLOW_HTTP is not true",
}
"""What is known of errors that the client has no class for."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What a listing says of one object.

    Parameters
    ----------
    size : int
        In bytes.
    etag : str
        By which the store itself tells one content from another.
    changed_at : float
        When it was put there, in seconds since 1970; 0 if nobody asked.
    """

    size: int
    etag: str
    changed_at: float = 0.0


def name_of(address: str) -> tuple[str, str]:
    """Bucket, and the common beginning of the names of its objects.

    Raises
    ------
    UsageError
        If the address has not both.

    Examples
    --------
    >>> name_of("s3://beamtime/2026/run.zarr")
    ('beamtime', '2026/run.zarr')
    """
    bucket, _, prefix = address.removeprefix(SCHEME).partition("/")
    prefix = prefix.strip("/")
    odd = {"", ".", ".."}.intersection((bucket, *prefix.split("/")))
    if odd or not prefix.isprintable():
        raise UsageError(f"{address!a:.200}: expected an address as s3://BUCKET/RUN.zarr")
    return bucket, prefix


def list_objects(address: str) -> dict[str, StoredObject]:
    """List the objects below an address, by what follows it in their names.

    One request for each 1,000 of them.

    Raises
    ------
    RunNotFound
        If there are none, or there is no such bucket.
    ObjectStoreError
        If the store cannot be reached, or denies it.
    SchemaError
        If objects cannot be the files of a store.
    UsageError
        If obstore is not installed, or the address is none.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            found = _listed(address)
            break
        except Exception as error:
            told = _told(error, address)
            # The client asks again where it got no answer, and not where one is cut off.
            passes = _may_pass(error) and not isinstance(told, RunNotFound)
            if not passes or time.monotonic() > deadline:
                raise told from error
        time.sleep(PAUSE_SECONDS)
    if not found:
        raise RunNotFound(f"{address}: no object has a name that begins so; check bucket and name")
    for name, one in found.items():
        if {"", ".", ".."}.intersection(name.split("/")) or not name.isprintable() or not one.etag:
            raise SchemaError(
                f"{address}: expected objects with names of files and an ETag, found {name!a:.80}"
            )
    return found


def _listed(address: str) -> dict[str, StoredObject]:
    store, prefix = _client(address), name_of(address)[1]
    import obstore

    found: dict[str, StoredObject] = {}
    for page in obstore.list(store, prefix=prefix, chunk_size=1000):
        for one in page:
            name = one["path"].removeprefix(f"{prefix}/")
            found[name] = StoredObject(
                one["size"], one["e_tag"] or "", one["last_modified"].timestamp()
            )
        if len(found) > MOST_OBJECTS:
            raise SchemaError(f"{address}: expected at most {MOST_OBJECTS} objects, found more")
    return found


def version_of_all(objects: Mapping[str, StoredObject]) -> str:
    """Hash names, sizes and ETags: it changes when any of the objects does.

    Examples
    --------
    >>> version_of_all({"zarr.json": StoredObject(2, "a")})[:12]
    'c190265eea7e'
    """
    digest = hashlib.sha256()
    for name in sorted(objects):
        digest.update(f"{name}\0{objects[name].size}\0{objects[name].etag}\n".encode())
    return digest.hexdigest()


def _parts(address: str, name: str, wanted: StoredObject, start: int) -> Iterator[bytes]:
    """Ask for an object, from one of its bytes on."""
    store, whole = _client(address), f"{name_of(address)[1]}/{name}"
    import obstore

    options: GetOptions = {"if_match": wanted.etag}
    if start:
        options["range"] = {"offset": start}
    answer = obstore.get(store, whole, options=options)
    if (answer.meta["size"], answer.meta["e_tag"]) != (wanted.size, wanted.etag):
        raise _changed(f"{address}/{name}")
    for part in answer.stream(min_chunk_size=PART_BYTES):
        yield bytes(part)


def fetch(address: str, name: str, wanted: StoredObject, file: IO[bytes]) -> None:
    """Write the bytes of an object to a file, all of them and of this version only.

    One request, unless the answer is cut off: then the rest is asked for.

    Parameters
    ----------
    name : str
        What follows the address.
    wanted : StoredObject
        As it was listed.

    Raises
    ------
    ObjectStoreError
        If it is another one by now, or cannot be fetched whole.
    """
    there, last = 0, "the answer ends too early"
    for attempt in range(MOST_ATTEMPTS):
        try:
            for part in _parts(address, name, wanted, there):
                file.write(part)
        except ObjectStoreError:
            raise
        except Exception as error:
            told = _told(error, f"{address}/{name}")
            if not _may_pass(error):
                raise told from error
            last = str(told)
        there = file.seek(0, os.SEEK_END)
        if there == wanted.size:
            return
        time.sleep(min(PAUSE_SECONDS * 2**attempt, LONGEST_PAUSE_SECONDS))
    raise ObjectStoreError(
        f"{address}/{name}: {there} of {wanted.size} bytes came in {MOST_ATTEMPTS} attempts "
        f"({last}); give the same command again, which resumes"
    )


def endpoint() -> str:
    """Which store the environment names."""
    return "\0".join(os.environ.get(name, "") for name in ENDPOINT)


def _environment() -> str:
    """Hash of what the environment says of the store and of who asks."""
    told = sorted(f"{name}={value}" for name, value in os.environ.items() if name[:4] == "AWS_")
    return hashlib.sha256("\0".join(told).encode(errors="surrogateescape")).hexdigest()


def _client(address: str) -> S3Store:
    """Client of the bucket of an address.

    Raises
    ------
    UsageError
        If obstore is not installed.
    """
    return _client_of(address, name_of(address)[0], _environment())


@lru_cache(maxsize=8)
def _client_of(address: str, bucket: str, _environment: str) -> S3Store:
    """Client of a bucket; a new one when the environment has changed."""
    try:
        from obstore.store import S3Store
    except ImportError as error:
        raise UsageError(
            f"{address}: object stores are read with obstore, which is not installed; "
            "pip install 'sfxreduce[s3]'"
        ) from error
    try:
        return S3Store(
            bucket,
            client_options={
                # Given options take the place of all that the environment says of the client.
                "allow_http": os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes"),
                "connect_timeout": "5s",
                "read_timeout": "30s",
                "timeout": "1h",  # of a whole shard, as long as something of it comes
            },
            retry_config={
                "max_retries": MOST_RETRIES,
                "retry_timeout": timedelta(seconds=30),
                "backoff": {
                    "init_backoff": timedelta(milliseconds=100),
                    "max_backoff": timedelta(seconds=4),
                    "base": 2,
                },
            },
        )
    except Exception as error:
        raise _told(error, address) from error


def _changed(where: str) -> ObjectStoreError:
    return ObjectStoreError(
        f"{where}: was changed or removed while the run was read; nothing was published, start "
        "again once the run is complete"
    )


def _may_pass(error: Exception) -> bool:
    """Whether an error may be another one, or none, a moment later."""
    from obstore.exceptions import GenericError

    told = str(error)
    lasts = "builder error" in told or re.search(REFUSED, told)
    return isinstance(error, GenericError) and not lasts


def _told(error: Exception, where: str) -> Exception:
    """Say in one line what a client's error means; what is none of its is left as it is."""
    from obstore.exceptions import (
        BaseError,
        PermissionDeniedError,
        PreconditionError,
        UnauthenticatedError,
    )

    if isinstance(error, FileNotFoundError | PreconditionError):
        return _changed(where)
    text = str(error)
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or re.search(DENIED, text):
        return ObjectStoreError(
            f"{where}: access denied; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
            "AWS_SESSION_TOKEN, and the right to list and to read"
        )
    if not isinstance(error, BaseError):
        return error
    if "NoSuchBucket" in text:
        return RunNotFound(f"{where}: there is no such bucket; check the address")
    first = text.partition("\n")[0].rpartition(" - ")[2]
    status = re.search(r"status code: (\d+ [\w ]+)", first)
    why = next((words for sign, words in IN_WORDS.items() if sign in text), "it failed")
    if status:
        why = f"the store answered {status[1]}"
    return ObjectStoreError(
        f"{where}: cannot be read from the object store: {why}; check AWS_ENDPOINT_URL, AWS_REGION "
        "and the network"
    )
