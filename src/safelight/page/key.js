/** The visitor's API key: asked for when the server first refuses to answer without one, and not again. */

import { Observable } from "./observable.js";

const NAME = "safelight.key";

export class ApiKey {
  /** @type {Observable<{sentence: string, isRefused: boolean} | null>} null: nothing is asked */
  question = new Observable(null);
  #value = read(sessionStorage) ?? read(localStorage);
  #asking = null;
  #answer = null;

  get value() {
    return this.#value;
  }

  /** @returns {Record<string, string>} */
  get headers() {
    return this.#value ? { authorization: `Bearer ${asHeader(this.#value)}` } : {};
  }

  /**
   * @param {string | null} refused the key that was refused
   * @param {string} sentence the server's
   * @returns {Promise<void>} once there is another key
   */
  async ask(refused, sentence) {
    if (this.#value !== refused) return;
    this.#asking ??= new Promise((resolve) => (this.#answer = resolve));
    this.question.value ??= { sentence, isRefused: refused !== null };
    await this.#asking;
  }

  /**
   * @param {string} value
   * @param {boolean} isRemembered also when this tab is closed
   */
  give(value, isRemembered) {
    this.#value = value;
    write(sessionStorage, value);
    write(localStorage, isRemembered ? value : null);
    this.question.value = null;
    this.#asking = null;
    this.#answer?.();
  }

  /** Forgets the key; the next refusal asks for one. */
  forget() {
    this.#value = null;
    write(sessionStorage, null);
    write(localStorage, null);
  }
}

/** Headers take bytes, one per character: those of UTF-8. */
function asHeader(text) {
  return String.fromCharCode(...new TextEncoder().encode(text));
}

function read(storage) {
  try {
    return storage.getItem(NAME);
  } catch {
    return null; // storage is switched off: the key is asked for on each visit
  }
}

function write(storage, value) {
  try {
    if (value === null) storage.removeItem(NAME);
    else storage.setItem(NAME, value);
  } catch {
    // As above.
  }
}
