"""Certificates of one command's jobs: an authority that dies with it, and a key that soon expires.

The authority's key, and that of the scheduler, never leave the memory of this process. Workers have
one of their own, in a folder that only its owner can enter. It is signed again while jobs wait in
the queue, so that each finds one that lasts for its time and an hour, and none of them for longer.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from distributed.security import Security

from sfxreduce.cluster.security import FILES
from sfxreduce.io.files.durable import output_errors

__all__ = ["RunCertificates"]

RUN_DAYS = 365
"""For which the authority and the scheduler are trusted; their keys end with this process."""

SPARE_SECONDS = 3600.0
"""For which a worker's certificate outlasts the worker."""

CLOCKS = timedelta(minutes=10)
"""By which the clocks of nodes may be behind."""


class RunCertificates:
    """Makes the certificates of a command, and removes them.

    Parameters
    ----------
    folder : Path
        Made, with mode 700; the nodes have to see it.
    lifetime_seconds : float
        Of a worker.

    Raises
    ------
    OutputError
        If the folder cannot be made or written to.
    """

    def __init__(self, folder: Path, *, lifetime_seconds: float) -> None:
        self._folder, self._lifetime = folder, lifetime_seconds
        self._authority = ec.generate_private_key(ec.SECP256R1())
        self._worker = ec.generate_private_key(ec.SECP256R1())
        mine = ec.generate_private_key(ec.SECP256R1())
        self._ca = self._signed("authority", self._authority, timedelta(days=RUN_DAYS), is_ca=True)
        own = {
            "cert": _pem(self._signed("scheduler", mine, timedelta(days=RUN_DAYS))),
            "key": _secret(mine),
        }
        self.paths = {kind: str(folder / name) for kind, name in FILES.items()}
        self.security = Security(
            require_encryption=True,
            tls_ca_file=_pem(self._ca),
            **{f"tls_{role}_{kind}": own[kind] for role in ("client", "scheduler") for kind in own},
        )
        with output_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700)
            _written(folder / FILES["ca"], _pem(self._ca))
            _written(folder / FILES["key"], _secret(self._worker))
        self.renew()

    def renew(self) -> None:
        """Sign the workers' certificate for a lifetime and an hour from now.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        valid = timedelta(seconds=self._lifetime + SPARE_SECONDS)
        new = self._folder / "new.pem"
        with output_errors(self._folder):
            new.unlink(missing_ok=True)
            _written(new, _pem(self._signed("worker", self._worker, valid)))
            new.replace(self._folder / FILES["cert"])

    def remove(self, *, logs: bool) -> None:
        """Remove keys and certificates and, unless somebody will want them, what jobs said.

        Parameters
        ----------
        logs : bool
            Whether the logs of the jobs go, too.
        """
        if logs:
            shutil.rmtree(self._folder, ignore_errors=True)
            return
        for name in FILES.values():
            with suppress(OSError):
                (self._folder / name).unlink()
        with suppress(OSError):  # no job has said anything
            self._folder.rmdir()

    def _signed(
        self, who: str, key: ec.EllipticCurvePrivateKey, valid: timedelta, *, is_ca: bool = False
    ) -> x509.Certificate:
        """Certificate of a key, signed by the authority."""
        now, public = datetime.now(UTC), key.public_key()
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        signer = self._authority.public_key()
        return (
            x509.CertificateBuilder()
            .subject_name(_name(who))
            .issuer_name(_name("authority"))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - CLOCKS)
            .not_valid_after(now + valid)
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(_usage(is_ca=is_ca), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False
            )
            .sign(self._authority, SHA256())
        )


def _name(who: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"sfxreduce {who}")])


def _usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def _secret(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def _written(path: Path, text: str) -> None:
    """Write a new file that is its owner's alone from its first byte."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
