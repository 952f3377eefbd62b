// Draws the conversation. A turn is a question and a row of answers, one for each column.

import { button, composing, copyButton, fit, h } from "./dom.js";
import { render } from "./markdown.js";

const SUGGESTIONS = ["Who are you?", "你是谁？", "Explain what a language model is in two sentences."];

/** Returns a turn's element. */
export function turnElement(turn, number, columns, context) {
  const { actions, isLast, plain } = context;
  const answers = columns.map((column) => answerElement(turn, column, { actions, isLast, plain }));
  return h("article", { class: "turn", "aria-label": `Turn ${number}` },
    questionElement(turn, actions),
    h("div", { class: "answers" }, ...answers));
}

export function emptyElement(columns, ask) {
  const names = columns.map((column) => column.model).join(", ");
  return h("div", { class: "empty" },
    h("p", {}, names ? `Ask ${names} something.` : "Waiting for the list of models."),
    h("div", { class: "suggestions" }, ...SUGGESTIONS.map((text) => button(text, () => ask(text)))));
}

function questionElement(turn, actions) {
  const made = h("div", { class: "question" });
  const show = () => made.replaceChildren(
    h("div", { class: "bubble", dir: "auto" }, turn.question),
    h("div", { class: "tools" },
      copyButton(() => turn.question),
      button("Edit", edit, { "aria-label": "Edit the question" }),
      button("Delete", () => actions.remove(turn), { "aria-label": "Delete this turn" })));
  function edit() {
    const save = (text) => actions.askAgainFrom(turn, text);
    made.replaceChildren(editor(turn.question, "Ask again from here", "The question", save, show));
    made.querySelector("textarea").focus();
  }
  show();
  return made;
}

function answerElement(turn, column, context) {
  const answer = turn.answers[column.id];
  if (!answer) {
    const ask = button(`Ask ${column.model} too`, () => context.actions.catchUp(column, turn));
    return h("section", { class: "answer unasked", "aria-label": column.model }, ask);
  }
  const made = h("section", { class: "answer", "data-column": column.id, "aria-label": `Answer of ${answer.model}` });
  fill(made, turn, column, context);
  return made;
}

/** Draws an answer into its element; called again while it grows. */
export function fill(made, turn, column, context) {
  const answer = turn.answers[column.id];
  const growing = answer.state === "waiting" || answer.state === "running";
  made.setAttribute("aria-busy", String(growing));
  const body = h("div", { class: context.plain ? "body plain" : "body", dir: "auto" });
  body.append(context.plain ? answer.text : render(answer.text));
  if (answer.state === "waiting") body.append(h("span", { class: "waiting", role: "img", "aria-label": "Waiting" }));
  const parts = [h("div", { class: "by" }, answer.model), body];
  if (answer.state === "failed") parts.push(h("p", { class: "fault", role: "alert" }, answer.error));
  if (!growing) parts.push(foot(made, turn, column, context));
  made.replaceChildren(...parts);
}

function foot(made, turn, column, context) {
  const { actions, isLast } = context;
  const answer = turn.answers[column.id];
  const tools = h("div", { class: "tools" });
  if (answer.text) tools.append(copyButton(() => answer.text));
  if (isLast) {
    const label = answer.state === "failed" ? "Try again" : "Ask again";
    tools.append(button(label, () => actions.again(column, turn), { "aria-label": `${label}: ${column.model}` }));
  }
  if (answer.state !== "failed") {
    tools.append(button("Edit", () => edit(made, turn, column, context), { "aria-label": "Edit the answer" }));
  }
  tools.append(h("span", { class: "facts" }, facts(answer)));
  return tools;
}

function edit(made, turn, column, context) {
  const answer = turn.answers[column.id];
  const show = () => fill(made, turn, column, context);
  const save = (text) => {
    context.actions.editAnswer(turn, column, text);
    show();
  };
  made.replaceChildren(h("div", { class: "by" }, answer.model), editor(answer.text, "Keep", "The answer", save, show));
  made.querySelector("textarea").focus();
}

function editor(text, label, name, save, cancel) {
  const area = h("textarea", { "aria-label": name, rows: "1" });
  area.value = text;
  const done = () => {
    if (area.value.trim()) save(area.value.trim());
  };
  area.addEventListener("input", () => fit(area));
  area.addEventListener("focus", () => fit(area), { once: true });
  area.addEventListener("keydown", (event) => {
    if (composing(event)) return;
    if (event.key === "Escape") cancel();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) done();
  });
  const buttons = h("div", { class: "row" }, button(label, done, { class: "main" }), button("Cancel", cancel));
  return h("div", { class: "editor" }, area, buttons);
}

function facts({ state, reason, tokens, seconds, edited }) {
  const said = [];
  if (tokens) said.push(`${tokens} ${tokens === 1 ? "token" : "tokens"}`);
  if (tokens > 1 && seconds > 0) said.push(`${rate((tokens - 1) / seconds)} a second`);
  if (state === "stopped") said.push("stopped by you");
  if (reason === "length") said.push("cut at the limit");
  if (edited) said.push("edited");
  return said.join(" · ");
}

const rate = (value) => (value < 10 ? value.toFixed(1) : Math.round(value));
