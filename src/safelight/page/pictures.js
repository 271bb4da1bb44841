/** Where the pictures of jobs are: finished ones by signed link, unfinished ones fetched with the key. */

import { Observable } from "./observable.js";

const SPARE_S = 120;
const MAX_PREVIEWS = 24;

/** Signed links, each kept while it is valid: the server signs anew in every answer, and a browser loads each address. */
export class Pictures {
  #paths = new Map();

  /** @returns {string} path and query on this origin, whatever the server thinks its name is */
  path(job, index) {
    const name = `${job.id}/${index}`;
    const known = this.#paths.get(name);
    if (known && known.expiresS > Date.now() / 1000 + SPARE_S) return known.path;
    const url = new URL(job.output[index], location.origin);
    const path = url.pathname + url.search;
    this.#paths.set(name, { path, expiresS: Number(url.searchParams.get("expires")) });
    return path;
  }
}

/** The newest unfinished picture of each image, as an address inside the page. */
export class Previews {
  /** @type {Observable<Map<string, {url: string, step: number}>>} by job and image */
  shown = new Observable(new Map());
  #api;
  #wanted = new Map();

  /** @param {import("./api.js").Api} api */
  constructor(api) {
    this.#api = api;
  }

  /** @returns {{url: string, step: number} | undefined} */
  of(job, index) {
    return this.shown.value.get(`${job.id}/${index}`);
  }

  /**
   * Fetches it, unless a newer one comes meanwhile: each address always has the newest.
   * @param {string} jobId
   * @param {{image_index: number, step: number, url: string}} preview as the event has it
   */
  async take(jobId, preview) {
    const name = `${jobId}/${preview.image_index}`;
    const isUnderWay = this.#wanted.has(name);
    this.#wanted.set(name, preview);
    if (isUnderWay) return;
    try {
      for (let wanted; (wanted = this.#wanted.get(name)) !== this.#shownAs(name); ) {
        const blob = await this.#api.blob(new URL(wanted.url).pathname);
        this.#show(name, wanted, blob);
      }
    } catch {
      // The picture is finished by now, or the connection is gone: what was shown stays.
    } finally {
      this.#wanted.delete(name);
    }
  }

  #shownAs(name) {
    return this.shown.value.get(name)?.preview;
  }

  #show(name, preview, blob) {
    const shown = new Map(this.shown.value);
    const before = shown.get(name);
    shown.delete(name);
    shown.set(name, { url: URL.createObjectURL(blob), step: preview.step, preview });
    const gone = [...shown.keys()].slice(0, Math.max(shown.size - MAX_PREVIEWS, 0)).map((old) => shown.get(old));
    for (const old of [...shown.keys()].slice(0, gone.length)) shown.delete(old);
    this.shown.value = shown;
    for (const old of [before, ...gone]) if (old) URL.revokeObjectURL(old.url);
  }
}
