"""Starts `llamalite serve` for a test suite that knows only llama-server and its options.

llama-server's own tests start the program that LLAMA_SERVER_BIN_PATH names. With this file there, made executable, and
two files named by the environment, those of its tests that concern our endpoints run against llamalite:

    LLAMALITE_SHIM_MODEL=stories260k-F32.gguf LLAMALITE_SHIM_TEMPLATES=llama.cpp/models/templates \\
    LLAMA_SERVER_BIN_PATH=.../tests/llama_server_shim.py pytest unit/test_chat_completion.py

docs/serving.md says what passes, and why the rest does not.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from llamalite.__main__ import main

_FLAGS = set(
    "--offline --cont-batching --embedding --reranking --metrics --kv-unified --swa-full --slots --no-slots --no-ui "
    "--context-shift --no-models-autoload --jinja --no-jinja --no-mmproj --verbose --no-cache-idle-slots".split()
)
_SAME = {"--port": "--port", "--host": "--host", "--temp": "--temp", "--seed": "--seed", "--pooling": "--pooling"}
_SAME |= {"--api-key": "--api-key", "--cors-origins": "--cors", "--parallel": "--parallel"}
_OURS = {"--slots": "--slots", "--no-ui": "--no-page", "--verbose": "-vv"}
# llama-server has templates by name; a model without one gets ChatML there.
_TURN = "{%% for m in messages %%}{{ '%s' + m.role + '%s' + m.content + '%s' }}{%% endfor %%}"
_ASK = "{%% if add_generation_prompt %%}{{ '%s' }}{%% endif %%}"
_NAMED = {
    "chatml": (_TURN + _ASK) % ("<|im_start|>", r"\n", r"<|im_end|>\n", r"<|im_start|>assistant\n"),
    "llama3": (_TURN + _ASK)
    % (
        "<|start_header_id|>",
        r"<|end_header_id|>\n\n",
        "<|eot_id|>",
        r"<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
}


def options_of(args: list[str]) -> dict[str, str]:
    options, at = {}, 0
    while at < len(args):
        has_value = args[at] not in _FLAGS
        options[args[at]] = args[at + 1] if has_value else ""
        at += 1 + has_value
    return options


def template_of(options: dict[str, str], folder: Path) -> Path:
    if file := options.get("--chat-template-file"):
        return Path(os.environ["LLAMALITE_SHIM_TEMPLATES"]) / Path(file).name
    name = options.get("--chat-template", "chatml")
    path = folder / "template.jinja"
    path.write_text(_NAMED.get(name, name), encoding="utf-8")
    return path


def arguments(args: list[str], folder: Path) -> list[str]:
    """Return the arguments of ``llamalite`` for llama-server's `args`."""
    options = options_of(args)
    ours = ["serve", os.environ["LLAMALITE_SHIM_MODEL"], "--threads", "1"]
    for theirs, name in _SAME.items():
        if theirs in options:
            ours += [name, options[theirs]]
    ours += [name for theirs, name in _OURS.items() if theirs in options]
    # There, n_ctx is divided among the slots, unless they share it.
    n_parallel, n_ctx = int(options.get("--parallel", 1)), int(options.get("--ctx-size", 512))
    ours += ["--parallel", str(n_parallel), "--ctx", str(n_ctx if "--kv-unified" in options else n_ctx // n_parallel)]
    for alias in (*filter(None, options.get("--alias", "").split(",")), "*"):
        ours += ["--alias", alias]
    if int(options.get("--n-predict", -1)) >= 0:
        ours += ["--max-tokens", options["--n-predict"]]
    if options.get("--reasoning") == "off":
        ours.append("--no-think")
    return [*ours, "--chat-template", str(template_of(options, folder))]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        sys.argv = ["llamalite", *arguments(sys.argv[1:], Path(scratch))]
        main()
