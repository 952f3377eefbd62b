// The settings panel: how answers are asked for.

import { byId } from "./dom.js";

const DEFAULTS = {
  system: "", temperature: "0", top_p: "1", top_k: "0", max_tokens: "512", seed: "", stop: "", plain: false,
};
const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];

const form = () => byId("settings-form");
const fields = () => form().elements;

export function read() {
  return Object.fromEntries(Object.entries(DEFAULTS).map(([name, standard]) => {
    const field = fields()[name];
    return [name, typeof standard === "boolean" ? field.checked : field.value];
  }));
}

export function write(values) {
  for (const [name, standard] of Object.entries(DEFAULTS)) {
    const value = values[name] ?? standard;
    if (typeof standard === "boolean") fields()[name].checked = value;
    else fields()[name].value = value;
  }
}

/** Returns the fields of a request: what is left empty is the server's to choose. */
export function request() {
  const values = read();
  const body = {};
  for (const name of NUMBERS) {
    if (values[name].trim()) body[name] = Number(values[name]);
  }
  const stops = values.stop.split("\n").filter((line) => line !== "");
  if (stops.length) body.stop = stops.map((line) => line.replaceAll("\\n", "\n"));
  return body;
}

/** Returns the settings in words, for the line below the message. */
export function summary() {
  const { system, temperature, top_p, top_k, max_tokens, seed, stop } = read();
  const said = [`Temperature ${temperature}`];
  if (top_p !== "1") said.push(`top p ${top_p}`);
  if (top_k !== "0") said.push(`top k ${top_k}`);
  said.push(max_tokens ? `at most ${max_tokens} tokens` : "as long as fits");
  if (seed) said.push(`seed ${seed}`);
  if (stop) said.push("stop texts");
  if (system.trim()) said.push("system prompt");
  return said.join(" · ");
}

/** Says whether every field can be used, and shows the first that cannot. */
export function valid() {
  if (form().checkValidity()) return true;
  open();
  form().reportValidity();
  return false;
}

export function open() {
  byId("settings").hidden = false;
  document.body.classList.add("with-settings");
  byId("open-settings").setAttribute("aria-expanded", "true");
  fields().system.focus();
}

export function close() {
  byId("settings").hidden = true;
  document.body.classList.remove("with-settings");
  byId("open-settings").setAttribute("aria-expanded", "false");
  byId("open-settings").focus();
}

export function setUp(onchange) {
  form().addEventListener("input", onchange);
  form().addEventListener("submit", (event) => event.preventDefault());
  byId("open-settings").addEventListener("click", () => (byId("settings").hidden ? open() : close()));
  byId("summary").addEventListener("click", open);
  byId("close-settings").addEventListener("click", close);
  byId("settings").addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
  });
  byId("defaults").addEventListener("click", () => {
    write({});
    onchange();
  });
}
