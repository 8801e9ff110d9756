"""No command uses the network, and nothing in a model's folder is imported, compiled, executed or loaded.

Every command runs under an audit hook (PEP 578), inside a model folder that is full of traps.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import toy
import toy_checkpoint
from faults import environment

from llamalite.cli import VERBS

# What Python's audit hook reports: sockets and name lookups, and everything that runs code from a file or a program.
MAIN = """
import os, sys
log, folder = sys.argv[1:3]
del sys.argv[1:3]
NETWORK = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo",
           "socket.gethostbyname", "socket.gethostbyaddr", "urllib.Request", "http.client.connect", "ftplib.connect")
PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.startfile")
CODE = ("import", "compile", "exec", "ctypes.dlopen")

def hook(event, args):
    if event in NETWORK:
        told = f"network {event} {args!r:.200}"
    elif event in CODE or event in PROGRAMS:
        texts = [str(getattr(one, "co_filename", one)) for one in args]
        if not any(text.startswith(folder) or os.path.isfile(text) and not os.path.isabs(text) for text in texts):
            return
        told = f"code {event} {texts!r:.200}"
    else:
        return
    with open(log, "a") as out:
        out.write(told + "\\n")
    if event in NETWORK:
        raise OSError("the test allows no network")

sys.addaudithook(hook)
sys.path.pop(0)  # where this file lies
from llamalite.cli import main
main()
"""
TRAP = "open(__file__ + '.sprung', 'w').close()\n"
TRAPS = ["modeling_toy.py", "tokenization_toy.py", "configuration_toy.py", "__init__.py", "conftest.py", "setup.py",
         "sitecustomize.py", "usercustomize.py", "numpy.py", "json.py", "click.py", "llamalite.py"]  # fmt: skip
AUTO_MAP = {"AutoConfig": "configuration_toy.ToyConfig", "AutoModelForCausalLM": "modeling_toy.ToyModel",
            "AutoTokenizer": ["tokenization_toy.ToyTokenizer", None]}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, the GGUF file beside it, a text and prompts, and every file that a careless loader would run."""
    folder = toy_checkpoint.write_checkpoint(
        tmp_path_factory.mktemp("trust") / "toy", n_embd=256, auto_map=AUTO_MAP, trust_remote_code=True
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": AUTO_MAP, "chat_template": toy.CHATML}))
    for name in TRAPS:
        (folder / name).write_text(TRAP)
    for name in ("libllama.so", "libggml.so", "ggml-cpu.dll", "libggml-base.dylib"):
        (folder / name).write_bytes(b"\x7fELF trap")
    (folder / "text.txt").write_text("once upon a time there was the story, and " * 400)
    (folder / "in.jsonl").write_text('{"prompt": "once", "max_tokens": 2}\n')
    toy.write_toy(folder / "toy.gguf", chat_template=toy.CHATML)
    return folder


def arguments(folder: Path) -> dict[str, list[list[str]]]:
    """Return the calls of every command, to be made in `folder`."""
    measured = ["-f", "text.txt", "--ctx", "128", "--chunks", "2", "--threads", "1"]
    return {
        "convert": [[".", "-o", "../made.gguf", "--force"], [".", "--dry-run"]],
        "verify": [["../made.gguf", "--against", "."]],
        "run": [["toy.gguf", "hi", "-n", "2", "--threads", "1", "--session", "../talk"],
                ["toy.gguf", "hi", "-n", "2", "--threads", "1", "--session", "../talk"]],
        "list": [[]],
        "inspect": [["toy.gguf"]],
        "remove": [["no-such-model", "--yes"]],
        "batch": [["toy.gguf", "-i", "in.jsonl", "-o", "../out.jsonl", "--threads", "1"]],
        "perplexity": [["toy.gguf", *measured]],
        "compare": [["toy.gguf", "toy.gguf", *measured], [".", "-t", "Q8_0", *measured]],
        "imatrix": [["toy.gguf", "-o", "../imatrix.gguf", "-f", "text.txt", "--chunks", "2"]],
        "eval": [["toy.gguf", "llamalite_small", "--chat", "--limit", "1", "--threads", "1"]],
        "bench": [["toy.gguf", "toy.gguf", "-p", "16", "-n", "2", "-r", "1"]],
        "doctor": [[], ["toy.gguf"]],
        "demo": [[".", "-f", "text.txt"]],
        "completion": [["bash"]],
        "serve": [["no-such-model"]],
    }  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_a_command_asks_no_network_and_runs_nothing_from_the_models_folder(
    verb: str, folder: Path, tmp_path: Path
) -> None:
    if verb == "eval" and importlib.util.find_spec("lm_eval") is None:
        pytest.skip('needs the extra "eval" (lm-evaluation-harness)')
    if verb == "verify":
        run("convert", arguments(folder)["convert"][0], folder, tmp_path)
    for trap in folder.glob("*.sprung"):
        trap.unlink()
    for args in arguments(folder)[verb]:
        done, events = run(verb, args, folder, tmp_path)
        assert done.returncode == (verb in ("remove", "serve")), done.stderr[-2000:]
        assert events == []
    assert not list(folder.glob("**/*.sprung"))


def run(verb: str, args: list[str], folder: Path, scratch: Path) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    main, log = scratch / "main.py", scratch / "log"
    main.write_text(MAIN)
    log.write_text("")
    done = subprocess.run(
        [sys.executable, main, log, folder, verb, *args],
        cwd=folder, capture_output=True, text=True, env=environment(), timeout=300, check=False,
    )  # fmt: skip
    return done, log.read_text().splitlines()


def test_the_hook_sees_a_connection_and_code_that_runs(folder: Path, tmp_path: Path) -> None:
    """A repository is requested from the hub, and code in the folder is run: the tests above can fail."""
    done, events = run("run", ["org/name-GGUF", "hi"], folder, tmp_path)
    assert done.returncode == 1
    assert any(event.startswith("network socket.getaddrinfo") for event in events), (events, done.stderr)
    careless = "import runpy; runpy.run_path('setup.py')\nimport sys; sys.path.insert(0, '.')\nimport modeling_toy\n"
    (tmp_path / "main.py").write_text(MAIN.replace("from llamalite.cli import main\nmain()", careless))
    subprocess.run([sys.executable, tmp_path / "main.py", tmp_path / "log", folder], cwd=folder, check=True)
    events = (tmp_path / "log").read_text().splitlines()
    assert any("setup.py" in event for event in events)
    assert any("modeling_toy" in event for event in events)
    sprung = list(folder.glob("*.sprung"))
    assert len(sprung) == 2
    for trap in sprung:
        trap.unlink()
