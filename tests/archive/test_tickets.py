"""A site's script acts on a ticket only if it is signed, whole, in force, and still true."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from archived import Call, snapshot, write_keys
from beamtimes import DAY_NS, POOL, Beamtime, codes, set_clock
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from sfxreduce.archive.evidence.folder import JOURNAL
from sfxreduce.archive.evidence.signing import is_signed, read_signing_key
from sfxreduce.archive.rules.policy import Disposition, Policy, Release, preset_text
from sfxreduce.archive.rules.states import State
from sfxreduce.archive.steps import release as releasing
from sfxreduce.archive.steps.check_ticket import check_ticket
from sfxreduce.archive.steps.hold import add_hold
from sfxreduce.errors import RefusedError, RunNotFound, UsageError
from sfxreduce.io.files.journal import Journal


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_keys(tmp_path / "ours.pem", tmp_path / "ours.pub")


@dataclass
class SignedBeamtime(Beamtime):
    """Runs whose tickets are signed, under a policy that the releaser has too."""

    policy: Policy = field(default_factory=Policy)

    def release(self, n: int = 0, **options: Any) -> releasing.Released:
        return super().release(n, policy=self.policy, **options)


@pytest.fixture
def ready(beamtime: Beamtime, keys: tuple[Path, Path]) -> SignedBeamtime:
    """A run that only wants its ticket, under a policy that names the key."""
    release = Release(
        disposition=Disposition.TAPE_RAW,
        grace_days=0,
        min_retention_days=0,
        sign_key=str(keys[0]),
    )
    signed = SignedBeamtime(beamtime.root, beamtime.clock, Policy(release=release))
    signed.plan(0, signed.policy)
    signed.approve()
    signed.execute()
    signed.recall()
    return signed


@pytest.fixture
def ticket(ready: SignedBeamtime) -> Path:
    return ready.release().ticket


def test_a_ticket_is_signed_and_may_be_acted_on(
    ready: SignedBeamtime, ticket: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    found = check_ticket(ticket, key=keys[1], clock=ready.clock)
    assert {file.path for file in found.files} == set(snapshot(ready.run()))
    # It is the same where the evidence is not.
    for name in (ticket.name, f"{ticket.name}.sig"):
        shutil.copy(ticket.parent / name, tmp_path / name)
    assert check_ticket(tmp_path / ticket.name, key=keys[1], clock=ready.clock) == found


def test_openssl_agrees(ticket: Path, keys: tuple[Path, Path]) -> None:
    if not shutil.which("openssl"):
        pytest.skip("no program openssl")
    verify = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(keys[1]), "-rawin"]
    files = ["-in", str(ticket), "-sigfile", f"{ticket}.sig"]
    assert subprocess.run([*verify, *files], capture_output=True, check=False).returncode == 0
    ticket.write_bytes(ticket.read_bytes() + b" ")
    assert subprocess.run([*verify, *files], capture_output=True, check=False).returncode


def test_one_altered_byte_anywhere_is_refused(
    ready: SignedBeamtime, ticket: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    data, signature = ticket.read_bytes(), Path(f"{ticket}.sig").read_bytes()
    assert is_signed(data, signature, key=keys[1])
    copy = tmp_path / "copy.json"
    for place in range(0, len(data), 97):
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        assert not is_signed(changed, signature, key=keys[1])
        copy.write_bytes(changed)
        Path(f"{copy}.sig").write_bytes(signature)
        found = codes(lambda: check_ticket(copy, key=keys[1], clock=ready.clock))
        assert found & {"R10", "R16"}
    copy.write_bytes(data)
    for place in range(len(signature)):
        changed = signature[:place] + bytes([signature[place] ^ 1]) + signature[place + 1 :]
        Path(f"{copy}.sig").write_bytes(changed)
        assert codes(lambda: check_ticket(copy, key=keys[1], clock=ready.clock)) == {"R10"}
    for wrong in (b"", signature[:-1], signature + b"\n"):
        Path(f"{copy}.sig").write_bytes(wrong)
        assert codes(lambda: check_ticket(copy, key=keys[1], clock=ready.clock)) == {"R10"}
    Path(f"{copy}.sig").unlink()
    assert codes(lambda: check_ticket(copy, key=keys[1], clock=ready.clock)) == {"R10"}


def test_the_key_of_another_is_refused(ready: SignedBeamtime, ticket: Path, tmp_path: Path) -> None:
    _, public = write_keys(tmp_path / "theirs.pem", tmp_path / "theirs.pub")
    assert codes(lambda: check_ticket(ticket, key=public, clock=ready.clock)) == {"R10"}


def hold(beamtime: Beamtime) -> None:
    # The journal is in use meanwhile, so the ticket stays as it is; the hold stands all the same.
    with beamtime.subject().opened():
        add_hold(beamtime.subject(by="dee"), reason="thesis", authority="pi")


def touch(beamtime: Beamtime) -> None:
    (beamtime.run() / "zarr.json").touch()


def forge(beamtime: Beamtime) -> None:
    (beamtime.subject().evidence / "approvals" / "more.json").write_text("{}")


@pytest.mark.parametrize(
    ("what", "code"),
    [
        (hold, "R09"),
        (touch, "R03"),
        (forge, "R10"),
        (lambda b: b.clock.wait(days=1.01), "R04"),
        (lambda b: b.clock.wait(days=-1), "R17"),
        (lambda b: releasing.cancel_run(b.subject()), "R21"),
        (lambda b: add_hold(b.subject(by="dee"), reason="thesis", authority="pi"), "R21"),
    ],
    ids=["held", "touched", "forged", "ended", "of the future", "called off", "revoked by a hold"],
)
def test_what_is_no_longer_true_is_refused(
    ready: SignedBeamtime, ticket: Path, keys: tuple[Path, Path], what: Any, code: str
) -> None:
    check_ticket(ticket, key=keys[1], clock=ready.clock)
    what(ready)
    assert codes(lambda: check_ticket(ticket, key=keys[1], clock=ready.clock)) == {code}


def test_a_copy_in_the_evidence_is_not_the_ticket_that_counts(
    ready: SignedBeamtime, ticket: Path, keys: tuple[Path, Path]
) -> None:
    # A copy kept beside a ticket that was replaced was let pass: only the plan was compared.
    old = ticket.with_name("old.json")
    for end in ("", ".sig"):
        shutil.copy(f"{ticket}{end}", f"{old}{end}")
    check_ticket(old, key=keys[1], clock=ready.clock)
    ready.clock.wait(days=0.1)
    ready.release()
    check_ticket(ticket, key=keys[1], clock=ready.clock)
    assert "R10" in codes(lambda: check_ticket(old, key=keys[1], clock=ready.clock))


def test_no_number_in_an_unsigned_ticket_ends_in_a_traceback(
    ready: SignedBeamtime, ticket: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    # How long ago it ended was told as a float, which overflowed; no disk tells such a time.
    facts = json.loads(ticket.read_text()) | {"valid_until_ns": -(10**400)}
    copy = tmp_path / "copy.json"
    copy.write_text(json.dumps(facts))
    found = codes(lambda: check_ticket(copy, key=keys[1], clock=ready.clock))
    assert found == {"R16"}


def test_a_hold_counts_without_the_journal(
    ready: SignedBeamtime, ticket: Path, keys: tuple[Path, Path]
) -> None:
    # Without its journal, evidence was taken for a folder that holds a ticket alone.
    hold(ready)
    (ticket.parent / JOURNAL).unlink()
    assert "R09" in codes(lambda: check_ticket(ticket, key=keys[1], clock=ready.clock))


def test_a_run_that_is_gone_in_part_may_go_whole(
    ready: SignedBeamtime, ticket: Path, keys: tuple[Path, Path]
) -> None:
    (ready.run() / "zarr.json").unlink()
    check_ticket(ticket, key=keys[1], clock=ready.clock)
    shutil.rmtree(ready.run())
    check_ticket(ticket, key=keys[1], clock=ready.clock)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o602])
def test_a_private_key_that_others_can_read_is_refused(
    ready: SignedBeamtime, keys: tuple[Path, Path], mode: int
) -> None:
    keys[0].chmod(mode)
    with pytest.raises(RefusedError, match="its owner's alone"):
        ready.release()
    with pytest.raises(RefusedError, match="its owner's alone"):
        releasing.release_run(ready.subject(), policy=ready.policy, pool=POOL)
    assert not list(ready.subject().evidence.glob("release-ticket*"))
    keys[0].chmod(0o600)
    assert ready.release().state is State.RELEASE_TICKETED


def test_what_is_no_key_is_said(
    keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.pem"
    elliptic = generate_private_key(SECP256R1())
    locked = Ed25519PrivateKey.generate()
    pkcs8 = PrivateFormat.PKCS8
    for data, match in (
        (b"nothing", "in PEM"),
        (keys[1].read_bytes(), "in PEM"),
        (elliptic.private_bytes(Encoding.PEM, pkcs8, NoEncryption()), "another kind"),
        (locked.private_bytes(Encoding.PEM, pkcs8, BestAvailableEncryption(b"x")), "in PEM"),
    ):
        other.write_bytes(data)
        other.chmod(0o600)
        with pytest.raises(UsageError, match=match):
            read_signing_key(other)
    for data in (b"nothing", keys[0].read_bytes()):
        other.write_bytes(data)
        with pytest.raises(UsageError, match="in PEM"):
            is_signed(b"", b"", key=other)
    spki = PublicFormat.SubjectPublicKeyInfo
    other.write_bytes(elliptic.public_key().public_bytes(Encoding.PEM, spki))
    with pytest.raises(UsageError, match="another kind"):
        is_signed(b"", b"", key=other)
    with pytest.raises(RunNotFound, match="cannot be read"):
        read_signing_key(tmp_path / "gone.pem")
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(UsageError, match=r"pip install 'sfxreduce\[sign\]'"):
        read_signing_key(keys[0])


def test_no_crash_leaves_a_ticket_without_its_signature(
    ready: SignedBeamtime, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    append, evidence = Journal.append, ready.subject().evidence
    ticket = evidence / "release-ticket.json"
    n_crashes = 0
    for n in range(1, 100):
        count = 0

        def stop(self: Journal, body: Any, *, last: int = n) -> Any:
            nonlocal count
            count += 1
            if count == last:
                raise InterruptedError
            return append(self, body)

        monkeypatch.setattr(Journal, "append", stop)
        try:
            ready.release()
        except InterruptedError:
            n_crashes += 1
        else:
            break
        finally:
            monkeypatch.setattr(Journal, "append", append)
        if ticket.exists():
            signature = (evidence / "release-ticket.json.sig").read_bytes()
            assert is_signed(ticket.read_bytes(), signature, key=keys[1])
        assert "R10" not in {refusal.code for refusal in ready.state_of().refusals}
    assert n_crashes > 4
    check_ticket(ticket, key=keys[1], clock=ready.clock)


def test_a_script_asks_by_the_command_and_its_exit_status(
    call: Call,
    beamtime: Beamtime,
    keys: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_clock(monkeypatch, beamtime.clock)
    beamtime.all_of()
    token = beamtime.state_of().plan_id
    release = ["archive", "release", beamtime.run(), "--serial", "--execute", token]
    release += [f"--to={pool}" for pool in beamtime.to]
    status, found, _ = call(*release)
    ticket = Path(found["ticket"])
    check = ["archive", "check-ticket", ticket, "--key", keys[1]]
    # Nobody named a key, so the ticket is not signed.
    status, found, _ = call(*check)
    assert (status, [r["code"] for r in found["refusals"]]) == (3, ["R10"])
    status, found, _ = call(*release, "--sign-key", keys[0])
    assert (status, [r["code"] for r in found["refusals"]]) == (3, ["R22"])
    own = tmp_path / "site.toml"
    own.write_text(preset_text("laptop"))
    status, found, _ = call(*release, "--sign-key", keys[0], "--policy", own)
    assert status == 0
    status, found, _ = call(*check)
    assert status == 0
    assert found["files"] == len(json.loads(ticket.read_text())["files"])
    ticket.write_bytes(ticket.read_bytes().replace(b'"bytes":', b'"bytes": ', 1))
    status, found, err = call(*check)
    assert status == 3
    assert {r["code"] for r in found["refusals"]} == {"R10"}
    assert "is not what was signed" in err
    assert call("archive", "check-ticket", "gone.json", "--key", keys[1])[0] == 1
    assert beamtime.clock() > DAY_NS
