"""The hub, with the real huggingface_hub client against a hub on loopback: what is fetched, kept, refused and
reported."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import as_meta, as_pickles
from hub_server import TOKEN, HubServer, Repo
from toy import write_toy
from toy_checkpoint import write_checkpoint

import llamalite
from llamalite import store
from llamalite.converters import convert
from llamalite.store import hub

Fetch = Callable[..., dict[str, Any]]

# The client reads its settings when it is imported: each call is a process of its own, as an app's would be.
PROGRAM = """
import json, sys
from llamalite import errors, store
from llamalite.store import hub
name, arguments = json.loads(sys.argv[1])
said = []
try:
    arguments.setdefault("announce", said.append)
    result = {"path": str(getattr(store if name in ("obtain", "locate") else hub, name)(**arguments))}
except errors.HubError as error:
    result = {"error": str(error), "kind": type(error).__name__}
print(json.dumps(result | {"said": said}))
"""


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("toys") / "toy", n_layer=1, n_embd=64, n_ff=192)


@pytest.fixture
def server(toy: Path) -> Iterator[HubServer]:
    with HubServer({"org/toy": Repo(files_of(toy))}) as running:
        yield running


@pytest.fixture
def environment(tmp_path: Path, server: HubServer) -> dict[str, str]:
    others = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    return others | {
        "HF_HOME": str(tmp_path / "hf-home"),
        "HF_ENDPOINT": server.url,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(Path(llamalite.__file__).parents[1]),
        "PYTHONUTF8": "1",
    }


@pytest.fixture
def fetch(environment: dict[str, str]) -> Fetch:
    """Call a function of `hub` in a new process: ``fetch("fetch_checkpoint", repo_id=..., HF_TOKEN=...)``."""

    def call(function: str, **arguments: Any) -> dict[str, Any]:
        settings = {name: arguments.pop(name) for name in list(arguments) if name.isupper()}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, json.dumps([function, arguments])],
            env=environment | settings, capture_output=True, text=True, encoding="utf-8", timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    return call


# -- what reaches the network -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.2-1B", "a/b", "01-ai/Yi-6B", "TheBloke/x_y.z"])
def test_org_slash_name_is_a_repository(name: str) -> None:
    assert hub.is_repo_id(name)


@pytest.mark.parametrize(
    "name",
    ["model", "./a/b", "../b", "a/../b", "/a/b", "a/b/c", "a/b/", "a//b", "~/b", "C:\\a\\b", "a\\b", "a/b.gguf", "a/.b",
     "-a/b", "a/b c", "a/b\n", "a/b--c", "a/b.git", "https://huggingface.co/a/b", "", "a/", "/b", "ü/b", "a/b:Q4_K_M"],
)  # fmt: skip
def test_nothing_else_is_a_repository(name: str) -> None:
    assert not hub.is_repo_id(name)


def test_an_existing_path_or_folder_is_not_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub.is_repo_id("models/toy")
    (tmp_path / "models").mkdir()
    assert not hub.is_repo_id("models/toy")  # a mistyped path is nobody's business
    (tmp_path / "models" / "toy").mkdir()
    assert not hub.is_repo_id("models/toy")


def test_the_client_is_not_loaded_before_it_is_needed() -> None:
    program = "import sys, llamalite.store as s; s.hub.is_repo_id('a/b'); assert 'huggingface_hub' not in sys.modules"
    environment = os.environ | {"PYTHONPATH": str(Path(llamalite.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)


def test_a_path_never_reaches_the_network(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a repository on the hub: expected org/name"):
        hub.fetch_checkpoint("../secret")


# -- checkpoints ------------------------------------------------------------------------------------------------------


def test_only_what_a_conversion_reads_is_fetched(server: HubServer, toy: Path, fetch: Fetch, tmp_path: Path) -> None:
    needed = server.repos["org/toy"].files
    server.repos["org/toy"].files = needed | {
        "pytorch_model.bin": b"the same once more", "consolidated.safetensors": b"x", "onnx/model.onnx": b"x",
        "original/consolidated.00.pth": b"x", "model.fp16.safetensors": b"x", "flax_model.msgpack": b"x",
        "training_args.bin": b"x", "README.md": b"# Toy", "handler.py": b"import os", "sub/config.json": b"{}",
    }  # fmt: skip
    answer = fetch("fetch_checkpoint", repo_id="org/toy")
    folder = Path(answer["path"])
    assert sorted(server.downloads()) == sorted([*needed, "README.md"])
    assert {path.name for path in folder.iterdir()} == {*needed, "README.md"}
    assert folder.is_relative_to(tmp_path / "hf-home")
    assert answer["said"][0] == f"asking {server.url} for org/toy"
    assert answer["said"][1].startswith(f"fetching {len(needed) + 1} files of org/toy, 0.00 GB, into {tmp_path}")
    # The folder in the cache is called after its revision; the model is not.
    expected = convert(toy, tmp_path / "a.gguf").path.read_bytes()
    assert convert(folder, tmp_path / "b.gguf").path.read_bytes() == expected


@pytest.mark.parametrize("whole", ["model.safetensors", "pytorch_model.bin"])
def test_a_whole_file_is_fetched_without_the_shards_of_an_older_save(
    server: HubServer, fetch: Fetch, whole: str
) -> None:
    files = server.repos["org/toy"].files
    stem, _, suffix = whole.partition(".")
    weights = files.pop("model.safetensors")
    stale = {f"{stem}-0000{i}-of-00002.{suffix}": b"old" for i in (1, 2)} | {f"{whole}.index.json": b"{}"}
    server.repos["org/toy"].files = files | {whole: weights} | stale
    folder = Path(fetch("fetch_checkpoint", repo_id="org/toy")["path"])
    assert {path.name for path in folder.iterdir()} == {*files, whole}


def test_an_index_is_fetched_with_all_its_shards(server: HubServer, fetch: Fetch) -> None:
    files = server.repos["org/toy"].files
    del files["model.safetensors"]
    sharded = {f"model-0000{i}-of-00002.safetensors": b"new" for i in (1, 2)} | {"model.safetensors.index.json": b"{}"}
    server.repos["org/toy"].files = files | sharded | {"pytorch_model.bin": b"x"}
    folder = Path(fetch("fetch_checkpoint", repo_id="org/toy")["path"])
    assert {path.name for path in folder.iterdir()} == {*files, *sharded}


def test_what_is_in_the_cache_is_not_fetched_again(server: HubServer, fetch: Fetch) -> None:
    first = fetch("fetch_checkpoint", repo_id="org/toy")["path"]
    n = len(server.downloads())
    assert fetch("fetch_checkpoint", repo_id="org/toy")["path"] == first
    assert len(server.downloads()) == n > 0


@pytest.mark.parametrize("form", ["pickles", "meta"])
def test_other_formats_are_fetched_if_there_are_no_safetensors(
    server: HubServer, toy: Path, fetch: Fetch, tmp_path: Path, form: str
) -> None:
    folder = as_pickles(toy, tmp_path / "other", 2) if form == "pickles" else as_meta(toy, tmp_path / "other")
    server.repos["org/toy"].files = files_of(folder) | {"ggml-model.bin": b"x"}
    fetched = Path(fetch("fetch_checkpoint", repo_id="org/toy")["path"])
    assert {path.name for path in fetched.iterdir()} == {path.name for path in folder.iterdir()}
    assert convert(fetched, tmp_path / "toy.gguf").n_tensors == 12


def test_a_revision_is_fetched_by_name(server: HubServer, fetch: Fetch) -> None:
    files = server.repos["org/toy"].files
    server.repos["org/toy"].others = {"v2": files | {"README.md": b"second"}}
    first, second = (fetch("fetch_checkpoint", repo_id="org/toy", revision=name)["path"] for name in (None, "v2"))
    assert not (Path(first) / "README.md").exists()
    assert (Path(second) / "README.md").read_bytes() == b"second"
    error = fetch("fetch_checkpoint", repo_id="org/toy", revision="v3")["error"]
    assert error == f"org/toy has no revision 'v3': see the branches and tags at {server.url}/org/toy/tree/main"


def test_an_interrupted_transfer_continues_where_it_was(server: HubServer, fetch: Fetch) -> None:
    weights = bytes(range(256)) * 100_000  # the client keeps what came in pieces of 10 MiB
    server.repos["org/big"] = Repo({"config.json": b"{}", "model.safetensors": weights}, cuts=1)
    folder = Path(fetch("fetch_checkpoint", repo_id="org/big")["path"])
    assert f"RANGE {10 << 20}" in server.requests
    assert (folder / "model.safetensors").read_bytes() == weights


# -- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_gated_repository_says_what_to_do_and_opens_with_the_token(server: HubServer, fetch: Fetch) -> None:
    server.repos["org/toy"].gated = True
    error = fetch("fetch_checkpoint", repo_id="org/toy")["error"]
    assert error == (
        f"org/toy is gated: accept its terms at {server.url}/org/toy, then log in with `hf auth login` or set HF_TOKEN "
        "to a token of that account"
    )
    assert "gated" in fetch("fetch_checkpoint", repo_id="org/toy", HF_TOKEN="hf_wrong")["error"]
    assert "path" in fetch("fetch_checkpoint", repo_id="org/toy", HF_TOKEN=TOKEN)


def test_a_missing_repository_is_distinguished_from_a_missing_network(server: HubServer, fetch: Fetch) -> None:
    error = fetch("fetch_checkpoint", repo_id="org/nothing")["error"]
    assert error.startswith(f"{server.url} has no model org/nothing, or it is private: check the name at ")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    error = fetch("fetch_checkpoint", repo_id="org/toy", HF_ENDPOINT=f"http://127.0.0.1:{port}")["error"]
    assert error.startswith(f"http://127.0.0.1:{port} cannot be reached for org/toy (")
    assert "\n" not in error


@pytest.mark.parametrize(
    ("status", "message"), [(500, "answers 500 for org/toy"), (403, "refuses access to org/toy (403)")]
)
def test_a_broken_hub_is_reported_with_its_answer(server: HubServer, fetch: Fetch, status: int, message: str) -> None:
    server.repos["org/toy"].status = status
    assert message in fetch("fetch_checkpoint", repo_id="org/toy")["error"]


def test_without_the_network_only_the_cache_is_used(server: HubServer, fetch: Fetch) -> None:
    error = fetch("fetch_checkpoint", repo_id="org/toy", HF_HUB_OFFLINE="1")["error"]
    assert "is not complete in" in error
    assert "HF_HUB_OFFLINE is set" in error
    assert server.requests == []
    path = fetch("fetch_checkpoint", repo_id="org/toy")["path"]
    n = len(server.requests)
    offline = fetch("fetch_checkpoint", repo_id="org/toy", HF_HUB_OFFLINE="1")
    assert (offline["path"], offline["said"], len(server.requests)) == (path, [], n)
    server.repos["org/toy"].status = 503
    assert fetch("fetch_checkpoint", repo_id="org/toy")["path"] == path


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"config.json": b"{}"},
            "org/toy has no model*.safetensors, pytorch_model*.bin or consolidated.*.pth at its top level",
        ),
        ({"a-Q4_0.gguf": b"x"}, "org/toy has GGUF files (a-Q4_0.gguf) and nothing to convert: llamalite run org/toy"),
        ({}, "(found nothing)"),
    ],
)
def test_a_repository_without_weights_is_reported_with_what_it_has(
    server: HubServer, fetch: Fetch, files: dict[str, bytes], message: str
) -> None:
    server.repos["org/toy"].files = files
    assert message in fetch("fetch_checkpoint", repo_id="org/toy")["error"]
    assert server.downloads() == []


# -- ready-made files -------------------------------------------------------------------------------------------------

READY = {
    "toy-Q4_K_M.gguf": b"medium", "toy-Q8_0.gguf": b"large", "toy.f16.gguf": b"full", "mmproj-toy-Q4_K_S.gguf": b"no",
    "Q6_K/toy-Q6_K-00001-of-00002.gguf": b"one", "Q6_K/toy-Q6_K-00002-of-00002.gguf": b"two", "README.md": b"",
}  # fmt: skip


@pytest.mark.parametrize(
    ("qtype", "fetched"),
    [
        (None, ["toy-Q4_K_M.gguf"]),
        ("q8_0", ["toy-Q8_0.gguf"]),
        ("F16", ["toy.f16.gguf"]),
        ("Q6_K", ["Q6_K/toy-Q6_K-00001-of-00002.gguf", "Q6_K/toy-Q6_K-00002-of-00002.gguf"]),
    ],
)
def test_a_ready_made_file_is_fetched_by_its_type(
    server: HubServer, fetch: Fetch, qtype: str | None, fetched: list[str]
) -> None:
    server.repos["org/toy-GGUF"] = Repo(READY)
    path = Path(fetch("fetch_model", repo_id="org/toy-GGUF", qtype=qtype)["path"])
    assert path.as_posix().endswith(fetched[0])
    assert path.read_bytes() == READY[fetched[0]]
    assert sorted(server.downloads()) == fetched
    assert fetch("fetch_model", repo_id="org/toy-GGUF", qtype=qtype, HF_HUB_OFFLINE="1")["path"] == str(path)


def test_a_missing_type_is_reported_with_those_that_exist(server: HubServer, fetch: Fetch) -> None:
    server.repos["org/toy-GGUF"] = Repo(READY)
    error = fetch("fetch_model", repo_id="org/toy-GGUF", qtype="Q5_K_M")["error"]
    assert error == "org/toy-GGUF has no Q5_K_M, only Q6_K, Q4_K_M, Q8_0, F16"
    server.repos["org/no-GGUF"] = Repo({"mmproj-toy.gguf": b"no", "README.md": b""})
    error = fetch("fetch_model", repo_id="org/no-GGUF")["error"]
    assert error == "org/no-GGUF has no GGUF file of a model (mmproj-toy.gguf)"
    assert Path(fetch("fetch_model", repo_id="org/toy")["path"]).is_dir()  # weights, to be converted


@pytest.mark.parametrize(
    ("reference", "parts"),
    [("a/b-GGUF", ("a/b-GGUF", None)), ("a/b-GGUF:q4_k_m", ("a/b-GGUF", "Q4_K_M")), ("a/b:", ("a/b", ""))],
)
def test_a_reference_names_a_repository_and_a_type(reference: str, parts: tuple[str, str | None]) -> None:
    assert hub.split_type(reference) == parts


# -- once into the models folder --------------------------------------------------------------------------------------


def test_a_repository_of_weights_is_converted_once(
    server: HubServer, fetch: Fetch, models_folder: Path, toy: Path
) -> None:
    answer = fetch("obtain", model="org/toy:q8_0")
    path = models_folder / "org--toy-Q8_0.gguf"
    assert Path(answer["path"]) == path
    assert answer["said"][-1] == f"converting org/toy to Q8_0, once: {path}"
    server.close()
    again = fetch("obtain", model="org/toy", qtype="Q8_0")
    assert (Path(again["path"]), again["said"]) == (path, [])


def test_a_name_that_may_be_a_mistyped_path_is_reported_as_one_too(server: HubServer, fetch: Fetch) -> None:
    missing = fetch("obtain", model="org/nothing")
    assert missing["error"].startswith(f"there is no file org/nothing, and {server.url} has no model org/nothing, or")
    assert missing["kind"] == "RepositoryNotFoundError"
    server.close()
    for function in ("obtain", "locate"):
        unreachable = fetch(function, model="org/toy")
        assert unreachable["error"].startswith(
            f"there is no file org/toy, and {server.url} cannot be reached for org/toy"
        )
        assert unreachable["kind"] == "HubUnreachableError"


def test_a_repository_and_the_models_folder_prefer_the_same_type(
    server: HubServer, fetch: Fetch, models_folder: Path
) -> None:
    models_folder.mkdir()
    for name, qtypes in {
        "five": ("Q5_K_M", "Q4_K_S"),
        "many": ("F16", "Q8_0", "Q3_K_M"),
        "few": ("Q2_K", "Q3_K_L"),
    }.items():
        files = {f"{name}-{qtype}.gguf": qtype.encode() for qtype in qtypes}
        server.repos[f"org/{name}"] = Repo(files)
        for file, content in files.items():
            (models_folder / file).write_bytes(content)
        of_the_folder = store.resolve(name).read_bytes()
        assert Path(fetch("obtain", model=f"org/{name}")["path"]).read_bytes() == of_the_folder


def test_a_type_that_nobody_knows_fetches_nothing(server: HubServer, fetch: Fetch) -> None:
    with pytest.raises(AssertionError, match="ValueError: unknown type 'Q9'"):
        fetch("obtain", model="org/toy:Q9")
    assert server.downloads() == []


def test_ready_made_files_beside_weights_are_taken_if_they_have_the_type(
    server: HubServer, fetch: Fetch, toy: Path, models_folder: Path
) -> None:
    server.repos["org/both"] = Repo(files_of(toy) | {"both-Q4_K_M.gguf": b"ready"})
    assert Path(fetch("obtain", model="org/both")["path"]).read_bytes() == b"ready"
    assert server.downloads() == ["both-Q4_K_M.gguf"]
    assert Path(fetch("obtain", model="org/both:F32")["path"]) == models_folder / "org--both-F32.gguf"


# -- the command line -------------------------------------------------------------------------------------------------


def test_convert_announces_and_fetches(
    server: HubServer, toy: Path, environment: dict[str, str], tmp_path: Path, llamalite_command: Any
) -> None:
    expected = convert(toy, tmp_path / "expected.gguf", qtype="Q8_0").path.read_bytes()
    done = llamalite_command("convert", "org/toy", "-t", "Q8_0", "-o", "toy.gguf", env=environment)
    assert done.returncode == 0, done.stderr
    assert f"asking {server.url} for org/toy\nfetching 4 files of org/toy" in done.stderr
    assert (tmp_path / "toy.gguf").read_bytes() == expected
    server.repos["org/toy"].gated = True
    server.repos["org/toy"].files["config.json"] += b" "
    refused = llamalite_command(
        "convert", "org/toy", "-o", "no.gguf", env=environment | {"HF_HOME": str(tmp_path / "b")}
    )
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("error: org/toy is gated: accept its terms at ")
    for verb in ("convert", "run"):
        missing = llamalite_command(verb, "org/nothing", env=environment, input="hi")
        assert missing.returncode == 1
        assert f"{server.url} has no model org/nothing" in missing.stderr
        assert missing.stderr.count("\n") == 1


def test_run_fetches_a_ready_made_file(
    server: HubServer, environment: dict[str, str], tmp_path: Path, llamalite_command: Any
) -> None:
    server.repos["org/toy-GGUF"] = Repo({"toy-F32.gguf": write_toy(tmp_path / "toy.gguf").read_bytes()})
    done = llamalite_command("run", "org/toy-GGUF:f32", "Once", "-n", "3", "--raw", env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    quiet = llamalite_command("-q", "run", "org/toy-GGUF", "Once", "-n", "3", "--raw", env=environment)
    assert (quiet.returncode, quiet.stderr) == (0, "")


def test_a_mistyped_path_does_not_reach_the_network(
    server: HubServer, environment: dict[str, str], tmp_path: Path, llamalite_command: Any
) -> None:
    (tmp_path / "models").mkdir()
    for verb in ("convert", "run"):
        done = llamalite_command(verb, "models/typo", env=environment, input="")
        assert done.returncode == 1
        assert server.requests == []
    assert llamalite_command("convert", "models", "--revision", "v2", env=environment).returncode == 2
