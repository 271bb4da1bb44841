/** A value that tells when it changes, and the hook by which a view follows it. */

import { useLayoutEffect, useState } from "./vendor/hooks.js";

/** @template T */
export class Observable {
  #value;
  #listeners = new Set();

  /** @param {T} value */
  constructor(value) {
    this.#value = value;
  }

  get value() {
    return this.#value;
  }

  set value(value) {
    if (Object.is(value, this.#value)) return;
    this.#value = value;
    for (const listener of [...this.#listeners]) listener(value);
  }

  /**
   * @param {(value: T) => void} listener
   * @returns {() => void} ends it
   */
  subscribe(listener) {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /**
   * @param {(value: T) => boolean} condition
   * @returns {Promise<T>} the first value for which it holds
   */
  until(condition) {
    if (condition(this.#value)) return Promise.resolve(this.#value);
    return new Promise((resolve) => {
      const end = this.subscribe((value) => {
        if (!condition(value)) return;
        end();
        resolve(value);
      });
    });
  }
}

/**
 * @template T
 * @param {Observable<T>} observable
 * @returns {T} its value; the view is drawn again when it changes
 */
export function useValue(observable) {
  const [, redraw] = useState(0);
  const seen = observable.value;
  useLayoutEffect(() => {
    const again = () => redraw((count) => count + 1);
    if (!Object.is(observable.value, seen)) again();
    return observable.subscribe(again);
  }, [observable]);
  return seen;
}
