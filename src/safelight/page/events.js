/**
 * Server-sent events over fetch, since EventSource cannot send a key: parsed, and followed on after every break.
 * https://html.spec.whatwg.org/multipage/server-sent-events.html
 */

import { ServerError } from "./api.js";

const FIRST_PAUSE_MS = 300;
const LAST_PAUSE_MS = 5000;
const SILENCE_MS = 40_000; // the server says something every 15 s

/** @typedef {{name: string, data: string, id: string}} ServerEvent */

/**
 * Follows a stream until its end is told, the server refuses it, or the signal aborts. A break is followed on from the
 * last event that was seen.
 * @param {import("./api.js").Api} api
 * @param {string} path
 * @param {{onEvent: (event: ServerEvent) => boolean | void, onConnected?: (isConnected: boolean) => void,
 *   signal: AbortSignal}} options `onEvent` returns true at the end
 */
export async function followEvents(api, path, { onEvent, onConnected = () => {}, signal }) {
  let lastId = "";
  let pauseMs = FIRST_PAUSE_MS;
  while (!signal.aborted) {
    const breaker = new Breaker(signal);
    try {
      const headers = { accept: "text/event-stream", ...(lastId ? { "last-event-id": lastId } : {}) };
      const response = await api.fetch(path, { headers, signal: breaker.signal });
      onConnected(true);
      for await (const event of parseEvents(response.body, () => breaker.rest())) {
        lastId = event.id || lastId;
        pauseMs = FIRST_PAUSE_MS;
        if (onEvent(event)) return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof ServerError && error.status < 500 && error.status !== 429) throw error;
    } finally {
      breaker.end();
    }
    if (signal.aborted) return;
    onConnected(false);
    await pause(pauseMs, signal);
    pauseMs = Math.min(pauseMs * 2, LAST_PAUSE_MS);
  }
}

/** Ends a connection that has gone silent, or whose network is known to be gone. */
class Breaker {
  #controller = new AbortController();
  #timer = 0;
  #break = () => this.#controller.abort();

  constructor(signal) {
    this.signal = AbortSignal.any([signal, this.#controller.signal]);
    addEventListener("offline", this.#break);
    this.rest();
  }

  rest() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(this.#break, SILENCE_MS);
  }

  end() {
    clearTimeout(this.#timer);
    removeEventListener("offline", this.#break);
    this.#controller.abort();
  }
}

/** @returns {Promise<void>} after that time, when the network is back, or when the signal aborts */
function pause(durationMs, signal) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      removeEventListener("online", done);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, durationMs);
    addEventListener("online", done);
    signal.addEventListener("abort", done);
  });
}

/**
 * @param {ReadableStream<Uint8Array>} stream
 * @param {() => void} onBytes
 * @returns {AsyncGenerator<ServerEvent>}
 */
export async function* parseEvents(stream, onBytes = () => {}) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    onBytes();
    const blocks = (text + value).split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const event = parseEvent(block);
      if (event) yield event;
    }
  }
}

/** @returns {ServerEvent | null} null for a block of comments */
function parseEvent(block) {
  const event = { name: "", data: [], id: "" };
  for (const line of block.split("\n")) {
    const [, field, value] = /^(\w+): ?(.*)$/.exec(line) ?? [];
    if (field === "event") event.name = value;
    if (field === "data") event.data.push(value);
    if (field === "id") event.id = value;
  }
  return event.name ? { ...event, data: event.data.join("\n") } : null;
}
