// One message on the page: who, text, figures, what went wrong, and its buttons. page.js listens to the buttons, by their
// data-action.

import { MarkdownView } from "./render.js";

const NOTES = {
  unfinished: "Not finished.",
  stopped: "Stopped.",
  length: "Ended by the limit of tokens, or of the context.",
};

export class MessageView {
  /** `versions`: the messages that stand in the same place, this one included. */
  constructor(message, versions) {
    this.message = message;
    this.element = make("article", `message ${message.role}`);
    this.element.dataset.id = message.id;
    const own = message.role === "user";
    const heading = make("h2", "who", own ? "You" : message.model || "Answer");
    this.text = make("div", "text");
    this.markdown = own ? null : new MarkdownView(this.text);
    this.problem = make("div", "problem");
    this.figures = make("span", "figures");
    this.actions = make("div", "actions");
    this.foot = make("div", "row");
    this.foot.append(this.figures, this.actions);
    this.element.append(heading, this.text, this.problem, this.foot);
    this.versions = versions;
    this.element.setAttribute("aria-label", own ? "Your message" : "Answer");
  }

  /** Draw the message as it is now; `status` is the state of a running answer, else null. Return its finished blocks. */
  update(status = null) {
    const { message } = this;
    let finished = 0;
    if (this.markdown) finished = this.markdown.update(message.content, status !== null);
    else this.text.textContent = message.content;
    this.element.setAttribute("aria-busy", String(status !== null));
    this.figures.textContent = status ?? message.figures ?? "";
    if (status === null) this.#end();
    return finished;
  }

  #end() {
    const { message, versions } = this;
    const note = NOTES[message.finish];
    this.problem.replaceChildren();
    if (message.error) {
      this.problem.append(make("p", "", `${message.error.message} ${message.error.advice}`.trim()));
      if (message.error.kind === "key") this.problem.append(button("key", "Enter the key"));
    } else if (note) {
      this.problem.append(make("p", "note", note));
    }
    this.actions.replaceChildren();
    if (versions.length > 1) {
      const at = versions.indexOf(message);
      const step = (action, sign, label, off) => Object.assign(button(action, sign, label), { disabled: off });
      this.actions.append(
        step("previous", "‹", "Previous version", at === 0),
        make("span", "figures", `${at + 1} of ${versions.length}`),
        step("next", "›", "Next version", at === versions.length - 1),
      );
    }
    if (message.content) this.actions.append(button("copy", "Copy"));
    if (message.role === "user") this.actions.append(button("edit", "Edit"));
    else this.actions.append(button("again", message.error ? "Try again" : "Regenerate"));
  }

  /** Replace the text by a field in which to change it. */
  edit() {
    const field = make("textarea", "editing");
    field.value = this.message.content;
    field.rows = 3;
    field.setAttribute("aria-label", "Your message, changed");
    this.text.replaceChildren(field);
    this.actions.replaceChildren(button("cancel-edit", "Cancel"), button("send-edit", "Send"));
    field.focus();
  }

  get edited() {
    return this.text.querySelector("textarea")?.value;
  }

  /** The text of the block number `index`, as a screen reader should say it. */
  blockText(index) {
    const block = this.text.children[index];
    return (block.querySelector("pre") ?? block).textContent;
  }
}

function make(tag, className, text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

export function button(action, text, label = text) {
  const element = make("button", "quiet", text);
  element.type = "button";
  element.dataset.action = action;
  if (label !== text) element.setAttribute("aria-label", label);
  return element;
}
