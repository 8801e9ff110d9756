"""Turns a prompt into token ids: a text, chat messages (with the file's chat template), or token ids unchanged.

    prompts = Prompts(native_model)
    ids = prompts.tokens([{"role": "user", "content": "hi <|im_end|>"}])     # one BOS; the user's <|im_end|> is text

Only a chat template can make control tokens; in messages and texts, the spelling of one stays text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llamalite.errors import TemplateError
from llamalite.native.model import NativeModel

if TYPE_CHECKING:
    from llamalite.templates import ChatTemplate

Message = Mapping[str, Any]
Prompt = str | Sequence[int] | Sequence[Message]

_TEMPLATE = "tokenizer.chat_template"


class Prompts:
    """Prompts for one model; a chat template is compiled when it is first needed."""

    def __init__(self, model: NativeModel, chat_template: str | None = None) -> None:
        self._model = model
        self._own_template = chat_template  # replaces the file's
        self._templates: dict[str, ChatTemplate] = {}

    @property
    def has_template(self) -> bool:
        return self.template_source() is not None

    def template_source(self, *, for_tools: bool = False) -> str | None:
        """Return the chat template's text, None if there is none; a file may have another one for tools."""
        if self._own_template is not None:
            return self._own_template
        metadata = self._model.metadata
        with_tools = metadata.get(f"{_TEMPLATE}.tool_use") if for_tools else None
        return with_tools or metadata.get(_TEMPLATE)

    def tokens(self, prompt: Prompt) -> list[int]:
        """Return the token ids of a text (with BOS if the file asks for it) or of messages; ids are checked."""
        if isinstance(prompt, (str, bytes)):
            return self._tokenize(prompt, add_special=True)
        if isinstance(prompt, Mapping) or not isinstance(prompt, Iterable):
            raise TypeError(f"prompt must be a string, a list of messages or token ids, found {prompt!r:.80}")
        if any(isinstance(item, Mapping) for item in prompt):
            return self.chat_tokens(prompt)  # type: ignore[arg-type]
        return [int(token) for token in self._model.check_tokens(prompt)]  # type: ignore[arg-type]

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] | None = None,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """Return `messages` rendered by the template, up to where the model's answer begins.

        With `continue_final_message`, the last message, the assistant's, is the beginning of that answer.
        """
        prefill = ""
        if continue_final_message:
            if len(messages) < 2 or messages[-1].get("role") != "assistant":
                raise ValueError("continue_final_message needs an assistant's message at the end, after another one")
            prefill, messages = str(messages[-1].get("content") or ""), messages[:-1]
        settings: dict[str, Any] = {"add_generation_prompt": True, **self._special_texts(), **variables}
        return self._template(tools is not None).render(messages, tools=tools, **settings) + prefill

    def chat_tokens(
        self, messages: Sequence[Message], *, tools: Sequence[Message] | None = None, **variables: Any
    ) -> list[int]:
        """Return the token ids of `render`, with exactly one BOS; no text in a message becomes a control token."""
        from llamalite import templates

        model = self._model
        if any(self._spells_control(text) for text in templates.strings([messages, tools])):
            control = model.control_tokens()
            guarded = templates.guard(messages, control)
            rendered = self.render(guarded, tools=templates.guard(tools, control), **variables)
            ids: list[int] = []
            for text, is_control in templates.split(rendered, control):
                ids += [control[text]] if is_control else self._tokenize(text)
        else:
            ids = self._tokenize(self.render(messages, tools=tools, **variables), parse_special=True)
        if model.add_bos and model.bos >= 0 and ids[:1] != [model.bos]:
            ids.insert(0, model.bos)
        return ids

    def _tokenize(self, text: str | bytes, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        ids: list[int] = self._model.tokenize(text, add_special=add_special, parse_special=parse_special).tolist()
        return ids

    def _spells_control(self, text: str) -> bool:
        return self._tokenize(text) != self._tokenize(text, parse_special=True)

    def _special_texts(self) -> dict[str, str]:
        named = {"bos_token": self._model.bos, "eos_token": self._model.eos}
        return {
            name: self._model.token_to_piece(token, special=True).decode("utf-8", "replace")
            for name, token in named.items()
            if token >= 0
        }

    def _template(self, for_tools: bool) -> ChatTemplate:
        source = self.template_source(for_tools=for_tools)
        if source is None:
            name = self._model.path.name
            raise TemplateError(
                f"{name} has no chat template: it can only continue a text; give it a string as the prompt"
            )
        if source not in self._templates:
            from llamalite.templates import ChatTemplate

            self._templates[source] = ChatTemplate(source)
        return self._templates[source]
