"""Names and places on disk: where a user's files go, how shards are named, the note beside a converted model.

Its modules import only Python's standard library and `llamalite.errors`, so every other package may use them.
"""
