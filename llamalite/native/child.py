"""What a child process of Python runs first."""

# For `python -c`, which searches the working directory first for modules: that may be an untrusted model folder.
ONLY_INSTALLED = "import sys; sys.path[:] = filter(None, sys.path); "
