// A Markdown tree → elements of the page. The only place where a model's words become elements: a tag must be in TAGS,
// text becomes text nodes, and the only attribute that takes a value of the model's is the address that inline.js checked.

import { parse } from "./markdown.js";

const TAGS = new Set(
  "p h3 h4 h5 h6 hr blockquote ul ol li pre table thead tbody tr th td strong em del code br a".split(" "),
);

/** The growing text of an answer, as elements in `element`: an update touches only the blocks that changed. */
export class MarkdownView {
  constructor(element) {
    this.element = element;
    this.written = []; // each block's tree, as text
  }

  /** Show `text`; `open`: it is still growing. Return how many blocks can no longer change. */
  update(text, open) {
    const tree = parse(text, open);
    const keys = tree.map((block) => JSON.stringify(block));
    let same = 0;
    while (same < keys.length && keys[same] === this.written[same]) same += 1;
    while (this.element.children.length > same) this.element.lastElementChild.remove();
    this.element.append(...tree.slice(same).map(elementOf));
    this.written = keys;
    return open ? Math.max(0, tree.length - 1) : tree.length;
  }
}

function elementOf(node) {
  if (typeof node === "string") return node; // append() makes a text node of it
  if (!TAGS.has(node.tag)) throw new Error(`no element of an answer is a <${node.tag}>`);
  if (node.tag === "pre") return codeBlock(node);
  const element = document.createElement(node.tag);
  element.append(...node.children.map(elementOf));
  if (node.tag === "a") {
    element.href = node.href;
    element.title = node.href; // where it leads, whatever its text says
    element.target = "_blank";
    element.rel = "noopener noreferrer";
  }
  if (node.start > 1) element.start = node.start;
  if (node.align) element.className = node.align;
  if (node.level) element.className = `level-${node.level}`;
  return node.tag === "table" ? scrolling(element) : element;
}

function scrolling(element) {
  const around = document.createElement("div");
  around.className = "wide";
  around.tabIndex = 0; // the keyboard scrolls it
  around.append(element);
  return around;
}

function codeBlock({ language, children }) {
  const block = document.createElement("div");
  block.className = "code";
  const bar = document.createElement("div");
  bar.className = "bar";
  const name = document.createElement("span");
  name.textContent = language || "text";
  const copy = document.createElement("button");
  copy.type = "button";
  copy.className = "quiet";
  copy.dataset.action = "copy-code";
  copy.textContent = "Copy";
  copy.setAttribute("aria-label", `Copy the code (${language || "text"})`);
  bar.append(name, copy);
  const pre = document.createElement("pre");
  pre.tabIndex = 0; // the keyboard scrolls it
  const code = document.createElement("code");
  code.textContent = children.join("");
  pre.append(code);
  block.append(bar, pre);
  return block;
}
