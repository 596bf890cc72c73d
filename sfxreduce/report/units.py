"""Numbers as people read them."""

from __future__ import annotations

from pathlib import Path

__all__ = ["human_bytes", "rounded", "short_path"]


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


def rounded(value: float, digits: int = 0) -> str:
    """Number with so many digits after the point, its thousands told apart, and no minus zero.

    Examples
    --------
    >>> rounded(-12345.678, 1), rounded(-0.4)
    ('-12,345.7', '0')
    """
    return f"{round(value, digits) + 0.0:,.{digits}f}"


def short_path(path: str | Path) -> str:
    """Path as seen from the working directory, if it lies below it.

    Examples
    --------
    >>> short_path(Path.cwd() / "demo" / "run.zarr")
    'demo/run.zarr'
    """
    folder = Path.cwd()
    return str(Path(path).relative_to(folder) if folder in Path(path).parents else path)
