// The drawer of settings: a conversation's system prompt and sampling, and the server's key.

import { SAMPLING } from "./conversation.js";
import { keep, setting } from "./storage.js";

const byId = (id) => document.getElementById(id);
const drawer = byId("settings");
const inputs = SAMPLING.map((name) => drawer.querySelector(`[name=${name}]`));

export const apiKey = () => setting("key", "");

/** Connect the drawer: `settings()` are the conversation's own, `changed()` follows a change of them, `newKey()` of the key. */
export function connectSettings(settings, changed, newKey) {
  const draw = () => {
    byId("system").value = settings().system;
    for (const input of inputs) input.value = settings().sampling[input.name] ?? "";
    byId("key").value = apiKey();
    check();
  };
  byId("settings-open").addEventListener("click", () => {
    draw();
    drawer.showModal();
  });
  byId("settings-close").addEventListener("click", () => drawer.close());
  drawer.addEventListener("click", ({ target }) => target === drawer && drawer.close()); // the backdrop
  byId("system").addEventListener("input", ({ target }) => {
    settings().system = target.value;
    changed();
  });
  for (const input of inputs) {
    input.addEventListener("input", () => {
      if (!check(input)) return;
      delete settings().sampling[input.name];
      if (input.value !== "") settings().sampling[input.name] = input.valueAsNumber;
      changed();
    });
  }
  byId("sampling-reset").addEventListener("click", () => {
    settings().sampling = {};
    changed();
    draw();
  });
  byId("key").addEventListener("change", ({ target }) => {
    keep("key", target.value.trim());
    newKey();
  });
}

/** Open the drawer at the field of the server's key. */
export function askForKey() {
  if (!drawer.open) byId("settings-open").click();
  byId("key").focus();
}

/** Say what is wrong with the first field that is not valid; return whether `input` is. */
function check(input) {
  const wrong = inputs.find((one) => !one.validity.valid);
  for (const one of inputs) one.setAttribute("aria-invalid", String(!one.validity.valid));
  const { min, max } = wrong ?? {};
  const kind = wrong?.step === "1" ? "a whole number" : "a number";
  const name = wrong?.parentElement.firstChild.textContent.trim();
  byId("sampling-problem").textContent = wrong ? `${name} is ${kind} from ${min} to ${max}; until then the last valid value counts.` : "";
  return !input || input.validity.valid;
}
