"""A network that torch compiles where it can, and runs as it is where it cannot."""

from __future__ import annotations

import logging
import subprocess
import warnings

import torch
from torch import nn

__all__ = ["CompiledIfPossible"]

_log = logging.getLogger(__name__)


class CompiledIfPossible:
    """A module, compiled for the shapes of its first call during that call.

    To compile takes torch some seconds, and a C compiler with Python's headers. Where they are
    missing the module runs as it is: slower, with the same numbers up to rounding.
    """

    def __init__(self, plain: nn.Module) -> None:
        self.plain = plain
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own modules use what torch deprecates
            self._compiled = torch.compile(plain, dynamic=False)
        self._fails = False
        # Torch would like to round to 10 bits, and says so each time it compiles.
        warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")

    def __call__(self, *arguments: object) -> torch.Tensor:
        """Call the module."""
        if not self._fails:
            try:
                values: torch.Tensor = self._compiled(*arguments)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                self._fails = True
                reason = str(error).strip().partition("\n")[0]
                _log.warning(
                    "device scorer: torch cannot compile here, so it is slower: %s", reason
                )
            else:
                return values
        plain: torch.Tensor = self.plain(*arguments)
        return plain
