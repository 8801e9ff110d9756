"""A llama-cpp-python that is broken on purpose: the installed one, of which one call ends the process.

    environment = broken_llama.install(tmp_path, "dies with extra buffers")     # for a child's env

`FAULTS` says what each kind does. It simulates the effects of compilers and processors that are not at hand.
"""

from __future__ import annotations

import os
from pathlib import Path

from llamalite.native import installed

_DIE = "os.kill(os.getpid(), signal.{})"
_WITH_BUFFERS = "batch.n_tokens > 1 and loaded['extra_buffers']"
FAULTS = {
    "dies with extra buffers": ("decode", f"if {_WITH_BUFFERS}: {_DIE.format('SIGSEGV')}"),
    "computes something else with extra buffers": ("after", f"if {_WITH_BUFFERS}: llama_get_logits(context)[0] += 1e9"),
    "dies with Q8_0": ("decode", f"if 'Q8_0' in loaded['types']: {_DIE.format('SIGSEGV')}"),
    "for a newer processor": ("start", _DIE.format("SIGILL")),
    "aborts at the start": ("start", "os.abort()"),
}

_SOURCE = """
import os, signal
__file__ = {real!r}  # beside which the libraries lie
with open(__file__, encoding="utf-8") as source:
    exec(compile(source.read(), __file__, "exec"))

loaded = {{"extra_buffers": False, "types": set()}}
_load, _decode, _start = llama_model_load_from_file, llama_decode, llama_backend_init

def llama_model_load_from_file(path, params):
    from llamalite.gguf_check import read_header
    loaded["extra_buffers"] = params.use_extra_bufts
    loaded["types"] = {{tensor.type.name for tensor in read_header(os.fsdecode(path)).tensors}}
    return _load(path, params)

def llama_decode(context, batch):
    {decode}
    code = _decode(context, batch)
    {after}
    return code

def llama_backend_init():
    {start}
    _start()
"""


def install(folder: Path, fault: str) -> dict[str, str]:
    """Put a package ``llama_cpp`` into `folder`, and return the environment in which Python imports that one."""
    real = Path(str(installed.package().__file__)).parent
    package = folder / "broken" / "llama_cpp"
    package.mkdir(parents=True)
    for path in real.iterdir():
        if path.name not in ("llama_cpp.py", "__pycache__"):
            (package / path.name).symlink_to(path)
    place, code = FAULTS[fault]
    lines = dict.fromkeys(("decode", "after", "start"), "pass") | {place: code}
    (package / "llama_cpp.py").write_text(_SOURCE.format(real=str(real / "llama_cpp.py"), **lines))
    source = Path(installed.__file__).parents[2]
    cache = folder / "cache"
    return os.environ | {"PYTHONPATH": f"{package.parent}{os.pathsep}{source}", "XDG_CACHE_HOME": str(cache)}
