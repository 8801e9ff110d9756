"""`llamalite run`: one answer from an argument or a pipe, its options, and its errors in one line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy
from conftest import Run

import llamalite
from llamalite.model import Model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy(tmp_path_factory.mktemp("run") / "base.gguf")


@pytest.fixture(scope="module")
def instruct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy(tmp_path_factory.mktemp("run") / "instruct.gguf", chat_template=toy.CHATML, n_ctx_train=4096)


GREEDY = ("-n", "6", "--temp", "0", "--threads", "1")


def said(path: Path, prompt: object, **options: object) -> str:
    with Model(path, n_threads=1) as model:
        return model.generate(prompt, max_tokens=6, temperature=0, **options).text  # type: ignore[arg-type]


def test_a_base_model_continues_the_text(llamalite_command: Run, base: Path) -> None:
    ran = llamalite_command("run", base, "once upon a time", *GREEDY)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == said(base, "once upon a time") + "\n"  # into a pipe goes the answer alone
    assert ran.stderr == ""


def test_an_instruct_model_answers_in_its_template(llamalite_command: Run, instruct: Path) -> None:
    ran = llamalite_command("run", instruct, "tell me", *GREEDY, "--system", "yes")
    messages = [{"role": "system", "content": "yes"}, {"role": "user", "content": "tell me"}]
    assert ran.stdout.removesuffix("\n") == said(instruct, messages).removesuffix("\n")


def test_raw_leaves_the_template_out(llamalite_command: Run, instruct: Path) -> None:
    ran = llamalite_command("run", instruct, "tell me", *GREEDY, "--raw")
    assert ran.stdout == said(instruct, "tell me") + "\n"


def test_a_prompt_from_a_pipe_works(llamalite_command: Run, base: Path) -> None:
    ran = llamalite_command("run", base, *GREEDY, input="once upon a time\n")
    assert ran.stdout == said(base, "once upon a time") + "\n"


def test_exact_mode_is_the_exact_models(llamalite_command: Run, base: Path) -> None:
    with Model(base, exact=True, n_threads=1) as model:
        want = model.generate("once", max_tokens=6, temperature=0).text
    assert llamalite_command("run", base, "once", *GREEDY, "--exact").stdout == want + "\n"


def test_stats_go_to_standard_error(llamalite_command: Run, base: Path) -> None:
    ran = llamalite_command("run", base, "once", *GREEDY, "--stats")
    assert "answer 6 tokens" in ran.stderr
    assert "tok/s" in ran.stderr
    assert "tok/s" not in ran.stdout


def test_a_seed_repeats_its_answer(llamalite_command: Run, base: Path) -> None:
    runs = [llamalite_command("run", base, "once", "-n", "8", "--seed", "5", "--threads", "1").stdout for _ in range(2)]
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["nowhere.gguf", "hi"], 1, "error: .*nowhere.gguf"),
        (["BASE", "hi", "-n", "99999"], 1, "error: the prompt has .* too many"),
        (["BASE", "hi", "--ctx", "1000000000"], 1, "error: base.gguf needs .* GiB"),
        (["BASE", "hi", "--top-p", "2"], 2, "2 is not in the range|2.0 is not in the range"),
        (["BASE", "hi", "--gpu-layers", "many"], 2, "neither 'auto', 'all' nor a number"),
        (["BASE", "hi", "--system", "x"], 2, "--system and --session need a model with a chat template"),
    ],
)
def test_a_failure_is_one_line_and_its_exit_code(
    llamalite_command: Run, base: Path, args: list[str], code: int, message: str
) -> None:
    ran = llamalite_command("run", *[str(base) if arg == "BASE" else arg for arg in args])
    assert ran.returncode == code
    assert re.search(message, ran.stderr)
    assert "Traceback" not in ran.stderr
    if code == 1:
        assert ran.stderr.count("\n") == 1


def test_a_broken_model_is_reported_in_llama_cpps_words(llamalite_command: Run, base: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(base.read_bytes()[:-5000])
    ran = llamalite_command("run", "cut.gguf", "hi")
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: ")
    assert ran.stderr.count("\n") == 1


def test_a_model_in_the_models_folder_is_found_by_name(llamalite_command: Run, base: Path, models_folder: Path) -> None:
    models_folder.mkdir()
    (models_folder / "tiny-F32.gguf").write_bytes(base.read_bytes())
    assert llamalite_command("run", "tiny", "once", *GREEDY).stdout == said(base, "once") + "\n"


@pytest.mark.skipif(sys.platform == "win32", reason="signals of a terminal")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_within_moments(instruct: Path, number: signal.Signals, code: int) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(llamalite.__file__).parents[1])}
    command = [sys.executable, "-m", "llamalite", "run", str(instruct), "once", "--raw", "--threads", "1", "-n", "900"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)  # the answer has begun, with hundreds of tokens to come
        began = time.perf_counter()
        process.send_signal(number)
        process.communicate(timeout=30)
        assert process.returncode == code
        assert time.perf_counter() - began < 10


def test_a_prompt_and_a_system_message_come_from_files(llamalite_command: Run, instruct: Path, tmp_path: Path) -> None:
    (tmp_path / "ask.txt").write_text("tell me\n", encoding="utf-8")
    (tmp_path / "system.txt").write_text("yes\n", encoding="utf-8")
    ran = llamalite_command("run", instruct, "-f", "ask.txt", "--system-file", "system.txt", *GREEDY)
    messages = [{"role": "system", "content": "yes"}, {"role": "user", "content": "tell me"}]
    assert ran.stdout.removesuffix("\n") == said(instruct, messages).removesuffix("\n")
    assert llamalite_command("run", instruct, "hi", "-f", "ask.txt").returncode == 2


def test_json_is_one_object_and_nothing_else(llamalite_command: Run, base: Path) -> None:
    ran = llamalite_command("run", base, "once", *GREEDY, "--json")
    document = json.loads(ran.stdout)
    assert (document["text"], document["n_generated"]) == (said(base, "once"), 6)
    assert document["finish_reason"] == "length"
    assert document["model"].endswith("base.gguf")
    assert ran.stderr == ""


def test_a_schema_a_grammar_and_stop_texts_hold(llamalite_command: Run, base: Path, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}')
    (tmp_path / "g.gbnf").write_text('root ::= "yes" | "no"')
    (tmp_path / "bad.json").write_text("{")
    threads = ("--threads", "1")
    ran = llamalite_command("run", base, "once", "--schema", "s.json", "--seed", "1", *threads)
    assert isinstance(json.loads(ran.stdout)["a"], bool)
    assert llamalite_command("run", base, "once", "--grammar", "g.gbnf", *threads).stdout in ("yes\n", "no\n")
    assert "bad.json is not JSON" in llamalite_command("run", base, "once", "--schema", "bad.json").stderr
    (tmp_path / "null.json").write_text("null")
    refused = llamalite_command("run", base, "once", "--schema", "null.json")
    assert refused.returncode != 0
    assert "null.json, at #: a schema is an object or true, found null" in refused.stderr
    whole = said(base, "once upon a time")
    stop = whole[len(whole) // 2]
    ran = llamalite_command("run", base, "once upon a time", *GREEDY, "--stop", stop)
    assert ran.stdout.rstrip("\n") == whole[: whole.index(stop)].rstrip("\n")


def test_a_token_id_stops_and_is_named(llamalite_command: Run, base: Path) -> None:
    with Model(base, n_ctx=64) as model:
        tokens = model.generate("once upon a time", temperature=0, max_tokens=6).tokens
    ran = llamalite_command("run", base, "once upon a time", *GREEDY, "--stop-token", tokens[2], "--json")
    assert json.loads(ran.stdout)["stopped_by"] == tokens[2]
    assert json.loads(ran.stdout)["n_generated"] == tokens.index(tokens[2])
    refused = llamalite_command("run", base, "once", *GREEDY, "--stop-token", 10**6)
    assert "stop names token 1000000, and the vocabulary has" in refused.stderr


def test_a_session_is_resumed(llamalite_command: Run, instruct: Path) -> None:
    first = llamalite_command("run", instruct, "tell me", *GREEDY, "--session", "talk.session", "--json")
    assert first.returncode == 0, first.stderr
    second = llamalite_command("run", instruct, "and then", *GREEDY, "--session", "talk.session", "--json")
    document = json.loads(second.stdout)
    assert document["n_cached"] > json.loads(first.stdout)["n_prompt"]
    assert llamalite_command("run", instruct, "hi", "--raw", "--session", "x").returncode == 2


def test_help_has_an_example(llamalite_command: Run) -> None:
    text = llamalite_command("run", "--help").stdout
    assert "llamalite run demo" in text
    assert "--temp" in text


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes and closed streams are of POSIX")
def test_a_session_that_cannot_be_saved_is_refused_before_the_first_word(
    llamalite_command: Run, instruct: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place, message in (("missing/x", "there is no folder missing"), ("pipe", "pipe is not a regular file")):
        ran = llamalite_command("run", instruct, "tell me", *GREEDY, "--session", place)
        assert (ran.returncode, ran.stdout) == (1, "")
        assert message in ran.stderr
        assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize("given", ["argument", "file", "pipe"])
def test_an_empty_prompt_is_reported(given: str, llamalite_command: Run, instruct: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    words = {"argument": [""], "file": ["-f", str(tmp_path / "empty.txt")]}.get(given, [])
    ran = llamalite_command("run", instruct, *words, *GREEDY, stdin=subprocess.DEVNULL)
    message = "error: the prompt is empty: give a question, or some text to continue\n"
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", message)


def test_two_system_messages_are_wrong_usage(llamalite_command: Run, instruct: Path, tmp_path: Path) -> None:
    (tmp_path / "system.txt").write_text("Be brief.")
    ran = llamalite_command("run", instruct, "hi", "--system", "Be kind.", "--system-file", tmp_path / "system.txt")
    assert ran.returncode == 2
    assert "give --system or --system-file, not both" in ran.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes and closed streams are of POSIX")
def test_a_closed_standard_input_counts_as_empty(llamalite_command: Run, base: Path) -> None:
    empty = llamalite_command("run", base, *GREEDY, stdin=subprocess.DEVNULL)
    closed = llamalite_command("run", base, *GREEDY, preexec_fn=lambda: os.close(0))
    assert (closed.returncode, closed.stdout, closed.stderr) == (empty.returncode, empty.stdout, empty.stderr)
    assert "a bug in llamalite" not in closed.stderr


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"caf\xe9", "is not UTF-8 text: byte 0xe9 at offset 3; save it as UTF-8"),
        ("{}".encode("utf-16"), "is not UTF-8 text: byte 0xff at offset 0, which looks like UTF-16; save it as UTF-8"),
    ],
)
@pytest.mark.parametrize("option", ["-f", "--system-file", "--grammar", "--schema"])
def test_a_file_that_is_not_utf_8_is_named_with_the_byte(
    llamalite_command: Run, instruct: Path, tmp_path: Path, option: str, raw: bytes, message: str
) -> None:
    (tmp_path / "text").write_bytes(raw)
    ran = llamalite_command("run", instruct, *([] if option == "-f" else ["hi"]), option, "text", *GREEDY)
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", f"error: text {message}\n")


def test_a_file_of_another_editor_is_the_same_text(llamalite_command: Run, base: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes("\ufeffonce upon\r\na time\r\n".encode())
    assert llamalite_command("run", base, "-f", "text", *GREEDY).stdout == said(base, "once upon\na time") + "\n"
    (tmp_path / "schema").write_bytes(b"[" * 100_000)
    assert "schema is not JSON: " in llamalite_command("run", base, "hi", "--schema", "schema").stderr


def test_a_session_says_what_was_resumed_and_what_was_saved(llamalite_command: Run, instruct: Path) -> None:
    talk = ("--session", "talk.session")
    first = llamalite_command("run", instruct, "tell me", *GREEDY, *talk)
    match = re.fullmatch(r"Saved 1 turn, (\d+) tokens to talk.session\n", first.stderr)
    assert match, first.stderr
    second = llamalite_command("run", instruct, "and then", *GREEDY, *talk)
    assert second.stderr.startswith(f"Loaded 1 turn, {match[1]} tokens from talk.session\nSaved 2 turns, ")
    assert llamalite_command("run", instruct, "and then", *GREEDY, *talk, "-q").stderr == ""


def test_a_context_beyond_what_the_model_was_trained_for_is_one_warning(llamalite_command: Run, base: Path) -> None:
    ran = llamalite_command("run", base, "once", *GREEDY, "--ctx", "2048")
    assert (ran.returncode, ran.stderr.count("\n")) == (0, 1)
    assert "base.gguf was trained for 1024 tokens, fewer than n_ctx: answers get worse beyond" in ran.stderr
    for more in (("--ctx", "1024"), ("--ctx", "2048", "-q")):
        assert llamalite_command("run", base, "once", *GREEDY, *more).stderr == ""


@pytest.mark.skipif(sys.platform == "win32", reason="a name that Windows does not have")
def test_a_name_with_a_line_break_is_shown_in_one_line(llamalite_command: Run, tmp_path: Path, base: Path) -> None:
    folder = tmp_path / "models\nfolder\x1b[2J"
    folder.mkdir()
    (folder / "a\x07b.gguf").write_bytes(base.read_bytes())
    environment = os.environ | {"LLAMALITE_MODELS": str(folder), "PYTHONPATH": str(Path(llamalite.__file__).parents[1])}
    empty = tmp_path / "empty\n"
    empty.mkdir()
    verbose = ("run", "a\x07b", "once", *GREEDY, "-v", "--ctx", "2048")
    for args, models in (
        (("list",), folder), (("list",), empty), (("run", "nothing"), folder), (("run", "x/y\n"), folder),
        (verbose, folder), (("remove", "a\x07b", "-y"), folder),
    ):  # fmt: skip
        ran = llamalite_command(*args, env=environment | {"LLAMALITE_MODELS": str(models)})
        messages = ran.stderr if args[0] == "run" else ran.stdout + ran.stderr  # an answer in a pipe is what it is
        assert not re.search(r"[\x00-\x09\x0b-\x1f]", messages), (args, messages)
        assert messages.count("\n") == (2 if models == folder and args[0] == "list" else 1), (args, messages)
