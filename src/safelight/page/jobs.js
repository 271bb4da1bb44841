/** The visitor's jobs, newest first: listed, searched, followed while they are under way, cancelled, deleted. */

import { Disconnected, ServerError } from "./api.js";
import { followEvents } from "./events.js";
import { Observable } from "./observable.js";
import { Connection } from "./server.js";

const LIST = "/v1/predictions";
const MAX_STREAMS = 2; // of the six connections that a browser gives all tabs of one origin together
const MAX_SINGLE = 3;
const REFRESH_MS = 900;
const OTHERS_MS = 3000;
const RESEND_MS = 700;

/** Not on its way to an end yet. The first is this page's own: it is being sent. */
export const isOpen = (job) => ["sending", "starting", "processing"].includes(job.status);

export class Jobs {
  /** @type {Observable<any[]>} predictions */
  list = new Observable([]);
  /** @type {Observable<string | null>} path of the next older ones */
  next = new Observable(null);
  /** @type {Observable<string | null>} */
  selectedId = new Observable(null);
  hasLoaded = new Observable(false);
  search = new Observable("");
  #api;
  #server;
  #previews;
  #announce;
  #streams = new Map();
  #refreshedMs = 0;
  #others = 0;
  #listing = null;

  /**
   * @param {import("./api.js").Api} api
   * @param {import("./server.js").Server} server
   * @param {import("./pictures.js").Previews} previews
   * @param {(sentence: string) => void} announce
   */
  constructor(api, server, previews, announce) {
    this.#api = api;
    this.#server = server;
    this.#previews = previews;
    this.#announce = announce;
  }

  start() {
    this.#server.connection.subscribe((state) => state === Connection.LIVE && this.reload());
    this.#server.status.subscribe(() => this.#refreshOpen());
    document.addEventListener("visibilitychange", () => (document.hidden ? this.#stopStreams() : this.reload()));
    this.list.subscribe(() => this.#followSome());
  }

  get selected() {
    return this.list.value.find((job) => job.id === this.selectedId.value) ?? null;
  }

  select(id) {
    this.selectedId.value = id;
  }

  // --- the list ----------------------------------------------------------------------------------------------------

  /** The newest ones, as the server has them now. What is older and was loaded before stays. */
  async reload() {
    this.#listing?.abort();
    const listing = (this.#listing = new AbortController());
    try {
      const page = await this.#page(this.#path(), listing.signal);
      const oldest = page.results.at(-1)?.created_at ?? "";
      const older = page.next ? this.list.value.filter((job) => job.created_at < oldest) : [];
      const unsent = this.list.value.filter((job) => job.status === "sending");
      if (!older.length) this.next.value = page.next;
      this.list.value = [...unsent, ...page.results, ...older];
      if (!this.hasLoaded.value && this.selectedId.value === null) this.select(this.list.value[0]?.id ?? null);
      this.hasLoaded.value = true;
    } catch {
      // The next connection loads it.
    }
  }

  async more() {
    try {
      const page = await this.#page(this.next.value);
      this.next.value = page.next;
      this.list.value = [...this.list.value, ...page.results];
    } catch {
      // The button is still there.
    }
  }

  /** @param {string} words all of which a prompt must have */
  find(words) {
    if (words === this.search.value) return Promise.resolve();
    this.search.value = words;
    this.list.value = this.list.value.filter((job) => isOpen(job) && this.#isFound(job));
    return this.reload();
  }

  #path() {
    return this.search.value.trim() ? `${LIST}?${new URLSearchParams({ search: this.search.value })}` : LIST;
  }

  async #page(path, signal) {
    const { results, next } = await this.#api.json(path, { signal });
    const url = next && new URL(next);
    return { results, next: url && url.pathname + url.search };
  }

  #isFound(job) {
    const prompt = job.params.prompt.toLowerCase();
    return this.search.value.toLowerCase().split(/\s+/).every((word) => prompt.includes(word));
  }

  #put(job) {
    const list = this.list.value;
    const place = list.findIndex((known) => known.id === job.id);
    this.list.value = place >= 0 ? list.with(place, job) : [job, ...list];
  }

  #remove(id) {
    const place = this.list.value.findIndex((job) => job.id === id);
    this.list.value = this.list.value.filter((job) => job.id !== id);
    if (this.selectedId.value === id) this.select(this.list.value[Math.min(place, this.list.value.length - 1)]?.id ?? null);
  }

  // --- what is done with them --------------------------------------------------------------------------------------

  /**
   * Sends a job under a name of its own, so that sending it again after a break makes no second one.
   * @param {Record<string, unknown>} input as /v1/predictions takes it
   * @param {Record<string, unknown>} params what it will be drawn with, as far as is known
   * @returns {Promise<void>} once it is accepted; throws ServerError
   */
  async submit(input, params) {
    const id = newId();
    const before = this.selectedId.value;
    this.#put({ id, status: "sending", input, params, created_at: new Date().toISOString(), warnings: [] });
    this.select(id);
    try {
      this.#put(await this.#send(id, { input, ...this.#server.asked }));
    } catch (error) {
      this.#remove(id);
      this.select(before);
      throw error;
    }
    if (!this.#isFound({ params })) await this.find("");
  }

  async #send(id, body) {
    for (;;) {
      try {
        return await this.#api.json(`${LIST}/${id}`, { method: "PUT", body });
      } catch (error) {
        if (!(error instanceof Disconnected)) throw error;
        await new Promise((resolve) => setTimeout(resolve, RESEND_MS));
        await this.#server.connection.until((state) => state === Connection.LIVE);
      }
    }
  }

  async cancel(job) {
    this.#put(await this.#api.json(`${LIST}/${job.id}/cancel`, { method: "POST" }));
  }

  async delete(job) {
    try {
      await this.#api.json(`${LIST}/${job.id}`, { method: "DELETE" });
    } catch (error) {
      if (error.status !== 404) throw error;
    }
    this.#remove(job.id);
  }

  // --- following ---------------------------------------------------------------------------------------------------

  /** Positions and times come with no event: they are asked for when the server's state changes. */
  async #refreshOpen() {
    const open = this.list.value.filter((job) => isOpen(job) && job.status !== "sending");
    const hasNews = this.#countOthers() !== this.#others;
    const pauseMs = hasNews && !open.length ? OTHERS_MS : REFRESH_MS;
    if ((!open.length && !hasNews) || Date.now() - this.#refreshedMs < pauseMs) return;
    this.#refreshedMs = Date.now();
    this.#others = this.#countOthers();
    if (hasNews || open.length > MAX_SINGLE) return this.reload();
    await Promise.all(open.map((job) => this.#refresh(job.id)));
  }

  /** Unfinished jobs of the server that are not listed here: others', or the visitor's from elsewhere. */
  #countOthers() {
    const { waiting, running } = this.#server.status.value.queue;
    return waiting + running - this.list.value.filter(isOpen).length;
  }

  async #refresh(id) {
    try {
      this.#end(await this.#api.json(`${LIST}/${id}`));
    } catch (error) {
      if (error instanceof ServerError && error.status === 404) this.#remove(id);
    }
  }

  /** Takes over a newer state, and says so aloud if it is the last. */
  #end(job) {
    const known = this.list.value.find((other) => other.id === job.id);
    if (!known || !isOpen(known)) return;
    this.#put(job);
    const count = job.params.num_images;
    if (job.status === "succeeded") this.#announce(count > 1 ? `${count} pictures are finished.` : "The picture is finished.");
    if (job.status === "failed") this.#announce(`The picture failed: ${job.error}`);
    if (job.status === "canceled") this.#announce("The picture was cancelled.");
  }

  #followSome() {
    const open = this.list.value.filter((job) => isOpen(job) && job.status !== "sending").reverse();
    const running = open.filter((job) => job.status === "processing");
    const wanted = new Set([...running, ...open].map((job) => job.id).slice(0, MAX_STREAMS));
    for (const [id, stream] of this.#streams) if (!wanted.has(id)) stream.abort();
    for (const id of wanted) if (!this.#streams.has(id) && !document.hidden) this.#stream(id);
  }

  async #stream(id) {
    const controller = new AbortController();
    this.#streams.set(id, controller);
    try {
      await followEvents(this.#api, `${LIST}/${id}/stream?previews=true`, {
        signal: controller.signal,
        onEvent: (event) => this.#take(id, event),
      });
    } catch {
      // It is gone; what is left of it is asked for below.
    }
    if (this.#streams.get(id) === controller) this.#streams.delete(id);
    if (!controller.signal.aborted) await this.#refresh(id);
  }

  #take(id, { name, data }) {
    if (name === "preview") this.#previews.take(id, JSON.parse(data));
    if (name === "logs") this.#step(id, Number(/(\d+)\/\d+$/.exec(data)?.[1] ?? 0));
    return name === "done";
  }

  #step(id, step) {
    const job = this.list.value.find((known) => known.id === id);
    if (job && isOpen(job)) this.#put({ ...job, status: "processing", progress: { ...job.progress, step } });
  }

  #stopStreams() {
    for (const stream of this.#streams.values()) stream.abort();
    this.#streams.clear();
  }
}

/** Not randomUUID: browsers keep that from pages that come without TLS. */
function newId() {
  const random = crypto.getRandomValues(new Uint8Array(12));
  return `page-${[...random].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}
