// The part of Markdown that answers use, as elements. All text goes into text nodes, nothing is loaded, and a link
// shows where it leads. Work grows with the length of the text only, whatever a model writes.

import { copyButton, h } from "./dom.js";

const MAX_DEPTH = 5;
const MAX_LINK = 2048;
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/;
const RULE = /^ {0,3}([-*_])\s*(?:\1\s*){2,}$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const TABLE_RULE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const THINK = /^\s*<think>([^]*?)(<\/think>|$)/;
const ADDRESS = /^https?:\/\/[^\s<>"'`)\]}，。；、）】》]+/i;
// Openers and closers, longest first.
const MARKS = [["**", "strong"], ["~~", "del"], ["*", "em"]];

/** Returns a text as a fragment of elements. */
export function render(text) {
  const fragment = document.createDocumentFragment();
  const thought = THINK.exec(text);
  if (thought) {
    fragment.append(thinking(thought));
    text = text.slice(thought[0].length);
  }
  fragment.append(...blocks(text.replace(/\r\n?/g, "\n").split("\n"), 0));
  return fragment;
}

function thinking([, text, end]) {
  const details = h("details", { class: "thinking", open: end === "" }, h("summary", {}, "Thinking"));
  details.append(h("p", {}, text.trim()));
  return details;
}

function blocks(lines, depth) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const [element, next] = block(lines, at, depth);
    found.push(element);
    at = next;
  }
  return found;
}

/** Returns the element that begins at a line, and the line after it. */
function block(lines, at, depth) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return code(lines, at, fence);
  const heading = HEADING.exec(line);
  // The page has headings of its own, and a screen reader counts them.
  if (heading) return [h("p", { class: `heading level${heading[1].length}` }, ...inline(heading[2])), at + 1];
  if (RULE.test(line)) return [h("hr"), at + 1];
  if (depth < MAX_DEPTH && QUOTE.test(line)) return quote(lines, at, depth);
  if (depth < MAX_DEPTH && ITEM.test(line)) return list(lines, at, depth);
  if (line.includes("|") && at + 1 < lines.length && TABLE_RULE.test(lines[at + 1])) return table(lines, at);
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !begins(lines, end, depth)) end += 1;
  return [h("p", {}, ...inline(lines.slice(at, end).join("\n"))), end];
}

function begins(lines, at, depth) {
  const line = lines[at];
  const nested = depth < MAX_DEPTH && (QUOTE.test(line) || ITEM.test(line));
  return nested || FENCE.test(line) || HEADING.test(line) || RULE.test(line);
}

function code(lines, at, [, fence, info]) {
  let end = at + 1;
  const closes = (line) => line.trim().startsWith(fence) && line.trim().replaceAll(fence[0], "") === "";
  while (end < lines.length && !closes(lines[end])) end += 1;
  const text = lines.slice(at + 1, end).join("\n");
  const head = h("div", { class: "code-head" }, h("span", {}, info.trim().split(/\s/)[0] || "code"), copyButton(() => text));
  return [h("div", { class: "code" }, head, h("pre", { tabindex: "0" }, h("code", {}, text))), end + 1];
}

function quote(lines, at, depth) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return [h("blockquote", {}, ...blocks(inner, depth + 1)), end];
}

function list(lines, at, depth) {
  const [, indent, marker] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(marker);
  const made = h(ordered ? "ol" : "ul", ordered ? { start: String(parseInt(marker, 10)) } : {});
  let end = at;
  while (end < lines.length) {
    const item = ITEM.exec(lines[end]);
    if (!item || item[1].length > indent.length + 1 || /\d/.test(item[2]) !== ordered) break;
    const [inner, next] = itemLines(lines, end, indent.length, item[3]);
    made.append(h("li", {}, ...tight(blocks(inner, depth + 1))));
    end = next;
  }
  return [made, end];
}

/** Returns the lines of a list item, its own first, and the line after it. */
function itemLines(lines, at, indent, first) {
  const inner = [first];
  let end = at + 1;
  for (; end < lines.length; end += 1) {
    const line = lines[end];
    if (!line.trim()) {
      const next = lines[end + 1];
      if (next === undefined || !/^\s/.test(next) && !ITEM.test(next)) break;
      inner.push("");
      continue;
    }
    const leading = line.length - line.trimStart().length;
    if (leading <= indent + 1 && (ITEM.test(line) || inner.at(-1) === "")) break;
    if (leading <= indent && begins(lines, end, 0)) break;
    inner.push(line.slice(Math.min(leading, indent + 2)));
  }
  return [inner, end];
}

/** A list item of one paragraph needs no space around it. */
function tight(elements) {
  return elements.length && elements[0].className === "" && elements[0].tagName === "P"
    ? [...elements[0].childNodes, ...elements.slice(1)]
    : elements;
}

function table(lines, at) {
  const sides = cells(lines[at + 1]).map(side);
  const row = (line, tag) => h("tr", {}, ...cells(line).map((text, index) => (
    h(tag, { class: sides[index] ?? null }, ...inline(text))
  )));
  const body = h("tbody");
  let end = at + 2;
  for (; end < lines.length && lines[end].includes("|"); end += 1) body.append(row(lines[end], "td"));
  const made = h("table", {}, h("thead", {}, row(lines[at], "th")), body);
  return [h("div", { class: "scroll", tabindex: "0" }, made), end];
}

const cells = (line) => line.trim().replace(/^\|/, "").replace(/\|$/, "").split("|").map((cell) => cell.trim());

function side(rule) {
  if (!rule.endsWith(":")) return null;
  return rule.startsWith(":") ? "center" : "right";
}

function inline(text, depth = 0) {
  const found = [];
  // What has no closing mark after one place has none after a later one.
  const unclosed = new Set();
  let plain = 0;
  let at = 0;
  while (at < text.length) {
    const [element, end] = special(text, at, depth, unclosed) ?? [null, at + 1];
    if (element !== null) {
      found.push(text.slice(plain, at), ...element);
      plain = end;
    }
    at = end;
  }
  found.push(text.slice(plain));
  return found.filter((item) => item !== "");
}

/** Returns the elements that begin at a place and where they end, or nothing when it is plain text. */
function special(text, at, depth, unclosed) {
  const character = text[at];
  if (character === "\\" && /[\\`*_~[\]#|]/.test(text[at + 1] ?? "")) return [[text[at + 1]], at + 2];
  if (character === "`") return codeSpan(text, at, unclosed);
  if (character === "[") return link(text.slice(at, at + 2 * MAX_LINK), at, depth);
  if (character === "h" || character === "H") return address(text, at);
  if (depth >= MAX_DEPTH) return null;
  for (const [mark, tag] of MARKS) {
    if (text.startsWith(mark, at)) return emphasis(text, at, mark, tag, depth, unclosed);
  }
  return null;
}

function codeSpan(text, at, unclosed) {
  let length = 1;
  while (text[at + length] === "`") length += 1;
  const mark = "`".repeat(length);
  const end = unclosed.has(mark) ? -1 : text.indexOf(mark, at + length);
  if (end < 0) {
    unclosed.add(mark);
    return [[mark], at + length];
  }
  return [[h("code", {}, text.slice(at + length, end).trim())], end + length];
}

function emphasis(text, at, mark, tag, depth, unclosed) {
  const start = at + mark.length;
  if (unclosed.has(mark) || /\s/.test(text[start] ?? " ")) return [[mark], start];
  let end = text.indexOf(mark, start + 1);
  while (end >= 0 && /\s/.test(text[end - 1])) end = text.indexOf(mark, end + 1);
  if (end < 0) {
    unclosed.add(mark);
    return [[mark], start];
  }
  return [[h(tag, {}, ...inline(text.slice(start, end), depth + 1))], end + mark.length];
}

/** A link is its text, and behind it the address it leads to: an answer must not hide one behind the other. */
function link(text, at, depth) {
  const middle = text.slice(0, MAX_LINK).indexOf("](");
  const label = text.slice(1, middle);
  const found = middle > 0 ? ADDRESS.exec(text.slice(middle + 2)) : null;
  const end = middle + 2 + (found ? found[0].length : 0);
  if (!found || text[end] !== ")" || label.includes("\n")) return null;
  const shown = depth < MAX_DEPTH ? inline(label, depth + 1) : [label];
  return [[...shown, " (", anchor(found[0]), ")"], at + end + 1];
}

function address(text, at) {
  const found = ADDRESS.exec(text.slice(at, at + MAX_LINK));
  if (!found || /\w/.test(text[at - 1] ?? " ")) return null;
  const url = found[0].replace(/[.,;:!?*]+$/, "");
  return [[anchor(url)], at + url.length];
}

function anchor(url) {
  return h("a", { href: url, target: "_blank", rel: "noopener noreferrer nofollow" }, url);
}
