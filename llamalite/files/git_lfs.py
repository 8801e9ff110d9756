"""How a Git LFS pointer begins: the short text that a clone made without git-lfs has in place of each large file."""

POINTER = b"version https://git-lfs"
