// Markdown → a tree of strings and nodes {tag, children, ...}. It knows nothing of the DOM: view.js makes elements of it.
//
//   parse("# Hi\n- a\n- b")  →  [{tag: "h3", level: 1, children: ["Hi"]},
//                                {tag: "ul", children: [{tag: "li", children: ["a"]}, {tag: "li", children: ["b"]}]}]
//
// The part of CommonMark and of GitHub's tables that models write. HTML is text, code is fenced (never only indented),
// "---" is a rule (never a heading's underline), and a list nests from two spaces on. Inline text: inline.js.

import { inline, trimEndOf } from "./inline.js";

const MAX_DEPTH = 16; // lists and quotes nested deeper stay text

const FENCE = /^ *(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ *(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ *(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ *> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?:[ \t]+|$)/;
const DELIMITERS = /^\|?(?::?-+:?\|)*:?-+:?\|?$/;
const BOX = /^\[([ xX])\](?= )/;

/** Parse `text`; with `open`, the text is still growing: a fence, a code span and bold text may be unfinished. */
export function parse(text, open = false) {
  const lines = text.split(/\r\n?|\n/).map((line) => line.replace(/^[ \t]+/, (space) => space.replaceAll("\t", "    ")));
  const tree = blocks(lines, 0, open);
  nestHeadings(tree);
  return tree;
}

function blocks(lines, depth, open) {
  const out = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    const start = at;
    let found;
    if (!line.trim()) {
      at += 1;
    } else if ((found = FENCE.exec(line))) {
      at = endOfFence(lines, start, found[1]);
      out.push(fence(lines.slice(start, at), found[1], found[2]));
    } else if ((found = HEADING.exec(line))) {
      at += 1;
      out.push({ tag: "h3", level: found[1].length, children: inline(headingText(found[2] ?? ""), open && at === lines.length) });
    } else if (RULE.test(line)) {
      at += 1;
      out.push({ tag: "hr", children: [] });
    } else if (QUOTE.test(line) && depth < MAX_DEPTH) {
      while (at < lines.length && QUOTE.test(lines[at])) at += 1;
      const quoted = lines.slice(start, at).map((one) => one.replace(QUOTE, ""));
      out.push({ tag: "blockquote", children: blocks(quoted, depth + 1, open && at === lines.length) });
    } else if (ITEM.test(line) && depth < MAX_DEPTH) {
      const [list, end] = listAt(lines, start, depth, open);
      out.push(list);
      at = end;
    } else if (tableAt(lines, start)) {
      at += 2;
      while (at < lines.length && lines[at].trim() && !interrupts(lines[at])) at += 1;
      out.push(table(lines.slice(start, at), open && at === lines.length));
    } else {
      at += 1;
      while (at < lines.length && lines[at].trim() && !interrupts(lines[at]) && !tableAt(lines, at)) at += 1;
      const text = lines.slice(start, at).map((one) => one.trim()).join("\n");
      out.push({ tag: "p", children: inline(text, open && at === lines.length) });
    }
  }
  return out;
}

/** Whether `line` ends the paragraph above it; a number other than 1 does not: it may be the end of a sentence. */
function interrupts(line) {
  const item = ITEM.exec(line);
  const list = item && line.length > item[0].length && (!/\d/.test(item[2]) || parseInt(item[2]) === 1);
  return list || FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line);
}

function headingText(text) {
  const trimmed = text.trim();
  const bare = trimEndOf(trimmed, "#");
  return bare === "" || bare.endsWith(" ") ? bare.trimEnd() : trimmed;
}

function closes(line, mark) {
  const text = line.trim();
  return text.length >= mark.length && trimEndOf(text, mark[0]) === "";
}

function endOfFence(lines, start, mark) {
  let at = start + 1;
  while (at < lines.length && !closes(lines[at], mark)) at += 1;
  return Math.min(at + 1, lines.length);
}

function fence(lines, mark, info) {
  const closed = lines.length > 1 && closes(lines.at(-1), mark);
  const indent = lines[0].search(/\S/);
  const code = lines.slice(1, closed ? -1 : undefined).map((line) => line.slice(Math.min(indent, indentOf(line))));
  return { tag: "pre", language: info.trim().split(/\s/)[0].slice(0, 30), children: [code.join("\n")] };
}

function indentOf(line) {
  const indent = line.search(/[^ ]/);
  return indent < 0 ? line.length : indent;
}

/** Return the list that starts at line `start`, and the line after it. */
function listAt(lines, start, depth, open) {
  const [, , marker] = ITEM.exec(lines[start]);
  const items = [];
  let at = start;
  for (let found; at < lines.length && (found = ITEM.exec(lines[at])); ) {
    if (found[2].at(-1) !== marker.at(-1) || RULE.test(lines[at])) break;
    const [own, end] = itemLines(lines, at, found);
    const children = blocks(own, depth + 1, open && end === lines.length);
    if (children[0]?.tag === "p") children.splice(0, 1, ...children[0].children);
    items.push({ tag: "li", children });
    at = end;
    const next = firstText(lines, at);
    if (next < lines.length && ITEM.test(lines[next])) at = next;
  }
  const list = { tag: /\d/.test(marker) ? "ol" : "ul", children: items };
  if (list.tag === "ol") list.start = parseInt(marker);
  return [list, at];
}

/** Return the lines of the item at line `start`, without its marker and indent, and the line after it. */
function itemLines(lines, start, [whole, space]) {
  const own = [lines[start].slice(whole.length).replace(BOX, (_, mark) => (mark === " " ? "☐" : "☑"))];
  let at = start + 1;
  while (at < lines.length) {
    const next = firstText(lines, at);
    if (next === lines.length) break;
    const indent = indentOf(lines[next]);
    const lazy = next === at && own.at(-1).trim() && !ITEM.test(lines[at]) && !interrupts(lines[at]) && !tableAt(lines, at);
    if (indent < space.length + 2 && !lazy) break;
    while (at < next) own.push(lines[at++]);
    own.push(lines[at++].slice(Math.min(indent, whole.length)));
  }
  return [own, at];
}

function firstText(lines, at) {
  while (at < lines.length && !lines[at].trim()) at += 1;
  return at;
}

function tableAt(lines, at) {
  if (!lines[at].includes("|") || !DELIMITERS.test((lines[at + 1] ?? "").replace(/\s+/g, ""))) return false;
  return cells(lines[at]).length === cells(lines[at + 1]).length;
}

function cells(line) {
  const row = line.trim().replace(/^\|/, "");
  const parts = row.split(/(?<!\\)\|/);
  if (parts.length > 1 && !parts.at(-1).trim()) parts.pop();
  return parts.map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function table([header, delimiters, ...rows], open) {
  const align = cells(delimiters).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : ""));
  const row = (line, tag, last) => {
    const found = cells(line);
    const children = align.map((side, i) => ({ tag, align: side, children: inline(found[i] ?? "", last && i === found.length - 1) }));
    return { tag: "tr", children };
  };
  const body = rows.map((line, i) => row(line, "td", open && i === rows.length - 1));
  return {
    tag: "table",
    children: [
      { tag: "thead", children: [row(header, "th", false)] },
      { tag: "tbody", children: body },
    ],
  };
}

/** Give headings tags that follow on each other (h3, then at most h4, ...), as a screen reader's user expects. */
function nestHeadings(tree) {
  let above = 2; // the name of who speaks is an h2
  const walk = (nodes) => {
    for (const node of nodes) {
      if (node.level) {
        above = Math.min(node.level + 2, above + 1, 6);
        node.tag = `h${above}`;
      } else if (["blockquote", "ul", "ol", "li"].includes(node.tag)) {
        walk(node.children);
      }
    }
  };
  walk(tree);
}
