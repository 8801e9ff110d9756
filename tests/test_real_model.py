"""A real instruct model with a vocabulary of 49,152 tokens, SmolLM2-135M-Instruct, through all that llamalite does."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import real_model

from llamalite import ChatSession, Model, convert
from llamalite.converters import Importance, QuantizeParams
from llamalite.evaluation.imatrix import collect_imatrix
from llamalite.evaluation.perplexity import perplexity
from llamalite.evaluation.verification import verify
from llamalite.quant_types import FILE_TYPES

pytestmark = pytest.mark.real

QUICK = ["F32", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M", "Q2_K"]
ALL = "LLAMALITE_TEST_REAL_ALL"  # set it to convert to every type: some search codebooks, for many minutes
CATS = [{"role": "user", "content": "Write one sentence about cats."}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
DATA = Path(__file__).parent / "data" / "real_model.json"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = real_model.gguf_file()
    assert source is not None
    return real_model.write_checkpoint(source, tmp_path_factory.mktemp("real") / real_model.NAME)


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of each quick type, made in one read."""
    out = tmp_path_factory.mktemp("files")
    report = convert(checkpoint, out, qtype=QUICK)
    assert report.tokens is not None
    assert (report.tokens.differences, report.tokens.known, report.warnings) == ([], [], ())
    assert report.tokens.n_texts > 4000
    return out


def path_of(folder: Path, qtype: str) -> Path:
    return folder / f"{real_model.NAME}-{qtype}.gguf"


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[Model]:
    with Model(path_of(folder, "Q8_0"), n_ctx=1024) as loaded:
        yield loaded


def test_a_file_of_every_type_answers(folder: Path) -> None:
    sizes = []
    for qtype in QUICK:
        path = path_of(folder, qtype)
        sizes.append(path.stat().st_size)
        with Model(path, n_ctx=128) as loaded:
            answer = loaded.generate(CATS, temperature=0, max_tokens=12).text
        assert "cat" in answer.lower() or qtype.startswith(("Q2", "Q3")), (qtype, answer)
    assert min(sizes) < 0.2 * max(sizes)


@pytest.mark.skipif(not os.environ.get(ALL), reason=f"takes many minutes: set {ALL}")
def test_every_type_is_made_with_an_importance_matrix(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    matrix = tmp_path / "imatrix.gguf"
    collect_imatrix(path_of(folder, "Q8_0"), "A cat is a small animal. " * 400).save(matrix, dataset="cats")
    params = QuantizeParams(importance=Importance.load(matrix))
    names = [name for name in FILE_TYPES if name != "Q1_0"]  # whose blocks of 128 do not fit rows of 576
    report = convert(checkpoint, tmp_path / "all", qtype=names, params=params)
    assert [output.qtype for output in report.outputs] == names
    for output in report.outputs:
        with Model(output.path, n_ctx=128) as loaded:
            assert len(loaded.generate(CATS, temperature=0, max_tokens=4).tokens) == 4, output.qtype


def test_the_package_s_own_file_answers_as_it_is() -> None:
    source = real_model.gguf_file()
    assert source is not None
    with Model(source, n_ctx=256) as loaded:
        assert "cat" in loaded.generate(CATS, **GREEDY).text.lower()


def test_a_file_is_verified(folder: Path, checkpoint: Path) -> None:
    report = verify(path_of(folder, "Q4_K_M"), checkpoint)
    assert report.ok, report.to_json()


@pytest.mark.parity
def test_greedy_answers_and_logits_are_those_of_transformers(folder: Path, checkpoint: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    questions = ("What is the capital of France?", "Write a haiku about the sea.", "List three colours.")
    with Model(path_of(folder, "F32"), n_ctx=256, exact=True) as loaded:
        for question in questions:
            chat = [{"role": "user", "content": question}]
            prompt = loaded.prompt_tokens(chat)
            assert prompt == tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
            answer = loaded.generate(prompt, **GREEDY, logprobs=0)
            with torch.inference_mode():
                logits = theirs(torch.tensor([prompt + list(answer.tokens)])).logits[0, len(prompt) - 1 : -1]
            best = torch.log_softmax(logits.double(), -1)
            chosen = best[torch.arange(len(answer.tokens)), torch.tensor(answer.tokens)]
            assert (best.max(-1).values - chosen).max() < 1e-3  # at each place a likeliest token, within rounding
            assert answer.logprobs is not None
            assert np.abs(chosen.numpy() - np.array(answer.logprobs)).max() < 1e-3


@pytest.mark.reference
def test_the_perplexity_is_llama_perplexitys(folder: Path, shared: Path) -> None:
    recorded = json.loads(DATA.read_text(encoding="utf-8"))["perplexity"]
    text = (shared / "wikitext-2-test.txt").read_bytes()
    result = perplexity(path_of(folder, "F32"), text, n_ctx=recorded["n_ctx"], chunks=recorded["chunks"], exact=True)
    assert result.ppl == pytest.approx(recorded["ppl"], abs=1e-3)


def test_a_chat_remembers_and_ends_by_itself(model: Model) -> None:
    chat = ChatSession(model, system="You answer in one short sentence.")
    first = chat.ask("My name is Ada. Say hello to me.", temperature=0, max_tokens=60)
    assert first.finish_reason == "stop"
    second = chat.ask("What is my name?", temperature=0, max_tokens=60)
    assert second.totals.n_cached >= first.totals.n_prompt + first.totals.n_generated
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant", "user", "assistant"]


def test_an_answer_by_schema_is_json(model: Model) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 30}, "country": {"enum": ["France", "Spain", "Italy"]}},
        "required": ["city", "country"],
    }
    prompt = [{"role": "user", "content": "Which city is the capital of France? Answer as JSON."}]
    answer = model.generate(prompt, json_schema=schema, temperature=0, max_tokens=100)
    assert answer.finish_reason == "stop"
    assert json.loads(answer.text)["country"] in ("France", "Spain", "Italy")


def test_a_batch_gives_the_answers_of_single_runs(folder: Path) -> None:
    capitals = ("France", "Italy", "Germany", "Japan", "Spain", "Egypt")
    prompts = [[{"role": "user", "content": f"What is the capital of {country}?"}] for country in capitals]
    with Model(path_of(folder, "F32"), n_ctx=1024, exact=True) as loaded:
        together = loaded.generate_batch(prompts, temperature=0, max_tokens=16)
        alone = [loaded.generate(prompt, temperature=0, max_tokens=16) for prompt in prompts]
    assert [answer.text for answer in together] == [answer.text for answer in alone]


def test_a_control_token_stops_the_answer_and_is_named(model: Model) -> None:
    ended = model.generate(CATS, temperature=0, max_tokens=60, stop=["<|im_end|>"])
    assert (ended.finish_reason, ended.stopped_by) == ("stop", "<|im_end|>")


TASKS = ["sentiment", "names", "reading", "summary", "arithmetic"]


@pytest.mark.parity
def test_five_tasks_score_as_with_the_harness_s_own_model(folder: Path, checkpoint: Path) -> None:
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from llamalite.evaluation import tasks as own_tasks
    from llamalite.evaluation.harness import LlamaliteLM

    manager = TaskManager(include_path=[str(Path(own_tasks.__file__).parent)])

    def answers(lm: Any) -> dict[str, list[Any]]:
        report = lm_eval.simple_evaluate(
            model=lm, tasks=[f"llamalite_{name}" for name in TASKS], limit=2, apply_chat_template=True,
            task_manager=manager, bootstrap_iters=0, gen_kwargs={"max_gen_toks": 16},
        )  # fmt: skip
        return {task: [sample["resps"] for sample in samples] for task, samples in report["samples"].items()}

    ours = LlamaliteLM(str(path_of(folder, "F32")), max_length=1024, exact=True)
    theirs = HFLM(pretrained=str(checkpoint), device="cpu", dtype="float32", batch_size=1, max_length=1024)
    got, expected = answers(ours), answers(theirs)
    ours.model.close()
    assert got.keys() == expected.keys() == {f"llamalite_{name}" for name in TASKS}
    for task, responses in expected.items():
        for ours_said, theirs_said in zip(got[task], responses, strict=True):
            for mine, other in zip(ours_said, theirs_said, strict=True):
                if task == "llamalite_sentiment":
                    assert float(mine[0][0]) == pytest.approx(float(other[0][0]), abs=1e-3)
                    assert mine[0][1] == other[0][1]
                else:
                    assert mine == other
