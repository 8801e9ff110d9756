"""GGUF files as a model of lm-evaluation-harness, for its standard tasks (the extra `eval`).

    lm_eval --model llamalite --model_args path=demo-Q4_K_M.gguf --tasks arc_easy
    llamalite eval demo-Q4_K_M arc_easy             # the same

A task's requests are scored together (`likelihoods`), so that the context of a question is decoded once for all its
choices. Texts, chats and generation settings are treated as by the harness's own `hf` model (lm_eval/models/
huggingface.py, 0.4.13), so that both give the same scores for the same weights.
lm_eval finds this module through the entry point ``lm_eval.models``; with a version that has none, import it first.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from tqdm import tqdm

from llamalite.errors import EvaluationError, TemplateError
from llamalite.evaluation.likelihoods import LikelihoodScorer, Request
from llamalite.generation.completion import Completion
from llamalite.model import Model
from llamalite.sampling import SamplingParams
from llamalite.templates import continued

_logger = logging.getLogger(__name__)

_MAX_NEW_TOKENS = 256  # the default of the harness's own models, for tasks that set none
_SEED = 1234  # that of the harness
_LENGTH = 2048  # limit of the context if `max_length` gives none
_OF_HARNESS = {"batch_size", "max_batch_size", "device"}  # which it passes to every model
# Settings of transformers → ours, with transformers' default (``_get_default_generation_params``, generation/
# configuration_utils.py), which counts unless the model's file has its own.
_SETTINGS = {"top_k": ("top_k", 50), "top_p": ("top_p", 1.0), "min_p": ("min_p", 0.0),
             "repetition_penalty": ("repeat_penalty", 1.0)}  # fmt: skip
_WITHOUT_EFFECT = {"do_sample": None, "temperature": None, "use_cache": None, "num_beams": 1, "num_return_sequences": 1}


@register_model("llamalite")
class LlamaliteLM(TemplateLM):  # type: ignore[misc]
    """`path` is a GGUF file or a name in the models folder; `max_length` limits the context, by default to 2048.

    `exact` means an F32 cache and no flash attention. `parallel` is the number of answers generated at once.
    """

    def __init__(
        self,
        path: str,
        max_length: int | str | None = None,
        exact: bool | str = False,
        n_threads: int | str | None = None,
        n_gpu_layers: int | str = "auto",
        parallel: int | str = 16,
        **ignored: Any,
    ) -> None:
        super().__init__()
        if unknown := sorted(ignored.keys() - _OF_HARNESS):
            _logger.warning("this model has no setting %s: ignored", ", ".join(unknown))
        threads = int(n_threads) if n_threads else None
        precise = str(exact).lower() in ("true", "1", "yes")
        layers: Any = n_gpu_layers if n_gpu_layers in ("auto", "all") else int(n_gpu_layers)
        n_parallel = 1 if precise else int(parallel)
        self.model = Model(
            path,
            n_ctx=max(int(max_length), 1024 * n_parallel) if max_length else None,
            n_parallel=n_parallel,
            n_threads=threads,
            n_gpu_layers=layers,
            exact=precise,
        )
        native = self.model.native
        self.max_length = int(max_length) if max_length else min(native.n_ctx_train, _LENGTH)
        self._parallel = int(parallel)
        self._scorer = LikelihoodScorer(
            native, max_length=self.max_length, n_batch=max(2048, self.max_length), n_threads=threads, exact=precise
        )

    @property
    def eot_token_id(self) -> int:
        return self.model.native.eos

    @property
    def prefix_token_id(self) -> int:
        """The token that stands for an empty context: BOS, or else EOS, as in the harness's `hf` model."""
        return self.model.native.bos if self.model.native.bos >= 0 else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        return self.model.path.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the tokens of `string`, with BOS in front if the vocabulary adds it and the text lacks it."""
        native = self.model.native
        ids = self.model.tokenize(string, add_special=False, parse_special=True)
        if native.add_bos and add_special_tokens is not False and ids[:1] != [native.bos]:
            ids = [native.bos, *ids]
        return ids

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.model.metadata.get("tokenizer.chat_template") if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
        """Return the text of `chat_history`; without `add_generation_prompt` its last message is left open.

        A template that refuses these messages gets them without those of the role "system".
        """

        def render(messages: list[dict[str, Any]]) -> str:
            return self.model.render(messages, add_generation_prompt=add_generation_prompt)

        def text(messages: list[dict[str, Any]]) -> str:
            return render(messages) if add_generation_prompt else continued(render, messages)

        try:
            return text(chat_history)
        except TemplateError as error:
            others = [message for message in chat_history if message["role"] != "system"]
            if others == chat_history:
                raise
            utils.warning_once(_logger, f"the messages of the role system are left out: {error}")
            return text(others)

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_kwargs: Any
    ) -> list[tuple[float, bool]]:
        to_score = [Request(tuple(context), tuple(continuation)) for _, context, continuation in requests]
        self._warn_of_cut(sum(len(one.context) + len(one.continuation) > self.max_length + 1 for one in to_score))
        with tqdm(total=len(to_score), desc="loglikelihood", disable=disable_tqdm) as bar:

            def show(done: int) -> None:
                bar.update(done - bar.n)

            likelihoods = self._scorer.score(to_score, show)
        answers = [(likelihood.log_likelihood, likelihood.is_greedy) for likelihood in likelihoods]
        for (strings, _, _), answer in zip(requests, answers, strict=True):
            if strings is not None:
                self.cache_hook.add_partial("loglikelihood", strings, answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each whole text, from windows of `max_length` that score every token once."""
        places: list[int] = []
        windows: list[tuple[None, list[int], list[int]]] = []
        for place, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            self._warn_of_cut(len(tokens) > self.max_length)
            rolled = utils.get_rolling_token_windows(
                token_list=tokens,
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(utils.make_disjoint_window, rolled):
                places.append(place)
                windows.append((None, list(context), list(continuation)))
        sums = [0.0] * len(requests)
        for place, (log_likelihood, _) in zip(
            places, self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm), strict=True
        ):
            sums[place] += log_likelihood
        for request, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (request.args[0],), total)
        return sums

    def _warn_of_cut(self, n_cut: int) -> None:
        n_ctx_train = self.model.native.n_ctx_train
        if n_cut and self.max_length < n_ctx_train:
            utils.warning_once(
                _logger,
                f"texts are longer than {self.max_length} tokens and are cut, but the model was trained for "
                f"{n_ctx_train}: other scores than with max_length={n_ctx_train} (llamalite eval --ctx)",
            )

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the continuation of each text, without the stop string that ended it."""
        prompts: list[list[int]] = []
        params: list[SamplingParams] = []
        for number, request in enumerate(requests):
            text, settings = request.args
            chosen = self._sampling(settings).replace(seed=_SEED + number)
            tokens = self.tok_encode(text)
            room = self.max_length - (chosen.max_tokens or 0)
            if room <= 0:
                raise EvaluationError(
                    f"a task asks for {chosen.max_tokens} tokens, and the context holds {self.max_length}: pass a "
                    "larger max_length (llamalite eval --ctx)"
                )
            self._warn_of_cut(len(tokens) > room)
            prompts.append(tokens[-room:])
            params.append(chosen)
        with tqdm(total=len(requests), desc="generate_until", disable=disable_tqdm) as bar:

            def show(_number: int, _completion: Completion) -> None:
                bar.update()

            completions = self.model.generate_batch(prompts, params, parallel=self._parallel, on_completion=show)
        answers = [self._text(one, chosen.stops) for one, chosen in zip(completions, params, strict=True)]
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, answer)
        return answers

    def _sampling(self, settings: Mapping[str, Any]) -> SamplingParams:
        """Return a task's ``generation_kwargs`` as parameters; `EvaluationError` for one that has no counterpart."""
        wanted: dict[str, Any] = dict(normalize_gen_kwargs(dict(settings), _MAX_NEW_TOKENS))
        native = self.model.native
        end = native.token_to_piece(native.eos, special=True).decode("utf-8", "replace") if native.eos >= 0 else None
        until = handle_stop_sequences(wanted.pop("until"), eos=end)
        temperature = float(wanted.get("temperature", 0.0)) if wanted["do_sample"] else 0.0
        base = SamplingParams(
            max_tokens=wanted.pop("max_gen_toks"), temperature=temperature, stop=[text for text in until if text]
        )
        own, fresh = self.model.defaults, SamplingParams()
        for name, (ours, default) in _SETTINGS.items():
            in_file = getattr(own, ours)
            value = wanted.pop(name, in_file if in_file != getattr(fresh, ours) else default)
            base = base.replace(**{ours: value})
        unknown = {name: value for name, value in wanted.items() if _WITHOUT_EFFECT.get(name, ()) not in (None, value)}
        if unknown:
            listed = ", ".join(f"{name}={value!r}" for name, value in unknown.items())
            raise EvaluationError(f"a task asks for {listed}, which has no counterpart here")
        return base.replace(repeat_last_n=self.max_length)

    def _text(self, completion: Completion, until: tuple[str, ...]) -> str:
        """Return the text as the original tokenizer decodes it: a SentencePiece one drops a space at the start."""
        native, keys = self.model.native, self.model.metadata
        text = b"".join(map(native.token_to_piece, completion.tokens)).decode("utf-8", "replace")
        if keys["tokenizer.ggml.model"] == "llama" and keys.get("tokenizer.ggml.add_space_prefix") != "false":
            text = text.removeprefix(" ")
        return str(postprocess_generated_text(text, list(until), None))
