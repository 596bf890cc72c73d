"""Archive before tape: what may leave the disk, and the proof of it. Nothing here deletes data."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
