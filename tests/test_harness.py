"""eval: the harness's model agrees with its own `hf` model, and says so when the harness is missing."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import toy
from click.testing import CliRunner

import llamalite
from llamalite import templates
from llamalite.cli import cli
from llamalite.errors import EvaluationError, TemplateError
from llamalite.evaluation.tasks import local

HARNESS = importlib.util.find_spec("lm_eval") is not None
needs_harness = pytest.mark.skipif(not HARNESS, reason='needs the extra "eval" (lm-evaluation-harness)')
PAIRS = [
    ("Once upon a time, there was a", " little girl"),
    ("Once upon a time, there was a", " dog named Max."),
    ("Once upon a time, there was a", "n elephant"),
    ("Lily and Ben went to the park. They saw a big", " tree"),
    ("", "The sun was warm."),
]


def instances(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=argument) for argument in arguments]


@pytest.mark.skipif(HARNESS, reason="the harness is installed")
def test_a_missing_harness_names_the_extra(tmp_path: Path) -> None:
    failed = CliRunner().invoke(cli, ["eval", str(tmp_path / "m.gguf"), "arc_easy"], obj={})
    assert failed.exit_code == 1
    assert "pip install lm-eval rouge-score" in failed.output


def test_f1_of_bags_by_hand() -> None:
    assert local.f1(["a", "b"], ["b", "c", "c"]) == pytest.approx(2 * 1 / 5)
    assert local.f1(["a", "a"], ["a"]) == pytest.approx(2 / 3)
    assert local.f1([], []) == 1.0
    assert local.f1(["a"], []) == local.f1([], ["a"]) == 0.0


def test_answers_are_compared_as_squad_does() -> None:
    doc = {"expected": "Emma likes honey."}
    assert local.answering(doc, ["emma likes the honey"]) == {"exact_match": 1.0, "f1": 1.0}
    assert local.answering(doc, ["Emma likes bread."]) == {"exact_match": 0.0, "f1": pytest.approx(2 / 3)}


def test_a_sum_is_right_by_its_last_number() -> None:
    doc = {"expected": "9 - 15 = -6."}
    for answer, right in (("9 - 15 = -6.", 1.0), ("It is -6", 1.0), ("9 - 15 = 6.", 0.0), ("I do not know.", 0.0)):
        assert local.arithmetic(doc, [answer]) == {"exact_match": right}


def test_entities_are_told_apart_by_their_label() -> None:
    assert local.entities("Names: Ann, Bo Lee. Places: Rome.") == ["names:ann", "names:bo lee", "places:rome"]
    assert local.entities("Names: none. Places: St. Moritz.") == ["places:st. moritz"]
    assert local.entities("I see nobody.") == []
    doc = {"expected": "Names: Ann. Places: Rome."}
    assert local.named_entities(doc, ["Places: Rome. Names: Ann."])["exact_match"] == 1.0
    assert local.named_entities(doc, ["Names: Rome. Places: Rome."]) == {"exact_match": 0.0, "f1": 0.5}


@needs_harness
def test_the_tasks_that_come_along_run_by_name(tmp_path: Path) -> None:
    path = toy.write_toy(tmp_path / "toy.gguf", chat_template=toy.CHATML)
    settings = {"verbose": 0, "quiet": True}
    ran = CliRunner().invoke(
        cli, ["eval", str(path), "llamalite_small", "--chat", "--limit", "2", "--json"], obj=settings
    )
    assert ran.exit_code == 0, ran.output
    results = json.loads(ran.stdout)["results"]
    metrics = {task: {name.partition(",")[0] for name in values} for task, values in results.items()}
    assert {"bleu", "chrf", "exact_match"} <= metrics["llamalite_translation"]
    assert {"rouge1", "rouge2", "rougeL"} <= metrics["llamalite_summary"]
    assert {"exact_match", "f1"} <= metrics["llamalite_names"] & metrics["llamalite_reading"]
    assert "acc" in metrics["llamalite_sentiment"]
    assert "exact_match" in metrics["llamalite_arithmetic"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from llamalite.evaluation.harness import LlamaliteLM

    path = toy.write_toy(tmp_path_factory.mktemp("harness") / "toy.gguf", chat_template=toy.CHATML)
    loaded = LlamaliteLM(str(path), max_length=256, exact=True, n_threads=1)
    yield loaded
    loaded.model.close()


@needs_harness
def test_a_whole_text_is_the_sum_of_its_tokens(model: Any) -> None:
    text = "once upon a time there was a story "
    whole = model.loglikelihood_rolling(instances((text,)), disable_tqdm=True)[0]
    ids = model.tok_encode(text)
    one_by_one = [(None, ids[:i] or [model.prefix_token_id], ids[i : i + 1]) for i in range(len(ids))]
    parts = model._loglikelihood_tokens(
        [(None, [model.prefix_token_id, *context][-256:] if i else context, target)
         for i, (_, context, target) in enumerate(one_by_one)], disable_tqdm=True,
    )  # fmt: skip
    assert whole == pytest.approx(math.fsum(log_likelihood for log_likelihood, _ in parts), abs=1e-3)


@needs_harness
def test_an_answer_ends_before_its_stop_string(model: Any) -> None:
    asked = instances(("once upon", {"until": [], "max_gen_toks": 12}))
    whole = model.generate_until(asked, disable_tqdm=True)[0]
    stop = whole[len(whole) // 2]
    cut = model.generate_until(instances(("once upon", {"until": [stop], "max_gen_toks": 12})), disable_tqdm=True)[0]
    assert cut == whole[: whole.index(stop)]


@needs_harness
def test_a_chat_is_rendered_by_the_file_s_template(model: Any) -> None:
    said = model.apply_chat_template([{"role": "user", "content": "tell me"}])
    assert said == "<|im_start|>user\ntell me<|im_end|>\n<|im_start|>assistant\n"


@needs_harness
def test_a_prefix_of_the_answer_is_left_open(model: Any) -> None:
    """As tasks with ``gen_prefix`` ask for it."""
    chat = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "The answer is"}]
    said = model.apply_chat_template(chat, add_generation_prompt=False)
    assert said == "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\nThe answer is"


@needs_harness
def test_a_template_that_refuses_the_system_role_gets_none(tmp_path: Path) -> None:
    from llamalite.evaluation.harness import LlamaliteLM

    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + toy.CHATML
    lm = LlamaliteLM(str(toy.write_toy(tmp_path / "toy.gguf", chat_template=refusing)), max_length=64, n_threads=1)
    user = {"role": "user", "content": "hi"}
    assert lm.apply_chat_template([{"role": "system", "content": "Be brief."}, user]) == lm.apply_chat_template([user])
    open_end = [{"role": "system", "content": "x"}, user, {"role": "assistant", "content": "So"}]
    assert lm.apply_chat_template(open_end, add_generation_prompt=False).endswith("assistant\nSo")
    with pytest.raises(TemplateError):
        lm.apply_chat_template([{"role": "user"}])  # not the role's fault
    lm.model.close()


SETTINGS: list[dict[str, Any]] = [
    {"until": ["\n"], "do_sample": False, "temperature": 0.0, "max_gen_toks": 5},
    {"until": "\n\n", "max_new_tokens": 6},
    {"until": [], "max_tokens": 7},
    {"max_completion_tokens": 8},
    {"until": [], "max_gen_toks": 5, "max_new_tokens": 9},
    {"until": [], "temperature": 0.7, "top_p": 0.95},
    {"until": [], "do_sample": True, "temperature": 0.2},
    {"until": [], "do_sample": False, "temperature": 1, "num_beams": 1},
]


@needs_harness
@pytest.mark.parametrize("settings", SETTINGS)
def test_generation_settings_are_those_of_the_harness(model: Any, settings: dict[str, Any]) -> None:
    from lm_eval.models.utils import normalize_gen_kwargs

    wanted = normalize_gen_kwargs(settings)
    params = model._sampling(settings)
    assert params.max_tokens == wanted["max_gen_toks"]
    assert params.temperature == (wanted.get("temperature", 0.0) if wanted["do_sample"] else 0.0)
    assert (params.top_p, params.top_k) == (settings.get("top_p", 1.0), 50)
    assert set(params.stops) >= set(wanted["until"])


@needs_harness
def test_every_setting_of_the_tasks_that_come_with_the_harness_is_understood(model: Any) -> None:
    import lm_eval
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Reads the harness's files, of which only the plain settings matter here."""

    Loader.add_multi_constructor("!", lambda *_: None)
    seen = 0
    for path in sorted((Path(lm_eval.__file__).parent / "tasks").rglob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        if "generation_kwargs" not in text:
            continue
        settings = (yaml.load(text, Loader) or {}).get("generation_kwargs")
        if settings:
            seen += 1
            assert model._sampling(settings).max_tokens, path
    assert seen > 200


@needs_harness
@pytest.mark.parametrize("settings", [{"num_beams": 4}, {"typical_p": 0.5}, {"num_return_sequences": 2}])
def test_a_setting_without_a_counterpart_is_refused_by_name(model: Any, settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(EvaluationError, match=f"a task asks for {name}=.*no counterpart"):
        model.generate_until(instances(("once", {"until": [], **settings})), disable_tqdm=True)


@needs_harness
def test_more_tokens_than_the_context_holds_are_refused_and_cut_texts_are_said(
    model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(EvaluationError, match="asks for 4000 tokens, and the context holds 256: pass a larger"):
        model.generate_until(instances(("once", {"until": [], "max_gen_toks": 4000})), disable_tqdm=True)
    model.model.native.n_ctx_train = 512
    model.generate_until(instances(("once upon a time " * 90, {"until": [], "max_gen_toks": 2})), disable_tqdm=True)
    assert "longer than 256 tokens and are cut, but the model was trained for 512" in caplog.text


@needs_harness
@pytest.mark.parity
@pytest.mark.parametrize("trim", ["", " | trim"])
@pytest.mark.parametrize("content", ["So", "So ", " So\n"])
def test_a_continued_message_is_cut_where_transformers_cuts_it(trim: str, content: str) -> None:
    chat_utils = pytest.importorskip("transformers.utils.chat_template_utils")
    source = "{% for m in messages %}<{{ m['role'] }}>{{ m['content']" + trim + " }}</s>\n{% endfor %}"
    messages = [{"role": "user", "content": "Well?"}, {"role": "assistant", "content": content}]
    (theirs,), _ = chat_utils.render_jinja_template([messages], chat_template=source, continue_final_message=True)
    assert templates.continued(templates.ChatTemplate(source).render, messages) == theirs


def test_a_message_that_cannot_be_continued_is_refused() -> None:
    for message in ({"role": "assistant"}, {"role": "assistant", "content": ["a"]}):
        with pytest.raises(TemplateError, match="no text to continue"):
            templates.continued(lambda _: "", [message])
    with pytest.raises(TemplateError, match="leaves out the last message"):
        templates.continued(lambda _: "nothing", [{"role": "assistant", "content": "So"}])


@needs_harness
@pytest.mark.parity
@pytest.mark.reference
def test_log_likelihoods_equal_the_harness_s_own_model(tmp_path: Path, shared: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    from llamalite.evaluation.harness import LlamaliteLM

    path = llamalite.convert(shared / "stories260k", tmp_path / "stories.gguf", qtype="F32").path
    ours = LlamaliteLM(str(path), exact=True, n_threads=1)
    theirs = HFLM(pretrained=str(shared / "stories260k"), device="cpu", dtype="float32", batch_size=1)
    likelihoods = ours.loglikelihood(instances(*PAIRS), disable_tqdm=True)
    expected = theirs.loglikelihood(instances(*PAIRS), disable_tqdm=True)
    for (log_likelihood, greedy), (other, also) in zip(likelihoods, expected, strict=True):
        assert log_likelihood == pytest.approx(other, abs=1e-3)
        assert greedy == also
    texts = instances(("Once upon a time, there was a little girl named Lily. " * 60,), ("The end.",))
    rolling, other_rolling = (model.loglikelihood_rolling(texts, disable_tqdm=True) for model in (ours, theirs))
    assert rolling == pytest.approx(other_rolling, abs=0.02)
    ours.model.close()
