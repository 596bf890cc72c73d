"""The poster's network, which this project started from: one number for the whole centre tile.

The shipped model does not use it; models of kind ``poster`` do, and
``examples/reproduce_poster.py`` repeats the poster's figures with it.
"""
