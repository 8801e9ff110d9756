"""The models on this machine, and what MODEL means in every command and every call.

resolve("demo")               a GGUF file that is on this machine: nothing is downloaded, nothing is converted
obtain("org/name", "Q8_0")    a GGUF file, downloaded and converted if necessary
locate("org/name")            a GGUF file or a checkpoint's folder, downloaded if necessary, never converted
list_models()                 the files in the models folder

preference     the type to use if none is given
names          names and paths in the models folder: listing, finding, removing
hub            downloads from the Hugging Face hub
conversions    checkpoints that are converted once, and again when they change
meaning        what MODEL means: a path, a name, a checkpoint, ``demo``, or ``org/name[:TYPE]``
inspection     what a GGUF file is, from its header; not imported here, as it needs numpy
"""

from __future__ import annotations

from llamalite.files.user_folders import models_folder
from llamalite.store.meaning import expanded, locate, obtain, resolve
from llamalite.store.names import (
    as_argument,
    default_output,
    demo_checkpoint,
    files_to_remove,
    find,
    list_models,
    name_of,
    quoted,
    shortest_name,
)

__all__ = [
    "as_argument",
    "default_output",
    "demo_checkpoint",
    "expanded",
    "files_to_remove",
    "find",
    "list_models",
    "locate",
    "models_folder",
    "name_of",
    "obtain",
    "quoted",
    "resolve",
    "shortest_name",
]
