// What was asked, and what each model answered. A conversation has up to three columns: questions are shared, and each
// column goes on from its own answers.

import { Fault, streamChat } from "./api.js";

export const MAX_COLUMNS = 3;
const STORE = "tunerun.chat";

export class Conversation {
  constructor() {
    /** Columns: { id, model }. */
    this.columns = [];
    /** Turns: { question, answers }, answers by column: { model, text, state, reason, tokens, seconds, error }. */
    this.turns = [];
    /** What is being answered, by column: { controller, over }, the latter a promise. */
    this.running = new Map();
  }

  get busy() {
    return this.running.size > 0;
  }

  addColumn(model) {
    const ids = this.columns.map((column) => column.id);
    const id = ["a", "b", "c"].find((name) => !ids.includes(name));
    // Answers of a column that was removed are not the new one's.
    for (const turn of this.turns) delete turn.answers[id];
    this.columns.push({ id, model });
  }

  removeColumn(id) {
    this.stop(id);
    this.columns = this.columns.filter((column) => column.id !== id);
  }

  /** Returns what a column is asked in a turn: the conversation so far as it went there, and the question. */
  messages(id, turn, system) {
    const before = this.turns.slice(0, this.turns.indexOf(turn)).flatMap(({ question, answers }) => (
      usable(answers[id])
        ? [{ role: "user", content: question }, { role: "assistant", content: answers[id].text }]
        : []
    ));
    const first = system.trim() ? [{ role: "system", content: system }] : [];
    return [...first, ...before, { role: "user", content: turn.question }];
  }

  /** Returns each column's conversation as messages; columns without an answer are left out. */
  saved(system) {
    return this.columns.map(({ id }) => {
      const answered = this.turns.filter((turn) => usable(turn.answers[id]));
      if (!answered.length) return null;
      const last = answered.at(-1);
      return [...this.messages(id, last, system), { role: "assistant", content: last.answers[id].text }];
    }).filter((messages) => messages !== null);
  }

  /** Stops the answer of a column, or all answers, and waits for their end. */
  async stop(id = null) {
    const stopped = [...this.running].filter(([column]) => id === null || id === column).map(([, work]) => work);
    for (const { controller } of stopped) controller.abort();
    await Promise.all(stopped.map(({ over }) => over));
  }

  /**
   * Lets a column answer a turn, and returns the answer when it is over.
   *
   * @param column Which column.
   * @param turn One of `turns`.
   * @param asked Sampling fields of the request as `body`, and the `system` prompt.
   * @param onchange Called when the answer has changed.
   */
  ask(column, turn, asked, onchange) {
    const controller = new AbortController();
    const over = this.answer(column, turn, { ...asked, signal: controller.signal }, onchange).finally(() => {
      this.running.delete(column.id);
      onchange();
    });
    this.running.set(column.id, { controller, over });
    return over;
  }

  async answer(column, turn, { body, system, signal }, onchange) {
    const answer = { model: column.model, text: "", state: "waiting", reason: null, tokens: 0, seconds: 0, error: "" };
    turn.answers[column.id] = answer;
    let began = 0;
    try {
      const asked = { model: column.model, messages: this.messages(column.id, turn, system), ...body };
      for await (const piece of streamChat(asked, signal)) {
        if (piece.text) {
          began ||= performance.now();
          answer.state = "running";
          answer.text += piece.text;
          answer.seconds = (performance.now() - began) / 1000;
        }
        answer.reason = piece.reason ?? answer.reason;
        answer.tokens = piece.tokens ?? answer.tokens;
        onchange();
      }
      answer.state = "done";
    } catch (error) {
      if (error.name === "AbortError") {
        answer.state = "stopped";
      } else if (error instanceof Fault) {
        answer.state = "failed";
        answer.error = hinted(error);
        answer.status = error.status;
      } else {
        throw error;
      }
    }
    return answer;
  }

  store(settings) {
    const { columns, turns } = this;
    try {
      sessionStorage.setItem(STORE, JSON.stringify({ columns, turns, settings }));
    } catch {
      // The browser keeps no more of it: a reload begins anew.
      sessionStorage.removeItem(STORE);
    }
  }

  /** Takes up what the tab had before a reload, and returns its settings. */
  restore() {
    const found = JSON.parse(sessionStorage.getItem(STORE) ?? "null");
    if (found === null) return {};
    ({ columns: this.columns, turns: this.turns } = found);
    for (const turn of this.turns) {
      for (const answer of Object.values(turn.answers)) {
        if (["waiting", "running"].includes(answer.state)) answer.state = "stopped";
      }
    }
    return found.settings;
  }
}

/** Whether a conversation can go on from an answer. */
export const usable = (answer) => Boolean(answer?.text) && answer.state !== "failed";

function hinted({ message, code }) {
  return code === "context_length_exceeded" ? `${message} Set fewer max tokens, delete earlier turns, or begin anew.` : message;
}
