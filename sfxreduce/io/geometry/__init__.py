"""Geometry files: CrystFEL's ``.geom``, read, applied to a run, and written for its hits."""
