// The chat page: models above, the conversation, the message below.

import * as api from "./api.js";
import { Conversation, MAX_COLUMNS } from "./conversation.js";
import { button, byId, composing, fit, h, tell, toast } from "./dom.js";
import * as settings from "./settings.js";
import * as view from "./view.js";

const HEALTH_MILLISECONDS = 1000;
const NEAR_BOTTOM = 80;

const talk = byId("talk");
const page = byId("app");
const question = byId("question");
const conversation = new Conversation();
let models = [];
let following = true;

const actions = {
  remove(turn) {
    forgetting("The turn is deleted.", () => {
      conversation.turns = conversation.turns.filter((other) => other !== turn);
    });
  },
  async askAgainFrom(turn, text) {
    await conversation.stop();
    const before = conversation.turns;
    conversation.turns = before.slice(0, before.indexOf(turn));
    if (send(text) && before.at(-1) !== turn) offerBack("The turns after it are deleted.", before);
  },
  again(column, turn) {
    askColumns([column], turn);
  },
  /** Lets a column that came later answer all questions up to a turn. */
  async catchUp(column, turn) {
    if (conversation.running.has(column.id)) return;
    for (const earlier of conversation.turns.slice(0, conversation.turns.indexOf(turn) + 1)) {
      if (earlier.answers[column.id]) continue;
      const [answer] = await askColumns([column], earlier);
      if (answer?.state !== "done") return;
    }
  },
  editAnswer(turn, column, text) {
    Object.assign(turn.answers[column.id], { text, edited: true, state: "done", reason: null, tokens: 0 });
    store();
  },
};

function send(text) {
  if (conversation.busy || !text || !settings.valid()) return false;
  const turn = { question: text, answers: {} };
  conversation.turns.push(turn);
  following = true;
  askColumns(conversation.columns, turn);
  return true;
}

async function askColumns(columns, turn) {
  if (!settings.valid()) return [];
  const asked = { body: settings.request(), system: settings.read().system };
  const answers = columns.map(async (column) => {
    const answer = await conversation.ask(column, turn, asked, () => drawSoon(turn, column));
    tell(answer.state === "failed" ? answer.error : `${answer.model} has answered.`);
    if (answer.status === 401) askForKey();
    if (answer.status === 503) watchHealth();
    return answer;
  });
  draw();
  const done = await Promise.all(answers);
  store();
  return done;
}

/** Forgets something, and offers to take it back. */
async function forgetting(told, change) {
  await conversation.stop();
  const before = conversation.turns;
  change();
  store();
  draw();
  offerBack(told, before);
}

function offerBack(told, before) {
  toast(told, "Undo", async () => {
    await conversation.stop();
    conversation.turns = before;
    store();
    draw();
  });
}

function store() {
  conversation.store(settings.read());
}

const waiting = new Map();

/** Draws a growing answer once a frame, however many pieces come. */
function drawSoon(turn, column) {
  if (!waiting.size) requestAnimationFrame(drawWaiting);
  waiting.set(`${conversation.turns.indexOf(turn)} ${column.id}`, [turn, column]);
}

function drawWaiting() {
  for (const [turn, column] of waiting.values()) {
    const place = conversation.turns.indexOf(turn);
    const element = talk.children[place]?.querySelector(`[data-column="${column.id}"]`);
    if (element && turn.answers[column.id]) view.fill(element, turn, column, context(turn));
  }
  waiting.clear();
  drawState();
  follow();
}

function context(turn) {
  return { actions, isLast: turn === conversation.turns.at(-1), plain: settings.read().plain };
}

function draw() {
  const { columns, turns } = conversation;
  document.body.dataset.columns = String(columns.length);
  talk.replaceChildren(...turns.length
    ? turns.map((turn, index) => view.turnElement(turn, index + 1, columns, context(turn)))
    : [view.emptyElement(columns, send)]);
  drawState();
  follow();
}

function drawState() {
  const { busy, turns, columns } = conversation;
  const main = byId("send");
  main.textContent = busy ? "Stop" : "Send";
  main.classList.toggle("stop", busy);
  main.disabled = !busy && (!columns.length || !question.value.trim());
  byId("new").disabled = byId("save").disabled = turns.length === 0;
  byId("summary").textContent = settings.summary();
}

function follow() {
  if (following) page.scrollTop = page.scrollHeight;
}

function drawModels() {
  const { columns } = conversation;
  const choices = columns.map((column, index) => {
    const select = h("select", { "aria-label": `Model ${index + 1}` },
      ...models.map((name) => h("option", { selected: name === column.model }, name)));
    select.addEventListener("change", () => {
      column.model = select.value;
      changedModels();
    });
    const remove = button("×", () => {
      conversation.removeColumn(column.id);
      changedModels();
    }, { "aria-label": `Remove model ${index + 1}: ${column.model}`, title: "Remove" });
    return h("div", { class: "choice" }, select, ...columns.length > 1 ? [remove] : []);
  });
  const add = button("+ Compare", addColumn, { class: "add", title: "Ask one more model the same" });
  byId("models").replaceChildren(...choices, ...columns.length < MAX_COLUMNS && columns.length ? [add] : []);
}

function addColumn() {
  const used = conversation.columns.map((column) => column.model);
  conversation.addColumn(models.find((name) => !used.includes(name)) ?? used[0]);
  changedModels();
}

function changedModels() {
  store();
  drawModels();
  draw();
}

/** Asks for the list of models, and for a key where one is needed. */
async function connect() {
  try {
    models = await api.listModels();
  } catch (error) {
    if (!(error instanceof api.Fault)) throw error;
    if (error.status === 401) return askForKey();
    showHealth(error.message);
    setTimeout(connect, 3 * HEALTH_MILLISECONDS);
    return undefined;
  }
  byId("key-form").hidden = true;
  conversation.columns = conversation.columns.filter((column) => models.includes(column.model));
  if (!conversation.columns.length && models.length) conversation.addColumn(models[0]);
  changedModels();
  if (!matchMedia("(pointer: coarse)").matches) question.focus();
  return watchHealth();
}

let watching = false;

/** Says so while the server is loading its model. */
async function watchHealth() {
  if (watching) return;
  watching = true;
  for (let state = ""; state !== "ok";) {
    state = await api.health().catch(() => "not reachable");
    showHealth(state === "ok" ? "" : `The server is ${state} …`);
    if (state !== "ok") await new Promise((done) => setTimeout(done, HEALTH_MILLISECONDS));
  }
  watching = false;
}

function showHealth(text) {
  byId("health").textContent = text;
  byId("health").hidden = text === "";
}

function askForKey() {
  byId("key-note").textContent = api.key() === null
    ? "It stays in this tab and is forgotten with it."
    : "The server does not take this key. Try another one.";
  byId("key-form").hidden = false;
  byId("key").focus();
}

function save() {
  const lines = conversation.saved(settings.read().system).map((messages) => `${JSON.stringify({ messages })}\n`);
  const url = URL.createObjectURL(new Blob(lines, { type: "application/x-ndjson" }));
  h("a", { href: url, download: "talk.jsonl" }).click();
  setTimeout(() => URL.revokeObjectURL(url), HEALTH_MILLISECONDS);
}

function submitQuestion() {
  if (conversation.busy || !send(question.value.trim())) return;
  question.value = "";
  fit(question);
  drawState();
}

function setUp() {
  settings.write(conversation.restore());
  let { plain } = settings.read();
  settings.setUp(() => {
    store();
    if (plain === settings.read().plain) return drawState();
    ({ plain } = settings.read());
    return draw();
  });
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (conversation.busy) conversation.stop();
    else submitQuestion();
  });
  question.addEventListener("input", () => {
    fit(question);
    drawState();
  });
  question.addEventListener("keydown", (event) => {
    // On a phone, Enter begins a new line, and the button sends.
    const sends = event.key === "Enter" && !event.shiftKey && !matchMedia("(pointer: coarse)").matches;
    if (sends && !composing(event)) {
      event.preventDefault();
      submitQuestion();
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && conversation.busy && !composing(event)) conversation.stop();
  });
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    api.setKey(byId("key").value.trim());
    byId("key").value = "";
    connect();
  });
  byId("new").addEventListener("click", () => forgetting("The conversation is forgotten.", () => {
    conversation.turns = [];
  }));
  byId("save").addEventListener("click", save);
  page.addEventListener("scroll", () => {
    following = page.scrollHeight - page.scrollTop - page.clientHeight < NEAR_BOTTOM;
  });
  // A phone's keyboard makes the page smaller.
  addEventListener("resize", follow);
  drawModels();
  draw();
}

setUp();
connect();
