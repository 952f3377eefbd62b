// The gateway's endpoints. Addresses are relative, so that a proxy may put the page anywhere.

const KEY = "tunerun.key";
const EVENT = "data:";

export class Fault extends Error {
  constructor(message, status = 0, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export const key = () => sessionStorage.getItem(KEY);
export const setKey = (value) => sessionStorage.setItem(KEY, value);

export async function listModels() {
  const reply = await call("v1/models");
  const { data } = await reply.json();
  return data.map((model) => model.id);
}

/** Returns what the server says of itself: `ok`, or why it cannot answer yet. */
export async function health() {
  const reply = await fetch("health", { cache: "no-store" });
  if (reply.ok) return "ok";
  const body = await reply.json().catch(() => ({}));
  return typeof body.status === "string" ? body.status : "starting";
}

/**
 * Asks for an answer and yields it in pieces: { text }, then { reason }, then { tokens }.
 * Throws a Fault that can be shown, or an AbortError when the signal stops it.
 */
export async function* streamChat(body, signal) {
  const asked = { ...body, stream: true, stream_options: { include_usage: true } };
  const headers = { "content-type": "application/json" };
  const reply = await call("v1/chat/completions", { method: "POST", headers, body: JSON.stringify(asked), signal });
  let complete = false;
  for await (const data of events(reply.body)) {
    if (data === "[DONE]") {
      complete = true;
      break;
    }
    yield* pieces(JSON.parse(data));
  }
  if (!complete) throw new Fault("The connection ended before the answer did.");
}

function* pieces(chunk) {
  if (chunk.error) throw new Fault(chunk.error.message, chunk.error.status ?? 0, chunk.error.code);
  const choice = chunk.choices?.[0];
  if (choice?.delta?.content) yield { text: choice.delta.content };
  if (choice?.finish_reason) yield { reason: choice.finish_reason };
  if (chunk.usage) yield { tokens: chunk.usage.completion_tokens };
}

async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (key()) headers.authorization = `Bearer ${key()}`;
  let reply;
  try {
    reply = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Fault(error instanceof TypeError && /[^\u0000-\u00ff]/.test(key() ?? "")
      ? "The API key has characters that a key cannot have."
      : "The server cannot be reached. Is it still running?");
  }
  if (reply.ok) return reply;
  const body = await reply.json().catch(() => null);
  const message = body?.error?.message ?? `The server answered with status ${reply.status}.`;
  throw new Fault(message, reply.status, body?.error?.code ?? null);
}

/** Yields the data of server-sent events. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { value, done } = await read(reader);
      if (done) return;
      const lines = (held + value).split("\n");
      held = lines.pop();
      for (const line of lines) {
        if (line.startsWith(EVENT)) yield line.slice(EVENT.length).trim();
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Fault("The connection ended before the answer did.");
  }
}
