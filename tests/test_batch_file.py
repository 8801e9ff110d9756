"""`llamalite batch`: answers to a file of prompts, bad lines reported, a stopped run continued."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import toy
from conftest import Run

from llamalite.batch_file import answer_file
from llamalite.errors import LlamaliteError
from llamalite.model import Model
from llamalite.sampling import SamplingParams


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy(tmp_path_factory.mktemp("batch") / "toy.gguf", chat_template=toy.CHATML)


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[Model]:
    with Model(path, n_threads=1) as loaded:
        yield loaded


PARAMS = SamplingParams(max_tokens=4, temperature=0)
LINES = [
    '{"prompt": "once upon a time", "id": "a"}',
    '{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}',
    "",
    '{"prompt": "the story", "seed": 3, "logprobs": 0, "logit_bias": {"2": -5}}',
]


def write(folder: Path, lines: list[str]) -> Path:
    (folder / "in.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "in.jsonl"


def answers(target: Path) -> dict[int, dict[str, object]]:
    return {answer["line"]: answer for answer in map(json.loads, target.read_text(encoding="utf-8").splitlines())}


def test_every_line_gets_an_answer_with_its_own_parameters(model: Model, tmp_path: Path) -> None:
    report = answer_file(model, write(tmp_path, LINES), tmp_path / "out.jsonl", params=PARAMS, parallel=2)
    answered = answers(tmp_path / "out.jsonl")
    assert (report.n_answered, report.n_before, report.n_bad) == (3, 0, 0)
    assert sorted(answered) == [1, 2, 4]
    assert answered[1]["id"] == "a"
    asked = [{"role": "user", "content": "once upon a time"}]  # as `llamalite run` asks it
    assert answered[1]["text"] == model.generate(asked, PARAMS).text
    assert (answered[2]["n_generated"], answered[2]["stopped_by"]) == (2, None)
    assert (answered[4]["seed"], len(answered[4]["logprobs"])) == (3, 4)  # type: ignore[arg-type]


def test_a_raw_prompt_is_continued_as_it_is(model: Model, tmp_path: Path) -> None:
    answer_file(model, write(tmp_path, LINES[:1]), tmp_path / "out.jsonl", params=PARAMS, raw=True)
    assert answers(tmp_path / "out.jsonl")[1]["text"] == model.generate("once upon a time", PARAMS).text


def test_a_stopped_run_continues_where_it_was(model: Model, tmp_path: Path) -> None:
    source, target = write(tmp_path, LINES), tmp_path / "out.jsonl"
    answer_file(model, source, target, params=PARAMS)
    whole = target.read_bytes()
    first = whole.index(b"\n") + 1
    target.write_bytes(whole[: first + 20])  # killed in the middle of a line
    report = answer_file(model, source, target, params=PARAMS)
    assert (report.n_answered, report.n_before) == (2, 1)
    assert sorted(answers(target)) == [1, 2, 4]
    assert answer_file(model, source, target, params=PARAMS).n_answered == 0


def test_answers_to_another_file_are_not_added_to(model: Model, tmp_path: Path) -> None:
    answer_file(model, write(tmp_path, LINES), tmp_path / "out.jsonl", params=PARAMS)
    other = write(tmp_path, ['{"prompt": "another"}'])
    with pytest.raises(LlamaliteError, match="answers another file: its line 1 differs"):
        answer_file(model, other, tmp_path / "out.jsonl", params=PARAMS)
    (tmp_path / "notes.txt").write_text("dear diary\n")
    with pytest.raises(LlamaliteError, match="line 1: this is not an answer of llamalite batch"):
        answer_file(model, other, tmp_path / "notes.txt", params=PARAMS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "it is not JSON"),
        ("[1]", 'either "prompt" or "messages"'),
        ('{"prompt": "a", "messages": []}', 'either "prompt" or "messages"'),
        ('{"prompt": 5}', '"prompt" must be a string, found 5'),
        ('{"messages": ["hi"]}', '"messages" must be a list of objects'),
        ('{"messages": []}', "prompt has no tokens|no message to render"),
        ('{"prompt": "a", "temperature": -1}', r"temperature must lie in 0\.\.100"),
        ('{"prompt": "a", "temprature": 1}', "unknown parameter 'temprature'"),
        ('{"prompt": "a", "max_tokens": 99999}', "too many"),
        ('{"prompt": "a", "grammar": "root ::= nowhere"}', "grammar"),
        ('{"prompt": "a", "logit_bias": {"x": 1}}', "invalid literal"),
        pytest.param("[" * 100_000, "nested too deeply", id="deep"),
        ('{"prompt": "a", "logit_bias": [1]}', r'"logit_bias" must be an object, found \[1\]'),
        ('{"prompt": "a", "logit_bias": null}', '"logit_bias" must be an object, found None'),
        pytest.param('{"prompt": "a", "logit_bias": {"1": 1%s}}' % ("0" * 400), "logit_bias|OverflowError", id="huge"),
        ('{"prompt": "a", "grammar": 5}', '"grammar" must be a string, found 5'),
        ('{"prompt": "a", "json_schema": {"allOf": {"a": 1}}}', "it is invalid|allOf"),
        (r'{"prompt": "a", "id": "\ud800"}', '"id" has half a character'),
        ('{"prompt": null}', "."),
        pytest.param('{"prompt": "a", "id": %s}' % ("[" * 900 + "]" * 900), '"id" has|too deep', id="deep id"),
    ],
)
def test_a_bad_line_is_reported_with_its_number_and_stops_nothing(
    model: Model, tmp_path: Path, line: str, message: str
) -> None:
    import re

    problems: dict[int, str] = {}
    source = write(tmp_path, [LINES[0], line, LINES[1]])
    report = answer_file(
        model, source, tmp_path / "out.jsonl", params=PARAMS, on_problem=lambda n, why: problems.update({n: why})
    )
    assert sorted(answers(tmp_path / "out.jsonl")) == [1, 3]
    assert report.n_bad == 1
    assert re.search(message, problems[2])


@pytest.mark.parametrize(
    "held",
    [
        "no final newline",
        '{"line": 1, "prompt": "mine"}',
        '{"a": 1}',
        "dear diary\nno end",
        pytest.param("[" * 100_000 + "\n", id="deep"),
        '{"line": Infinity, "digest": ""}\n',
    ],
)
def test_a_foreign_file_is_left_as_it_is(model: Model, tmp_path: Path, held: str) -> None:
    (tmp_path / "notes").write_text(held)
    with pytest.raises(LlamaliteError, match=r"line \d: this is not an answer of llamalite batch"):
        answer_file(model, write(tmp_path, LINES), tmp_path / "notes", params=PARAMS)
    assert (tmp_path / "notes").read_text() == held


def test_half_an_answer_is_kept_until_the_file_is_known_to_be_ours(model: Model, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    answer_file(model, write(tmp_path, LINES), target, params=PARAMS)
    held = target.read_bytes()[:-9]
    target.write_bytes(held)
    with pytest.raises(LlamaliteError, match="answers another file"):
        answer_file(model, write(tmp_path, ['{"prompt": "another"}']), target, params=PARAMS)
    assert target.read_bytes() == held


def test_answers_cannot_be_written_into_the_prompts_file(model: Model, tmp_path: Path) -> None:
    source = write(tmp_path, LINES)
    source.write_text('{"prompt": "once"}')
    (tmp_path / "link").hardlink_to(source)
    for target in (source, tmp_path / "link"):
        with pytest.raises(LlamaliteError, match="is the file of prompts"):
            answer_file(model, source, target, params=PARAMS)
    assert source.read_text() == '{"prompt": "once"}'
    with pytest.raises(LlamaliteError, match="is not a regular file"):
        answer_file(model, source, Path(os.devnull), params=PARAMS)


def test_the_command_answers_and_reports_bad_lines(llamalite_command: Run, path: Path, tmp_path: Path) -> None:
    write(tmp_path, [*LINES, "nonsense"])
    ran = llamalite_command(
        "batch", path, "-i", "in.jsonl", "-o", "out.jsonl", "-n", "3", "--temp", "0", "--threads", "1"
    )
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert "in.jsonl, line 5: it is not JSON" in ran.stderr
    assert "3 lines answered: 8 tokens in" in ran.stderr
    assert "1 line of in.jsonl could not be used" in ran.stderr
    assert sorted(answers(tmp_path / "out.jsonl")) == [1, 2, 4]
