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

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
