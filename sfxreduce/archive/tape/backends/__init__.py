"""Archives: where files are put, asked after, and recalled from. Nothing here deletes a file."""

from __future__ import annotations

from sfxreduce.archive.tape.backends.open import open_backend
from sfxreduce.archive.tape.backends.protocol import Backend, Capabilities

__all__ = ["Backend", "Capabilities", "open_backend"]
