// A conversation: plain data, so that it can be stored, exported and imported.
//
//   {id, title, changed, settings: {model, system, sampling}, leaf, messages: [{id, parent, role, content, ...}]}
//
// Its messages are a tree: a new answer to a question, and a new wording of a question, stand beside the old ones, and
// nothing that was said is lost. What is shown is the path from a first message down to `leaf`.

/** What can be set of the sampling; what is not set is as the model's file and the server say. */
export const SAMPLING = ["temperature", "top_p", "top_k", "min_p", "repeat_penalty", "max_tokens", "seed"];

const FORMAT = "llamalite conversations";

// randomUUID would need HTTPS or localhost.
export const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(8)), (b) => b.toString(16).padStart(2, "0")).join("");

export function newConversation(settings) {
  return { id: newId(), title: "", changed: Date.now(), settings: structuredClone(settings), leaf: null, messages: [] };
}

/** Return the messages that are shown, first to last. */
export function path({ messages, leaf }) {
  const byId = new Map(messages.map((message) => [message.id, message]));
  const shown = [];
  for (let at = byId.get(leaf); at; at = byId.get(at.parent)) shown.unshift(at);
  return shown;
}

/** Add a message below `parent` (an id, or null for a first message), and show it. */
export function add(conversation, parent, message) {
  const added = { id: newId(), parent, ...message };
  conversation.messages.push(added);
  conversation.leaf = added.id;
  conversation.changed = Date.now();
  if (!conversation.title) conversation.title = titleOf(message.content);
  return added;
}

/** Return the messages that stand where `message` stands, itself included, oldest first. */
export function siblings({ messages }, message) {
  return messages.filter((other) => other.parent === message.parent);
}

/** Show `message`, and below it what was said last. */
export function show(conversation, message) {
  let at = message;
  for (let next = message; next; next = conversation.messages.findLast((other) => other.parent === at.id)) at = next;
  conversation.leaf = at.id;
}

/** Return the `messages` of a request whose answer will stand below the message `last`. */
export function requestMessages(conversation, last) {
  const { system } = conversation.settings;
  const said = system ? [{ role: "system", content: system }] : [];
  for (const { role, content } of path({ messages: conversation.messages, leaf: last })) {
    if (!content) continue; // an answer that failed
    // Templates may refuse two messages in a row of one role, which such an answer leaves.
    if (said.at(-1)?.role === role) said.at(-1).content += `\n\n${content}`;
    else said.push({ role, content });
  }
  return said;
}

function titleOf(text) {
  const line = text.trim().split("\n")[0];
  return line.length > 60 ? `${line.slice(0, 59).trimEnd()}…` : line;
}

export function exported(conversations) {
  return JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 1);
}

/** Return the conversations in an exported file, each checked and copied field by field; throw an Error that says what is wrong. */
export function imported(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("This file is not JSON.");
  }
  if (file?.format !== FORMAT || file.version !== 1 || !Array.isArray(file.conversations)) {
    throw new Error("This file does not hold exported llamalite conversations.");
  }
  return file.conversations.map((one, i) => {
    const copy = checked(one);
    if (!copy) throw new Error(`Conversation ${i + 1} of this file is damaged; nothing was imported.`);
    return copy;
  });
}

const isText = (...values) => values.every((value) => typeof value === "string");

function checked(one) {
  if (!one || !isText(one.id, one.title) || !Number.isFinite(one.changed) || !Array.isArray(one.messages)) return null;
  const seen = new Set([null]);
  const messages = [];
  for (const message of one.messages) {
    const { id, parent, role, content } = message ?? {};
    // A parent stands before its children, so there is no circle.
    if (!isText(id, content) || !["user", "assistant"].includes(role) || !seen.has(parent) || seen.has(id)) return null;
    seen.add(id);
    const { model, finish, figures } = message;
    messages.push({
      ...{ id, parent, role, content },
      ...(isText(model) && { model }),
      ...(isText(finish) && { finish }),
      ...(isText(figures) && { figures }),
    });
  }
  if (!seen.has(one.leaf)) return null;
  const { model = "", system = "", sampling = {} } = one.settings ?? {};
  const valid = ([name, value]) => SAMPLING.includes(name) && Number.isFinite(value);
  if (!isText(model, system) || !Object.entries(sampling).every(valid)) return null;
  const { id, title, changed, leaf } = one;
  return { id, title, changed, settings: { model, system, sampling: { ...sampling } }, leaf, messages };
}
