// What this browser keeps: conversations (IndexedDB), and small settings (localStorage). Nothing leaves the browser.

const STORE = "conversations";

const result = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

let database;

async function store(mode) {
  if (!database) {
    const request = indexedDB.open("llamalite", 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
    database = await result(request);
  }
  return database.transaction(STORE, mode).objectStore(STORE);
}

const others = new BroadcastChannel("llamalite"); // the page in other tabs

/** Call `changed(id, conversation or undefined)` when another tab stores or removes a conversation. */
export function onChange(changed) {
  others.onmessage = async ({ data: id }) => changed(id, await result((await store("readonly")).get(id)));
}

export async function allConversations() {
  return result((await store("readonly")).getAll());
}

export async function put(conversation) {
  const target = await store("readwrite");
  const done = result(target.put(conversation));
  target.transaction.commit(); // at once: this may be a page that is closed
  await done;
  others.postMessage(conversation.id);
}

export async function remove(id) {
  await result((await store("readwrite")).delete(id));
  others.postMessage(id);
}

/** Return the setting `name`, or `otherwise`. */
export function setting(name, otherwise) {
  const text = localStorage.getItem(`llamalite.${name}`);
  return text === null ? otherwise : JSON.parse(text);
}

export function keep(name, value) {
  localStorage.setItem(`llamalite.${name}`, JSON.stringify(value));
}
