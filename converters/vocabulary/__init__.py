"""From a checkpoint's tokenizer to the ``tokenizer.*`` keys of a GGUF file.

    vocabulary = read_vocabulary(Path("Llama-3.2-1B"), config)
    vocabulary.kind, vocabulary.pre, vocabulary.n_tokens     # ("gpt2", "llama-bpe", 128256)
    vocabulary.write_keys(writer)

Nothing here needs transformers. `probe` tests that a finished file tokenizes as the original does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamalite.converters.vocabulary import bpe, sentencepiece, tiktoken
from llamalite.converters.vocabulary.files import TokenizerFiles
from llamalite.converters.vocabulary.pretokenizer import ADDS_BOS
from llamalite.converters.vocabulary.special import add_stop_tokens, read_special, warn_without_end
from llamalite.converters.vocabulary.tokens import Vocabulary, check_tokens

__all__ = ["Vocabulary", "read_vocabulary"]

_CODELLAMA_TOKENS = 32016
_CODELLAMA_EOT = 32010  # "▁<EOT>" ends an infill; llama.cpp finds the other infill tokens by their text
_SMOLLM_TOKENS = 49152


def read_vocabulary(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    """Return the vocabulary of the Hugging Face folder `folder`, whose parsed config.json is `config`.

    ``tokenizer.model`` is preferred to ``tokenizer.json``, as in llama.cpp's converter. Raises `VocabularyError` for a
    tokenizer that llama.cpp cannot reproduce or whose files contradict each other, `CheckpointError` for files that are
    not JSON, and ``FileNotFoundError`` if there is no tokenizer.
    """
    files = tiktoken.open_files(folder, config)
    model, tokenizer = files.sentencepiece_model, files.tokenizer_json
    if model is not None:
        vocabulary = sentencepiece.read_sentencepiece(files, model)
    elif tokenizer is None:
        raise FileNotFoundError(_no_tokenizer(folder))
    elif bpe.has_byte_fallback(tokenizer):
        vocabulary = bpe.read_byte_fallback(files)
    else:
        vocabulary = bpe.read_byte_level(files)
    vocabulary.special = read_special(files, vocabulary.n_tokens)
    vocabulary.add_space_prefix = _space_prefix(files, vocabulary)
    texts = [token.decode("utf-8", "replace") for token in vocabulary.tokens]
    add_stop_tokens(vocabulary.special, files, texts)
    warn_without_end(vocabulary.special, vocabulary.kind, texts)
    _settle_bos(files, vocabulary)
    if config.get("vocab_size") == _CODELLAMA_TOKENS and "eot" not in vocabulary.special.ids:
        vocabulary.last.ids["eot"] = _CODELLAMA_EOT
    check_tokens(vocabulary)
    return vocabulary


def _no_tokenizer(folder: Path) -> str:
    """Return a message that says what is missing; transformers can write tokenizer.json from formats not read here."""
    command = f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
    unsupported = next((name for name in ("tekken.json", "vocab.json") if (folder / name).is_file()), None)
    if unsupported is not None:
        return (
            f"{folder} has its tokenizer as {unsupported} only, which is not supported: get tokenizer.json from the "
            f"model's repository, or let transformers write it: {command}"
        )
    return (
        f"{folder} has no tokenizer: neither tokenizer.model nor tokenizer.json is there. Get them from the "
        "model's repository, or save them with transformers' AutoTokenizer.save_pretrained"
    )


def _space_prefix(files: TokenizerFiles, vocabulary: Vocabulary) -> bool | None:
    """Return ``tokenizer.ggml.add_space_prefix``; ``None`` for llama.cpp's default, which is yes for "llama" only.

    On purpose: if tokenizer_config.json does not say, llama.cpp's converter keeps the default, and so adds a prefix for
    a SentencePiece model that was trained without one (Yi).
    """
    configured = (files.tokenizer_config or {}).get("add_prefix_space")
    if isinstance(configured, bool):
        return configured
    if vocabulary.kind == "gpt2":
        return None
    if files.tokenizer_json is not None:
        adds = bpe.adds_prefix(files.tokenizer_json)
    else:
        adds = files.sentencepiece_model is None or sentencepiece.adds_prefix(files.sentencepiece_model)
    return None if adds else False


def _settle_bos(files: TokenizerFiles, vocabulary: Vocabulary) -> None:
    """Set ``add_bos_token`` to false where llama.cpp would wrongly add BOS by default.

    By default llama.cpp adds BOS to SentencePiece vocabularies and to those with a name in `ADDS_BOS`. That is wrong if
    tokenizer.json lists the tokens that it adds and BOS is not among them. llama.cpp's converter also writes false for
    every vocabulary of 49,152 tokens, to catch Granite. On purpose, that happens here only if no file says that BOS is
    added.
    """
    if "bos" in vocabulary.special.add:
        return
    has_template = "TemplateProcessing" in str((files.tokenizer_json or {}).get("post_processor"))
    # transformers' own LLaMA classes add BOS, though no file says so.
    is_llama_class = str((files.tokenizer_config or {}).get("tokenizer_class", "")).startswith("LlamaTokenizer")
    unwanted = (
        has_template
        if vocabulary.kind == "llama"
        else vocabulary.pre in ADDS_BOS and (has_template or not is_llama_class)
    )
    if unwanted or files.config.get("vocab_size") == _SMOLLM_TOKENS:
        vocabulary.last.add["bos"] = False
