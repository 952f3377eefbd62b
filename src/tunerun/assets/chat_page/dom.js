// Elements and small helpers. Text becomes text nodes: nothing is ever parsed as HTML.

export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") element.toggleAttribute(name, value);
    else if (value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export const byId = (id) => document.getElementById(id);

export function button(label, onclick, properties = {}) {
  return h("button", { type: "button", onclick, ...properties }, label);
}

/** Whether a key belongs to an input method that is still composing a word; Safari says so by the code 229 only. */
export const composing = (event) => event.isComposing || event.keyCode === 229;

/** Makes a text area as high as its text, up to the limit of the style sheet. */
export function fit(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
}

/** Tells a screen reader, without a trace on the screen. */
export function tell(text) {
  byId("told").textContent = text;
}

export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // Browsers offer the clipboard to https and loopback addresses only.
  const area = h("textarea", { class: "unseen", "aria-hidden": "true" });
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("The browser does not let this page copy.");
}

export function copyButton(text, label = "Copy") {
  const made = button(label, async () => {
    try {
      await copy(text());
      made.textContent = "Copied";
    } catch {
      made.textContent = "Not allowed";
    }
    setTimeout(() => { made.textContent = label; }, 1500);
  });
  return made;
}

let hiding = 0;

/** Shows a line for some seconds, with one thing that can be done about it. */
export function toast(text, label, action) {
  const box = byId("toast");
  const hide = () => { box.hidden = true; };
  clearTimeout(hiding);
  box.replaceChildren(text, button(label, () => { hide(); action(); }));
  box.hidden = false;
  hiding = setTimeout(hide, 10000);
}
