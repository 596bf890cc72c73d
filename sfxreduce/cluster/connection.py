"""A scheduler that somebody else started: whether we may talk to it, and whether it answers."""

from __future__ import annotations

import ipaddress
import socket

from distributed import Client
from distributed.comm.addressing import get_address_host, parse_address
from distributed.comm.core import connect as open_comm
from distributed.security import Security
from distributed.utils import LoopRunner

from sfxreduce.cluster.security import HOW_TO_GET_CERTIFICATES
from sfxreduce.errors import ClusterError, RefusedError, UsageError

__all__ = ["connect"]

CONNECT_SECONDS = 10


def connect(address: str, *, security: Security | None = None) -> Client:
    """Connect to a scheduler and wait for its workers.

    Parameters
    ----------
    address : str
        As ``tcp://127.0.0.1:8786``, or ``tls://node:8786``.
    security : distributed.security.Security, optional
        Certificates; needed for a scheduler on another machine.

    Raises
    ------
    RefusedError
        If the scheduler is on another machine and the connection would not be encrypted.
    UsageError
        If there are certificates and the address is not one of TLS.
    ClusterError
        If the scheduler does not answer, or has no workers.
    """
    address = _checked(address, security)
    try:
        # Not by a client: one that fails to connect stops its threads whenever it is collected, and
        # for good if that is while another one starts.
        LoopRunner(asynchronous=False).run_sync(_knock, address, security)
        client = Client(address, timeout=CONNECT_SECONDS, security=security)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"{address}: no Dask scheduler answers within {CONNECT_SECONDS} seconds; check the "
            "address, or drop --scheduler to work on this machine"
        ) from error
    except (RuntimeError, TypeError) as error:
        raise RefusedError(f"{address}: {error}; {HOW_TO_GET_CERTIFICATES}") from error
    try:
        client.wait_for_workers(1, timeout=CONNECT_SECONDS)
    except TimeoutError as error:
        client.close()
        raise ClusterError(
            f"{address}: the scheduler has no workers after {CONNECT_SECONDS} seconds; start some "
            "with 'dask worker'"
        ) from error
    return client


async def _knock(address: str, security: Security | None) -> None:
    """Connect as a client would, and hang up."""
    certificates = (security or Security()).get_connection_args("client")
    comm = await open_comm(address, timeout=CONNECT_SECONDS, **certificates)
    await comm.close()


def _checked(address: str, security: Security | None) -> str:
    """Address with its protocol, if we may talk to it."""
    scheme = parse_address(address)[0] if "://" in address else ""
    if security is not None and scheme not in ("", "tls"):
        raise UsageError(
            f"--scheduler {address}: with --security expected an address tls://..., found "
            f"{scheme}://; drop --security or use the scheduler's tls address"
        )
    if security is not None and not scheme:
        return f"tls://{address}"
    if scheme != "tls" and not _is_here(address):
        raise RefusedError(
            f"--scheduler {address}: it is on another machine, and whoever reaches an open "
            f"scheduler can run programs as you; {HOW_TO_GET_CERTIFICATES}"
        )
    return address


def _is_here(address: str) -> bool:
    """Whether a scheduler can be reached from this machine only."""
    if address.startswith("inproc://"):
        return True
    try:
        host = get_address_host(address)
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"--scheduler {address}: no machine of this name is known; check the address"
        ) from error
    return all(ipaddress.ip_address(str(ip).partition("%")[0]).is_loopback for ip in found)
