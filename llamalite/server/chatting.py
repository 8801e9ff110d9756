"""Messages, tools and how to answer → a question to the model; what the three chat protocols have in common."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any, Literal

from pydantic import Field

from llamalite.model import Model
from llamalite.sampling import SamplingParams
from llamalite.server.answering import Calls, Question
from llamalite.server.errors import refusal
from llamalite.server.fields import Fields, ResponseFormat, SamplingFields, room_for
from llamalite.server.settings import ServerSettings
from llamalite.tool_calls import call_format, read_choice, read_tools, template_messages, thinking_of


class ChatMessage(Fields):
    """One message of a conversation, in OpenAI's shape."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class Conversation(SamplingFields):
    """Messages, and how to answer them."""

    messages: list[ChatMessage] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    enable_thinking: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def continues(self) -> bool:
        """Return whether the answer goes on from the last message; the assistant's does if nothing is said."""
        last = self.messages[-1]
        if self.continue_final_message and self.add_generation_prompt:
            raise refusal(
                "continue_final_message and add_generation_prompt exclude each other", param="continue_final_message"
            )
        if self.continue_final_message is not None:
            return self.continue_final_message
        is_answer = last.role == "assistant" and not last.tool_calls and bool(last.content)
        if is_answer and len(self.messages) > 1 and self.messages[-2].role == "assistant":
            raise refusal("two messages of the assistant stand at the end: which one goes on?", param="messages")
        return is_answer and self.add_generation_prompt is None and len(self.messages) > 1

    def prompt(self, model: Model) -> tuple[dict[str, Any], Calls | None]:
        """Return the arguments of `Model.render` and `Model.chat_tokens`, and which tools may be called."""
        tools = read_tools(self.tools or [])
        allowed, is_required = read_choice(self.tool_choice, [tool.name for tool in tools])
        shown = tools if allowed else []
        form = call_format(model.template_source(for_tools=bool(shown)))
        messages = [message.model_dump(exclude_none=True) for message in self.messages]
        today = datetime.datetime.now()  # Llama 3's and Firefunction's templates tell the model the date
        variables: dict[str, Any] = {"date_string": today.strftime("%d %b %Y"), "datetime": today.strftime("%b %d %Y")}
        variables |= self.chat_template_kwargs or {}
        if self.enable_thinking is not None:
            variables["enable_thinking"] = self.enable_thinking
        reserved = {"messages", "tools", "add_generation_prompt", "continue_final_message"} & set(variables)
        if reserved:
            raise refusal(f"chat_template_kwargs may not set {reserved.pop()}", param="chat_template_kwargs")
        if self.continues():
            variables["continue_final_message"] = True
        elif self.add_generation_prompt is False:
            variables["add_generation_prompt"] = False
        described = [tool.for_template() for tool in shown] if shown and not form.describes_tools else None
        arguments = {"messages": template_messages(messages, form, shown), "tools": described, **variables}
        if not allowed:
            return arguments, None
        callable_tools = [tool for tool in tools if tool.name in allowed]
        return arguments, Calls(form, callable_tools, is_required, self.parallel_tool_calls is not False)

    def question(self, model: Model, settings: ServerSettings, max_tokens: int | None, **more: Any) -> Question:
        """Return the question to `model`; `more` are fields of `SamplingParams`."""
        arguments, calls = self.prompt(model)
        params = self.params(model, settings, **more)
        if calls is not None and (params.json_schema or params.grammar):
            raise refusal("tools and response_format exclude each other: give one", param="tools")
        ids = model.chat_tokens(**arguments)
        wanted = max_tokens if max_tokens is not None else params.max_tokens
        params = params.replace(max_tokens=room_for(model, len(ids), wanted))
        thinking = thinking_of(model.template_source(for_tools=calls is not None))
        has_open = thinking is not None and (
            model.detokenize(ids[-16:], special=True).rstrip().endswith(thinking.opening)
        )
        return Question(ids, params, calls, thinking, has_open)

    def params(self, model: Model, settings: ServerSettings, **more: Any) -> SamplingParams:
        """Return how to choose tokens."""
        schema = self.response_format.schema_to_match() if self.response_format else None
        if schema is not None:
            if self.grammar or self.json_schema is not None:
                raise refusal("grammar, json_schema and response_format exclude each other", param="response_format")
            more["json_schema"] = schema
        return self.sampling(model, settings.sampling, **more)


def several(question: Question, n: int) -> list[Question]:
    """Return `n` questions with one prompt; a seed that was given becomes one for each."""
    seed = question.params.seed
    if n == 1 or seed is None:
        return [question] * n
    params = [question.params.replace(seed=(seed + i) % (2**32 - 1)) for i in range(n)]
    return [dataclasses.replace(question, params=one) for one in params]
