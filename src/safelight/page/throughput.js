/** How many pictures the server makes, from its counters. */

import { Observable } from "./observable.js";

const EVERY_MS = 2000;
const WINDOW_S = 60;
const LEAST_S = 10;
const KEPT = 150;

export class Throughput {
  /** @type {Observable<{at_s: number, images: number, per_minute: number}[]>} oldest first */
  samples = new Observable([]);
  #api;
  #timer = 0;

  /** @param {import("./api.js").Api} api */
  constructor(api) {
    this.#api = api;
  }

  start() {
    this.#sample();
    this.#timer = setInterval(() => document.hidden || this.#sample(), EVERY_MS);
  }

  stop() {
    clearInterval(this.#timer);
  }

  async #sample() {
    try {
      const text = await (await this.#api.fetch("/metrics", { headers: { accept: "text/plain" } })).text();
      this.#take(Date.now() / 1000, counter(text, "safelight_images_total"));
    } catch {
      // The next one comes soon.
    }
  }

  #take(at_s, images) {
    let samples = this.samples.value;
    if (samples.at(-1)?.images > images) samples = []; // another server, which counts from zero
    const since = samples.find((sample) => sample.at_s >= at_s - WINDOW_S) ?? { at_s, images };
    const seconds = Math.max(at_s - since.at_s, 1);
    const per_minute = ((images - since.images) * 60) / Math.max(seconds, LEAST_S);
    this.samples.value = [...samples, { at_s, images, per_minute }].slice(-KEPT);
  }
}

/** @returns {number} the sum over all labels */
export function counter(text, name) {
  let sum = 0;
  for (const [, value] of text.matchAll(new RegExp(`^${name}(?:\\{[^}]*\\})? (\\S+)$`, "gm"))) sum += Number(value);
  return sum;
}
