"""llamalite's version, in its own module, so that it can be read without importing `llamalite` itself."""

__version__ = "0.1.0"
