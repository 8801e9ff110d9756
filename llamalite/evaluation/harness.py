"""GGUF files as a model of lm-evaluation-harness, for its standard tasks (the extra `eval`).

    lm_eval --model llamalite --model_args path=demo-Q4_K_M.gguf --tasks arc_easy
    llamalite eval demo-Q4_K_M arc_easy             # the same

A task's requests are scored together (`likelihoods`), so that the context of a question is decoded once for all its
choices. Texts are tokenized as in the harness's own `hf` model, so that both give the same scores for the same weights.
lm_eval finds this module through the entry point ``lm_eval.models``; with a version that has none, import it first.
"""

from __future__ import annotations

from typing import Any

from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from llamalite.evaluation.likelihoods import LikelihoodScorer, Request
from llamalite.generation.completion import Completion
from llamalite.model import Model
from llamalite.sampling import SamplingParams

_MAX_NEW_TOKENS = 256  # the default of the harness's own models, for tasks that set none


@register_model("llamalite")
class LlamaliteLM(TemplateLM):  # type: ignore[misc]
    """`path` is a GGUF file or a name in the models folder; `max_length` limits the context.

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
        **_ignored: Any,  # the harness passes batch_size, device and more to every model
    ) -> None:
        super().__init__()
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
        self.max_length = int(max_length) if max_length else min(native.n_ctx_train, 2048)
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
        return self.model.render(chat_history, add_generation_prompt=add_generation_prompt)

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_kwargs: Any
    ) -> list[tuple[float, bool]]:
        to_score = [Request(tuple(context), tuple(continuation)) for _, context, continuation in requests]
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
            rolled = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
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

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the continuation of each text, without the stop string that ended it."""
        prompts: list[list[int]] = []
        params: list[SamplingParams] = []
        for request in requests:
            text, settings = request.args
            until = settings.get("until") or []
            n_new = int(settings.get("max_gen_toks", _MAX_NEW_TOKENS))
            sampled = settings.get("do_sample", False) and settings.get("temperature", 0.0) > 0
            prompts.append(self.tok_encode(text)[-max(1, self.max_length - n_new) :])
            params.append(
                SamplingParams(
                    max_tokens=n_new,
                    temperature=float(settings["temperature"]) if sampled else 0.0,
                    top_p=float(settings.get("top_p", 1.0)),
                    top_k=int(settings.get("top_k", 0)),
                    min_p=0.0,
                    stop=[until] if isinstance(until, str) else list(until),
                )
            )
        with tqdm(total=len(requests), desc="generate_until", disable=disable_tqdm) as bar:

            def show(_number: int, _completion: Completion) -> None:
                bar.update()

            completions = self.model.generate_batch(prompts, params, parallel=self._parallel, on_completion=show)
        answers = [completion.text for completion in completions]
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, answer)
        return answers
