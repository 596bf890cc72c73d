"""Keep the hits of serial femtosecond crystallography runs, and account for what is dropped.

Names are loaded when they are first used, from where ``__init__.pyi`` says: importing this package
imports neither torch nor distributed.

Examples
--------
>>> import sfxreduce
>>> detector = sfxreduce.Detector.centred("camera", (1750, 1750))
>>> sfxreduce.Window.centre(detector).shape
(1, 350, 350)
"""

import lazy_loader

_lazy, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    """Load a public name, or look the version up, when it is first asked for."""
    if name == "__version__":
        from importlib.metadata import version

        return version("sfxreduce")
    return _lazy(name)
