"""Numbers as people read them."""

from __future__ import annotations

__all__ = ["human_bytes"]


def human_bytes(n_bytes: float) -> str:
    """Bytes in the unit a person would choose, powers of ten.

    Examples
    --------
    >>> human_bytes(1_234_000_000), human_bytes(512)
    ('1.23 GB', '512 B')
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(n_bytes) < 1000 or unit == "TB":
            break
        n_bytes /= 1000
    return f"{n_bytes:.3g} {unit}" if abs(n_bytes) < 999.5 else f"{n_bytes:,.0f} {unit}"
