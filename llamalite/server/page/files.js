// What leaves the page, and comes back: a file of conversations, and the clipboard.

import { exported, imported, newId } from "./conversation.js";

/** Save `conversations` as a file, where the browser saves what it downloads. */
export function download(conversations) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([exported(conversations)], { type: "application/json" }));
  link.download = `llamalite-${new Date().toISOString().slice(0, 10)}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** Return the conversations of an exported file that are not among `there` (a Map by id) exactly as they are. */
export async function upload(file, there) {
  const found = imported(await file.text());
  const fresh = found.filter((one) => !there.has(one.id) || exported([there.get(one.id)]) !== exported([one]));
  for (const one of fresh) if (there.has(one.id)) one.id = newId(); // what is here stays as it is
  return fresh;
}

export async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // A page that did not come by HTTPS or from localhost has no clipboard but this.
  const focused = document.activeElement;
  const field = document.createElement("textarea");
  field.value = text;
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
  focused.focus();
}
