"""Messages between this process and one that is not trusted: JSON and plain arrays, no pickles.

A message is the length of its JSON as 8 bytes, the JSON, and the bytes of the arrays that it
lists, one after the other.
"""

from __future__ import annotations

import json
import math
import os
import re
import select
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfxreduce.io.files.safe_read import MOST_JSON_BYTES, parse_json

__all__ = ["MessageError", "receive", "send"]

LENGTH = struct.Struct("<Q")
DTYPE = re.compile(r"[<>|](b1|[iu][1248]|f[248])")
PIPE_BYTES = 1 << 20


class MessageError(Exception):
    """The other side ended, was too slow, or said something that is no message."""


def send(pipe: int, body: Mapping[str, Any], arrays: Sequence[NDArray[Any]] = ()) -> None:
    """Send a message.

    Parameters
    ----------
    pipe : int
        Descriptor to write to.
    body : mapping
        Plain JSON.
    arrays : sequence of ndarray
        Of numbers.

    Raises
    ------
    MessageError
        If the other side has ended.
    """
    listed = [{"dtype": array.dtype.str, "shape": list(array.shape)} for array in arrays]
    text = json.dumps({"body": body, "arrays": listed}).encode()
    try:
        for data in (memoryview(LENGTH.pack(len(text)) + text), *map(_bytes_of, arrays)):
            left = data
            while left:
                left = left[os.write(pipe, left[:PIPE_BYTES]) :]
    except OSError as error:
        raise MessageError(f"the other process cannot be written to ({error.strerror})") from error


def receive(
    pipe: int, *, most_bytes: int, seconds: float | None = None
) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """Receive a message.

    Parameters
    ----------
    pipe : int
        Descriptor to read from.
    most_bytes : int
        Most bytes of arrays that are taken.
    seconds : float, optional
        How long it may take; for ever if not given.

    Raises
    ------
    MessageError
        If no message came in time, or none that is accepted.
    """
    until = None if seconds is None else time.monotonic() + seconds

    def take(n_bytes: int) -> bytearray:
        data = bytearray(n_bytes)
        _fill(pipe, memoryview(data), until)
        return data

    (length,) = LENGTH.unpack(take(LENGTH.size))
    if length > MOST_JSON_BYTES:
        raise MessageError(f"expected at most {MOST_JSON_BYTES} bytes of JSON, found {length}")
    try:
        message = parse_json(bytes(take(length)))
        body, listed = dict(message["body"]), list(message["arrays"])
        return body, _arrays(listed, take, most_bytes)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise MessageError(f"expected a message, found something else ({error})") from error


def _arrays(
    listed: Sequence[Mapping[str, Any]], take: Callable[[int], bytearray], most_bytes: int
) -> list[NDArray[Any]]:
    """Take the arrays of a message, which may not be more than allowed altogether."""
    arrays = []
    for facts in listed:
        if not DTYPE.fullmatch(facts["dtype"]):
            raise ValueError(f"dtype {facts['dtype']!r:.20}")
        shape = tuple(int(n) for n in facts["shape"])
        dtype = np.dtype(facts["dtype"])
        n_bytes = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or n_bytes > most_bytes:
            raise ValueError(f"expected at most {most_bytes} bytes, found {n_bytes}")
        most_bytes -= n_bytes
        arrays.append(np.frombuffer(take(n_bytes), dtype).reshape(shape))
    return arrays


def _fill(pipe: int, left: memoryview, until: float | None) -> None:
    """Fill a buffer from a pipe, in time."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    while left:
        wait = None if until is None else max(until - time.monotonic(), 0) * 1000
        if not poll.poll(wait):
            raise MessageError("no answer in time")
        n_bytes = os.readv(pipe, [left[:PIPE_BYTES]])
        if n_bytes == 0:
            raise MessageError("the other process has ended")
        left = left[n_bytes:]


def _bytes_of(array: NDArray[Any]) -> memoryview:
    """Bytes of an array in C order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
