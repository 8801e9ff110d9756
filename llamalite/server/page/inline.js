// Inline Markdown → a list of strings and nodes {tag, children, depth, href?}. It knows nothing of blocks or of the DOM.
//
//   inline("a **b** `c`")  →  ["a ", {tag: "strong", children: ["b"]}, " ", {tag: "code", children: ["c"]}]
//
// Emphasis follows CommonMark's rules for delimiter runs (https://spec.commonmark.org/0.31.2/#emphasis-and-strong-emphasis).
// A link leads to http, https or mail, or it stays the text that it was. An image becomes a link: the page fetches
// nothing that a model names. A line break in the text is a line break on the page, as most models mean it.

const MAX_DEPTH = 20; // deeper nesting stays text: no input may exhaust the stack
const MAX_OPENERS = 50; // so far back a closing delimiter looks for its opening one: no input may take quadratic time

const PLAIN = /(?:(?!https?:\/\/)[^\\`[\]<\n*_~!])+/y;
const DESTINATION =
  /\((?:<([^<>\n]{0,2000})>|((?:[^\s()\\]|\\.|\((?:[^\s()\\]|\\.)*\))*))(?:\s+(?:"[^"]{0,500}"|'[^']{0,500}'))?\s*\)/y;
const AUTOLINK = /<((?:https?:\/\/|mailto:)[^\s<>]+)>/y;
const BARE_LINK = /https?:\/\/[^\s<>]+/y;
const BREAK = /<br ?\/?>/iy;
const RUN = { "*": /\*+/y, _: /_+/y, "~": /~+/y, "`": /`+/y };

/** Parse `text`; with `open`, the text is still growing: what is not closed yet counts as closed at its end. */
export function inline(text, open = false) {
  if (open) text = trimEndOf(text, "*_~`");
  const items = []; // strings, nodes, delimiter runs {run, count, ...}, brackets {bracket, image}
  const brackets = []; // where in `items` an opening bracket waits for its partner
  const unclosed = new Set(); // lengths of backtick runs that no later run closes
  let at = 0;

  const match = (pattern) => {
    pattern.lastIndex = at;
    const found = pattern.exec(text);
    if (found) at = pattern.lastIndex;
    return found;
  };
  const destination = () => {
    const start = at;
    const found = match(DESTINATION);
    const url = found && safeUrl((found[1] ?? found[2]).replace(/\\([!-/:-@[-`{-~])/g, "$1"));
    if (!url) at = start; // a refused address is read again, as text
    return url;
  };

  while (at < text.length) {
    const char = text[at];
    let found;
    if ((found = match(PLAIN))) {
      items.push(found[0]);
    } else if (char === "\\" && /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "")) {
      items.push(text[at + 1]);
      at += 2;
    } else if (char === "\n") {
      items.push(node("br", []));
      at += 1;
    } else if (char === "`") {
      const [run] = match(RUN["`"]);
      const end = unclosed.has(run.length) ? -1 : closingBackticks(text, at, run.length);
      if (end < 0) unclosed.add(run.length);
      if (end >= 0 || (open && run.length === 1)) {
        items.push(node("code", [codeText(text.slice(at, end < 0 ? text.length : end))]));
        at = end < 0 ? text.length : end + run.length;
      } else {
        items.push(run);
      }
    } else if (char === "[" || (char === "!" && text[at + 1] === "[")) {
      brackets.push(items.length);
      items.push({ bracket: char === "[" ? "[" : "![", image: char === "!" });
      at += char === "[" ? 1 : 2;
    } else if (char === "]") {
      at += 1;
      const opener = brackets.pop();
      const url = opener === undefined ? null : destination();
      if (url) {
        const { image } = items[opener];
        const children = emphasise(items.splice(opener).slice(1));
        items.push(link(url, children.length ? children : [url]));
        if (!image) brackets.length = 0; // a link holds no link
      } else {
        items.push("]");
      }
    } else if (char === "<" && match(BREAK)) {
      items.push(node("br", []));
    } else if (char === "<" && (found = match(AUTOLINK))) {
      items.push(safeUrl(found[1]) ? link(safeUrl(found[1]), [found[1]]) : found[0]);
    } else if (char === "h" && !brackets.length && (found = match(BARE_LINK))) {
      const url = bareUrl(found[0]);
      at -= found[0].length - url.length;
      items.push(safeUrl(url) ? link(safeUrl(url), [url]) : url);
    } else if (char === "*" || char === "_" || char === "~") {
      const start = at;
      const [run] = match(RUN[char]);
      items.push(delimiter(text, start, run));
    } else {
      items.push(char);
      at += 1;
    }
  }
  return emphasise(items, open);
}

/** Return the address that a link may lead to, or null: http, https and mailto only, whatever is hidden in the text. */
export function safeUrl(text) {
  if (!URL.canParse(text)) return null;
  const url = new URL(text);
  return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
}

/** Return `text` without the characters of `chars` at its end, in linear time (a regular expression is not). */
export function trimEndOf(text, chars) {
  let end = text.length;
  while (end && chars.includes(text[end - 1])) end -= 1;
  return text.slice(0, end);
}

function node(tag, children, more = {}) {
  const depth = 1 + Math.max(0, ...children.map((child) => child.depth ?? 0));
  return { tag, children, depth, ...more };
}

function link(href, children) {
  return node("a", children, { href });
}

// A sentence's end is no part of an address, nor is a bracket that was opened before it.
function bareUrl(text) {
  const marks = "?!.,:;*_~'\"`|\\";
  let url = trimEndOf(text, marks);
  let extra = url.split(")").length - url.split("(").length;
  for (; extra > 0 && url.endsWith(")"); extra -= 1) url = trimEndOf(url.slice(0, -1), marks);
  return url;
}

function closingBackticks(text, from, length) {
  const runs = /`+/g;
  runs.lastIndex = from;
  for (let found; (found = runs.exec(text)); ) if (found[0].length === length) return found.index;
  return -1;
}

function codeText(text) {
  const line = text.replaceAll("\n", " ");
  const padded = line.length > 2 && line.startsWith(" ") && line.endsWith(" ") && line.trim();
  return padded ? line.slice(1, -1) : line;
}

function delimiter(text, start, run) {
  const before = /.$/su.exec(text.slice(Math.max(0, start - 2), start))?.[0] ?? " ";
  const after = /^./su.exec(text.slice(start + run.length, start + run.length + 2))?.[0] ?? " ";
  const space = /\s/, punctuation = /[\p{P}\p{S}]/u;
  const left = !space.test(after) && (!punctuation.test(after) || space.test(before) || punctuation.test(before));
  const right = !space.test(before) && (!punctuation.test(before) || space.test(after) || punctuation.test(after));
  const word = run[0] === "_"; // an underscore within a word is part of it
  return {
    run: run[0],
    count: run.length,
    length: run.length,
    open: left && (!word || !right || punctuation.test(before)),
    close: right && (!word || !left || punctuation.test(after)),
  };
}

const pairs = (opener, closer) =>
  opener.run === closer.run &&
  (opener.run === "~"
    ? opener.count === 2 && closer.count === 2
    : !((opener.close || closer.open) && (opener.length + closer.length) % 3 === 0) ||
      (opener.length % 3 === 0 && closer.length % 3 === 0));

function emphasise(items, open = false) {
  const out = [];
  const openers = []; // where in `out` an opening run waits for its partner
  for (const item of items) {
    if (item.run && item.close) {
      while (item.count) {
        const near = openers.slice(-MAX_OPENERS);
        const at = near.findLastIndex((index) => pairs(out[index], item));
        if (at < 0) break;
        const index = near[at];
        const opener = out[index];
        const n = opener.count >= 2 && item.count >= 2 ? 2 : 1;
        const tag = item.run === "~" ? "del" : n === 2 ? "strong" : "em";
        const made = node(tag, texts(out.slice(index + 1)));
        if (made.depth > MAX_DEPTH) break;
        out.splice(index + 1, Infinity, made);
        openers.length -= near.length - at - 1;
        opener.count -= n;
        item.count -= n;
        if (!opener.count) out.splice(openers.pop(), 1);
      }
    }
    if (item.run && item.count && item.open) openers.push(out.length);
    if (!item.run || item.count) out.push(item);
  }
  if (open) {
    const last = out.findLastIndex((item) => item.run === "*" && item.count === 2 && item.open);
    if (last >= 0) out.splice(last, Infinity, node("strong", texts(out.slice(last + 1))));
  }
  return texts(out);
}

/** Write delimiters and brackets that found no partner as the text that they are, and join neighbouring texts. */
function texts(items) {
  const out = [];
  for (const item of items) {
    const text = item.run ? item.run.repeat(item.count) : (item.bracket ?? item);
    if (typeof text === "string" && typeof out.at(-1) === "string") out.push(out.pop() + text);
    else if (text !== "") out.push(text);
  }
  return out;
}
