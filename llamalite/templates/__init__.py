"""Chat templates: they turn messages into the text format that a model was trained on.

    >>> template = ChatTemplate("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\\n{% endfor %}")
    >>> template.render([{"role": "user", "content": "hi"}])
    'user: hi\\n'

`chat_template` renders a template as transformers does, inside the `sandbox`, whose bounds `limits` checks;
`continuation` leaves the last message open.
`control_tokens` keeps text that a user typed from becoming a control token. No module here uses token ids.
"""

from __future__ import annotations

from llamalite.templates.chat_template import ChatTemplate
from llamalite.templates.continuation import continued
from llamalite.templates.control_tokens import guard, split, strings
from llamalite.templates.limits import MAX_SECONDS

__all__ = ["MAX_SECONDS", "ChatTemplate", "continued", "guard", "split", "strings"]
