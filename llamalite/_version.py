"""llamalite's version, in a room of its own: whoever tells it need not import the package's face."""

__version__ = "0.1.0"
