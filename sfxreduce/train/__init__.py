"""Labelled runs become a model, and a model is judged on runs it has not seen."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
