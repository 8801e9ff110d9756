"""Renders messages whose last one is to be continued: the text ends with it, and its turn is not closed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llamalite.errors import TemplateError

_TAG = "CONTINUE_FINAL_MESSAGE_TAG "  # its last character shows whether the template trims messages


def continued(render: Callable[[list[dict[str, Any]]], str], messages: Sequence[Mapping[str, Any]]) -> str:
    """Return what `render` makes of `messages`, up to the end of the last message's content.

    As in transformers with ``continue_final_message`` (``render_jinja_template``, utils/chat_template_utils.py): a tag
    after the content shows where to cut. Raises `TemplateError` if the template drops or changes that content.

    >>> continued(lambda messages: f"<{messages[-1]['content'].strip()}>", [{"role": "assistant", "content": "So "}])
    '<So'
    """
    last = messages[-1].get("content") if messages else None
    if not isinstance(last, str):
        raise TemplateError("the last message has no text to continue")
    rendered = render([*map(dict, messages[:-1]), {**messages[-1], "content": last + _TAG}])
    at = rendered.rfind(_TAG.strip())
    if at < 0 or last.strip() not in rendered:
        raise TemplateError(f"the chat template leaves out the last message, which is to be continued: {last!r:.80}")
    return rendered[:at] if rendered[at:].startswith(_TAG) else rendered[:at].rstrip()
