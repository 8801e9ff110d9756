"""Special tokens (BOS, EOS and so on) and the chat template, for the keys ``tokenizer.ggml.bos_token_id`` and so on.

    special = read_special(files, n_tokens=128256)
    special.ids              # {"bos": 128000, "eos": 128009}
    special.add              # {"bos": True}: added to a text by default
    special.chat_template    # Jinja text, or a list of named templates, or None

Follows SpecialVocab of gguf-py (gguf/vocab.py as bundled in llama-cpp-python 0.3.36; the package `gguf` on PyPI is
older and differs), including the order of the keys. Deliberate differences are marked *on purpose*.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llamalite.converters.checkpoints.folder import member, more_templates
from llamalite.converters.checkpoints.json_file import read_object
from llamalite.converters.vocabulary.files import SPECIAL_NAMES, TokenizerFiles, entries, token_text
from llamalite.converters.warning_log import warn
from llamalite.errors import VocabularyError

TemplateSource = str | list[dict[str, str]] | None

# Tokens that llama.cpp recognizes by their text as an end of generation (llama_vocab::impl::load, llama-vocab.cpp).
KNOWN_ENDS = frozenset(
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> <|eom_id|> "
    "<EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <｜end▁of▁sentence｜>".split()
)


@dataclass
class SpecialTokens:
    """`ids` by name ("bos", "eos", "eot", ...) and `add`, whether texts get that token; both in the file's order."""

    ids: dict[str, int] = field(default_factory=dict)
    add: dict[str, bool] = field(default_factory=dict)
    chat_template: TemplateSource = None
    lowercase: bool | None = None
    strip_accents: bool | None = None

    def set_id(self, name: str, token_id: Any, n_tokens: int) -> None:
        """Set the id of `name` unless it is set; a `token_id` outside this vocabulary is ignored.

        On purpose: llama.cpp's converter fails on a negative id, which LLaMA 1 configs use for "none", and writes ids
        beyond the vocabulary, which the loader then ignores.
        """
        if not isinstance(token_id, int) or isinstance(token_id, bool) or name in self.ids:
            return
        if 0 <= token_id < n_tokens:
            self.ids[name] = token_id
        elif token_id >= 0:
            warn("%s token %d is outside the vocabulary of %d tokens: left out", name, token_id, n_tokens)


def read_special(files: TokenizerFiles, n_tokens: int) -> SpecialTokens:
    """Return the special tokens, template and normalizer flags of `files` for a vocabulary of `n_tokens`."""
    special = SpecialTokens()
    config = dict(files.named_tokens) or None
    names: tuple[str, ...] = SPECIAL_NAMES
    if files.tokenizer_json is not None:
        _read_normalizer(files.tokenizer_json.get("normalizer"), special)
        names = _read_post_processor(files.tokenizer_json, config, special)
    ids = {}
    for token in reversed(files.listed_tokens):  # of two entries with the same text, the first counts
        ids[token.content] = token.id
    if config is not None:
        for name in names:
            add = config.get(f"add_{name}_token")
            if isinstance(add, bool):
                special.add.setdefault(name, add)
            text = token_text(config.get(f"{name}_token"))
            if text is not None:
                # On purpose: llama.cpp's converter looks only into that list, which may lack them or be missing.
                known = files.id_of(text) if name in ("bos", "eos") and text not in ids else ids.get(text)
                special.set_id(name, known, n_tokens)
    text_config = files.config.get("text_config")
    for name in names:
        token_id = files.config.get(f"{name}_token_id")
        if token_id is None and isinstance(text_config, Mapping):
            token_id = text_config.get(f"{name}_token_id")
        special.set_id(name, token_id, n_tokens)
    special.chat_template = read_chat_template(files)
    return special


def add_stop_tokens(special: SpecialTokens, files: TokenizerFiles, texts: list[str]) -> None:
    """Add the tokens that end a generation: those of generation_config.json, and of a list in config.json.

    On purpose: llama.cpp's converter reads no lists, and not generation_config.json. A model without eos_token in
    tokenizer_config.json would get llama.cpp's default (token 11), and a fine-tune's own end token would never stop it.
    GGUF has keys for three: EOS, EOT and EOM; tokens that llama.cpp recognizes by their text (`KNOWN_ENDS`) need none.
    """
    in_config, generating = (config.get("eos_token_id") for config in (files.config, files.generation_config))
    listed = [*(in_config if isinstance(in_config, list) else []),
              *(generating if isinstance(generating, list) else [generating])]  # fmt: skip
    ends = list(dict.fromkeys(end for end in listed if isinstance(end, int) and 0 <= end < len(texts)))
    if ends and "eos" not in special.ids:
        special.ids["eos"] = ends[0]
    unnamed = [end for end in ends if end not in special.ids.values() and texts[end] not in KNOWN_ENDS]
    for token_id in unnamed:
        slot = next((name for name in ("eot", "eom") if name not in special.ids), None)
        if slot is None:
            warn("token %d (%r) also ends a generation, but GGUF has no key left for it", token_id, texts[token_id])
            break
        special.ids[slot] = token_id


def warn_without_end(special: SpecialTokens, kind: str, texts: list[str]) -> None:
    """Warn if no file names EOS: llama.cpp takes token 2 of a SentencePiece vocabulary for it, else token 11."""
    default = 2 if kind == "llama" else 11
    if "eos" in special.ids or texts[default : default + 1] == ["</s>"]:
        return
    shown = repr(texts[default]) if default < len(texts) else "which does not exist"
    others = [text for text in texts if text in KNOWN_ENDS]
    warn(
        "no file names an end token (eos_token): llama.cpp takes token %d for it, %s%s; name it in "
        "tokenizer_config.json, or in config.json as eos_token_id",
        default,
        shown,
        f", and ends at {', '.join(others[:3])} too" if others else ", so answers may not end by themselves",
    )


def _read_normalizer(normalizer: Any, special: SpecialTokens) -> None:
    if not isinstance(normalizer, dict):
        return
    kind = normalizer.get("type")
    if kind == "Lowercase":
        special.lowercase = True
    elif kind == "StripAccents":
        special.strip_accents = True
    elif kind == "BertNormalizer":
        lowercase, strip_accents = normalizer.get("lowercase"), normalizer.get("strip_accents")
        special.lowercase = lowercase if isinstance(lowercase, bool) else special.lowercase
        special.strip_accents = strip_accents if isinstance(strip_accents, bool) else special.strip_accents
    elif kind == "Sequence":
        for step in entries(normalizer, "normalizers"):
            _read_normalizer(step, special)


def _read_post_processor(
    tokenizer: dict[str, Any], config: dict[str, Any] | None, special: SpecialTokens
) -> tuple[str, ...]:
    """Set `special.add` from the post-processor, and return the names of the tokens to look up.

    This may change `config`: if the processor's template ends with a token other than eos_token, that token becomes
    EOS, and the old EOS becomes EOT.
    """
    names: tuple[str, ...] = SPECIAL_NAMES
    text = {name: token_text((config or {}).get(f"{name}_token")) for name in ("bos", "cls", "eos", "sep")}

    def rename(name: str, value: str | None) -> None:
        text[name] = value
        if config is not None:
            config[f"{name}_token"] = value

    if config is not None and not text["bos"] and text["cls"]:
        rename("bos", text["cls"])
    if config is not None and not text["eos"] and text["sep"]:
        rename("eos", text["sep"])
    for step in _post_processors(tokenizer):
        kind = step.get("type")
        if kind == "ByteLevel":
            special.add.setdefault("bos", False)
            special.add.setdefault("eos", False)
        elif kind == "RobertaProcessing":
            special.add.update(bos=True, eos=True, sep=True)
            for name, fallback in (("cls", "bos"), ("sep", "eos")):
                if config is not None and not text[name]:
                    rename(name, token_text({"content": (entries(step, name) or [text[fallback]])[0]}))
        elif kind == "TemplateProcessing":
            names = _read_template(step, config, special, text, rename, names)
    return names


def _post_processors(tokenizer: dict[str, Any]) -> list[dict[str, Any]]:
    post = tokenizer.get("post_processor")
    if not isinstance(post, dict):
        return []
    steps = post.get("processors", [post])
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise VocabularyError("tokenizer.json: 'post_processor' is not a list of steps: save the tokenizer again")
    return steps


def _special_of(entry: Any) -> str | None:
    token = entry.get("SpecialToken") if isinstance(entry, dict) else None
    return token_text({"content": token.get("id")}) if isinstance(token, dict) else None


def _read_template(
    step: dict[str, Any],
    config: dict[str, Any] | None,
    special: SpecialTokens,
    text: dict[str, str | None],
    rename: Any,
    names: tuple[str, ...],
) -> tuple[str, ...]:
    single, pair = entries(step, "single"), entries(step, "pair")
    first = last = None
    if len(single) > 1:
        first, last = _special_of(single[0]), _special_of(single[-1])
    if first:
        if config is None:
            text["bos"] = first
        elif first not in (text["bos"], text["cls"]):
            for name in ("bos", "cls"):
                if not text[name]:
                    rename(name, first)
        special.add["bos"] = first in (text["bos"], text["cls"])
        if not special.add["bos"]:
            warn("texts begin with %r in tokenizer.json, which is not the BOS token %r", first, text["bos"])
    if last:
        if config is None:
            text["eos"] = last
        elif last != text["eos"]:
            free_name = next((name for name in ("eot", "eom") if name not in names), None)
            if free_name:
                names = (*names, free_name)
                config[f"{free_name}_token"] = text["eos"]
            rename("eos", last)
        special.add["eos"] = True
    if pair:
        begin = 1 if first and _special_of(pair[0]) == first else 0
        end = len(pair) - 1 if last and _special_of(pair[-1]) == last else len(pair)
        between = pair[begin:end]
        is_pair = bool(between) and _sequence_of(between[0]) == "A" and _sequence_of(between[-1]) == "B"
        if is_pair and len(between) > 2:
            separators = [_special_of(entry) for entry in between[1:-1]]
            known = (text["sep"], text["eos"])
            add_sep = bool(separators[0]) and separators[0] in known and not last
            add_sep = add_sep or (len(separators) == 2 and bool(separators[1]) and separators[1] in known)
            special.add["sep"] = add_sep
            if add_sep and not text["sep"] and config is not None:
                config["sep_token"] = text["eos"]
    return names


def _sequence_of(entry: Any) -> Any:
    sequence = entry.get("Sequence") if isinstance(entry, dict) else None
    return sequence.get("id") if isinstance(sequence, dict) else None


def read_chat_template(files: TokenizerFiles) -> TemplateSource:
    """Return the chat template, a text, or a list of objects with ``name`` and ``template``; None for a base model.

    As in transformers 5 (``PreTrainedTokenizerBase._from_pretrained``): ``chat_template.jinja`` and
    ``additional_chat_templates/NAME.jinja`` together come before ``chat_template`` in tokenizer_config.json. On
    purpose: ``chat_template.json``, which only processors read there, comes last.
    """
    folder, configured = files.folder, (files.tokenizer_config or {}).get("chat_template")
    named = {}
    if (jinja := member(folder, "chat_template.jinja")).is_file():
        named["default"] = _text(jinja)
    named |= {path.stem: _text(path) for path in more_templates(folder)}
    if named:
        if "default" not in named:
            warn("the templates in additional_chat_templates have no default: transformers would use no other either")
        only = named["default"] if named.keys() == {"default"} else None
        return only if only is not None else _as_list(named)
    if configured is not None:
        return _checked(configured, "tokenizer_config.json")
    if (as_json := member(folder, "chat_template.json")).is_file():
        return _checked(read_object(as_json).get("chat_template"), as_json.name)
    return None


def _as_list(named: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"name": name, "template": template} for name, template in named.items()]


def _checked(template: Any, where: str) -> TemplateSource:
    if isinstance(template, Mapping):
        template = _as_list(template)
    if template is None or _is_text(template):
        return template  # type: ignore[no-any-return]
    if isinstance(template, list) and all(
        isinstance(entry, dict) and _is_text(entry.get("name")) and _is_text(entry.get("template"))
        for entry in template
    ):
        return template
    raise VocabularyError(
        f"{where}: 'chat_template' is neither a text nor a list of objects with 'name' and 'template': "
        "fix it, or remove it to convert without a template"
    )


def _is_text(value: Any) -> bool:
    """Tell whether `value` is a text that UTF-8 can encode, which excludes half a surrogate pair."""
    return isinstance(value, str) and value.encode("utf-8", "replace").decode() == value


def _text(path: Any) -> str:
    try:
        text: str = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise VocabularyError(f"{path} is not UTF-8: {error}") from error
    return text
