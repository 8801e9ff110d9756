// The page: which conversation is shown, and what its buttons and keys do.

import { models } from "./api.js";
import { add, newConversation, path, show, siblings } from "./conversation.js";
import { copyText, download, upload } from "./files.js";
import { Generation } from "./generation.js";
import { notice } from "./notice.js";
import { apiKey, askForKey, connectSettings } from "./settings.js";
import { allConversations, keep, onChange, put, remove, setting } from "./storage.js";
import { button, MessageView } from "./view.js";

const byId = (id) => document.getElementById(id);
const question = byId("question"), log = byId("log"), spoken = byId("spoken");

const conversations = new Map(); // those that are stored
const running = new Map(); // the id of a conversation → its Generation
const defaults = setting("defaults", { model: "", system: "", sampling: {} });
let current = newConversation(defaults);
let views = new Map(); // the id of a message that is shown → its MessageView

// What is stored, and what is shown of it.

async function save(conversation) {
  conversations.set(conversation.id, conversation);
  drawList();
  try {
    await put(conversation);
  } catch (error) {
    notice(`This browser does not store the conversation (${error.message}): export it before you close the page.`);
  }
}

function open(conversation) {
  current = conversation;
  history.replaceState(null, "", conversations.has(current.id) ? `#${current.id}` : location.pathname + location.search);
  draw();
  drawList();
  scrollTo(0, document.body.scrollHeight);
}

function draw() {
  views = new Map();
  for (const message of path(current)) {
    const view = new MessageView(message, siblings(current, message));
    views.set(message.id, view);
    view.update(running.get(current.id)?.message === message ? "" : null);
  }
  log.replaceChildren(...[...views.values()].map((view) => view.element));
  if (!views.size) log.append(greeting());
  byId("title").value = current.title;
  byId("title").disabled = !conversations.has(current.id);
  byId("heading").textContent = current.title || "New conversation";
  document.title = current.title ? `${current.title} – llamalite` : "llamalite";
  drawModel();
  drawSend();
}

function greeting() {
  const element = document.createElement("div");
  element.className = "empty";
  const [first, second] = [document.createElement("p"), document.createElement("p")];
  first.textContent = "What do you want to know?";
  second.textContent = "The model runs where this page comes from. Conversations are kept in this browser only.";
  element.append(first, second);
  return element;
}

function drawSend() {
  const busy = running.has(current.id);
  byId("send").textContent = busy ? "Stop" : "Send";
  byId("send").classList.toggle("stop", busy);
  byId("keys").hidden = busy;
  byId("keys-busy").hidden = !busy;
}

function drawList() {
  const newest = [...conversations.values()].sort((a, b) => b.changed - a.changed);
  const items = newest.map(({ id, title }) => {
    const item = document.createElement("li");
    const link = document.createElement("a");
    link.href = `#${id}`;
    link.textContent = title;
    if (id === current.id) link.setAttribute("aria-current", "page");
    const erase = button("delete", "×", `Delete “${title}”`);
    erase.dataset.id = id;
    item.append(link, erase);
    return item;
  });
  byId("conversations").replaceChildren(...items);
  byId("export").disabled = !conversations.size;
}

// Models.

async function loadModels() {
  try {
    const found = await models(apiKey());
    byId("model").replaceChildren(...found.map(({ id }) => new Option(id)));
  } catch (error) {
    const [label, act] = error.kind === "key" ? ["Enter the key", askForKey] : ["Try again", loadModels];
    notice(`${error.message} ${error.advice}`, label, act);
  }
  drawModel();
}

function drawModel() {
  const select = byId("model");
  const names = [...select.options].map((option) => option.value);
  if (names.length && !names.includes(current.settings.model)) current.settings.model = names[0];
  select.value = current.settings.model;
  select.disabled = !names.length;
}

function settingsChanged() {
  Object.assign(defaults, structuredClone(current.settings));
  keep("defaults", defaults);
  if (conversations.has(current.id)) save(current);
}

// Asking and answering.

function send() {
  const text = question.value.trim();
  if (!text || running.has(current.id)) return;
  question.value = "";
  ask(current.leaf, text);
}

function ask(parent, text) {
  const asked = add(current, parent, { role: "user", content: text });
  answer(current, asked.id);
}

async function answer(conversation, parent) {
  notice("");
  const { model } = conversation.settings;
  const message = add(conversation, parent, { role: "assistant", content: "", model, finish: "unfinished" });
  const generation = new Generation(conversation, message);
  running.set(conversation.id, generation);
  save(conversation);
  open(conversation);
  spoken.replaceChildren();
  let said = 0;
  let saved = performance.now();
  const saveStill = () => conversations.has(conversation.id) && save(conversation); // it may be deleted by now
  const redraw = () => {
    if (performance.now() - saved > 1000) {
      saved = performance.now();
      saveStill();
    }
    const view = views.get(message.id);
    if (!view) return; // another conversation is shown
    const follow = innerHeight + scrollY > document.body.scrollHeight - 80;
    const finished = view.update(running.has(conversation.id) ? generation.status() : null);
    for (; said < finished; said += 1) spoken.append(line(view.blockText(said)));
    if (follow) scrollTo(0, document.body.scrollHeight);
  };
  const ticking = setInterval(redraw, 80); // a hidden page's timers are slow, and that is right
  redraw();
  await generation.run(apiKey());
  clearInterval(ticking);
  running.delete(conversation.id);
  conversation.changed = Date.now();
  redraw();
  saveStill();
  drawSend();
  if (message.error) spoken.append(line(message.error.message));
}

function line(text) {
  const element = document.createElement("p");
  element.textContent = text;
  return element;
}

const ACTIONS = {
  copy: (message, pressed) => copy(message.content, pressed),
  "copy-code": (message, pressed) => copy(pressed.closest(".code").querySelector("code").textContent, pressed),
  again: (message) => answerAgain(message),
  edit: (message) => views.get(message.id).edit(),
  "send-edit": (message) => sendEdit(message),
  "cancel-edit": (message) => endEdit(message),
  previous: (message) => turn(message, -1),
  next: (message) => turn(message, 1),
  key: askForKey,
};

function answerAgain(message) {
  if (running.has(current.id)) return;
  answer(current, message.parent);
  question.focus();
}

function sendEdit(message) {
  const text = views.get(message.id).edited.trim();
  if (!text || running.has(current.id)) return;
  ask(message.parent, text);
  question.focus();
}

function endEdit(message) {
  const view = views.get(message.id);
  view.update();
  view.element.querySelector("[data-action=edit]").focus();
}

function turn(message, step) {
  if (running.has(current.id)) return;
  const versions = siblings(current, message);
  const other = versions[versions.indexOf(message) + step];
  show(current, other);
  save(current);
  draw();
  const { element } = views.get(other.id);
  const name = step < 0 ? "previous" : "next";
  const same = element.querySelector(`[data-action=${name}]:enabled`);
  (same ?? element.querySelector("[data-action=previous]:enabled, [data-action=next]:enabled")).focus();
}

async function copy(text, pressed) {
  await copyText(text);
  pressed.textContent = "Copied";
  setTimeout(() => (pressed.textContent = "Copy"), 1500);
}

// The list of conversations.

async function importFile(file) {
  try {
    const fresh = await upload(file, conversations);
    for (const one of fresh) await save(one);
    notice(`Imported: ${fresh.length}. What was here already is not imported twice.`);
  } catch (error) {
    notice(error.message);
  }
}

async function erase(id) {
  const conversation = conversations.get(id);
  running.get(id)?.stop();
  conversations.delete(id);
  if (id === current.id) open(newConversation(defaults));
  drawList();
  notice(`Deleted “${conversation.title}”.`, "Undo", async () => {
    await save(conversation);
    open(conversation);
  });
  byId("new").focus();
  await remove(id);
}

// Keys and buttons.

function onKey(event) {
  if (event.isComposing) return; // the key belongs to an input method
  const { key, target } = event;
  const editing = target.closest?.(".editing");
  const touch = matchMedia("(pointer: coarse)").matches; // no Shift on its keyboard: Enter is a new line, a button sends
  if (key === "Enter" && !event.shiftKey && !touch && (target === question || editing)) {
    event.preventDefault();
    if (editing) sendEdit(messageOf(target));
    else send();
  } else if (key === "Enter" && target === byId("title")) {
    question.focus();
  } else if (key === "Escape" && editing) {
    endEdit(messageOf(target));
  } else if (key === "Escape" && !document.querySelector(":popover-open, dialog[open]")) {
    running.get(current.id)?.stop();
  }
}

function messageOf(element) {
  return views.get(element.closest(".message").dataset.id).message;
}

function connect() {
  document.addEventListener("keydown", onKey);
  log.addEventListener("click", ({ target }) => {
    const pressed = target.closest("[data-action]");
    if (pressed) ACTIONS[pressed.dataset.action](messageOf(pressed), pressed);
  });
  byId("conversations").addEventListener("click", ({ target }) => {
    if (target.dataset.action === "delete") erase(target.dataset.id);
    else if (target.href) byId("sidebar").hidePopover();
  });
  byId("send").addEventListener("click", () => (running.has(current.id) ? running.get(current.id).stop() : send()));
  byId("new").addEventListener("click", () => {
    byId("sidebar").hidePopover();
    open(newConversation(defaults));
    question.focus();
  });
  byId("title").addEventListener("change", ({ target }) => {
    current.title = target.value.trim() || current.title;
    save(current);
    draw();
  });
  byId("model").addEventListener("change", ({ target }) => {
    current.settings.model = target.value;
    settingsChanged();
  });
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault(); // the part of the address after # names the conversation
    question.focus();
  });
  byId("export").addEventListener("click", () => download([...conversations.values()]));
  byId("import").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", async ({ target }) => {
    await importFile(target.files[0]);
    target.value = ""; // the same file can be chosen again
  });
  matchMedia("(min-width: 800px)").addEventListener("change", () => byId("sidebar").hidePopover());
  addEventListener("hashchange", () => open(conversations.get(location.hash.slice(1)) ?? newConversation(defaults)));
  addEventListener("pagehide", () => {
    for (const [id, generation] of running) {
      generation.stop();
      if (conversations.has(id)) put(conversations.get(id));
    }
  });
  onChange((id, conversation) => {
    if (running.has(id)) return; // this tab knows better
    if (conversation) conversations.set(id, conversation);
    else conversations.delete(id);
    if (id === current.id) open(conversation ?? newConversation(defaults));
    else drawList();
  });
  connectSettings(
    () => current.settings,
    settingsChanged,
    () => {
      notice("");
      loadModels();
    },
  );
}

connect();
try {
  for (const one of await allConversations()) conversations.set(one.id, one);
} catch (error) {
  notice(`This browser keeps no conversations for this page (${error.message}).`);
}
open(conversations.get(location.hash.slice(1)) ?? current);
loadModels();
