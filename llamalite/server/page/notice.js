// The line above the message field: what happened, and a button that answers it. A screen reader says it.

import { button } from "./view.js";

const element = document.getElementById("notice");
const question = document.getElementById("question");

/** Show `text`, until it is dismissed or replaced; pressing the button `label` calls `act`. */
export function notice(text, label, act) {
  element.replaceChildren(text);
  if (!text) return;
  if (act) element.append(answering(button("", label), act));
  element.append(answering(button("", "×", "Dismiss")));
}

function answering(pressed, act) {
  pressed.addEventListener("click", () => {
    element.replaceChildren();
    question.focus(); // the button that had the focus is gone
    act?.();
  });
  return pressed;
}
