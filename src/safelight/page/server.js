/** What is known of the server: its state, followed live, and the models that it serves. */

import { followEvents } from "./events.js";
import { Observable } from "./observable.js";

/** How the connection is: before the first answer, while answers come, and when they stopped. */
export const Connection = Object.freeze({ CONNECTING: "connecting", LIVE: "live", LOST: "lost" });

export class Server {
  /** @type {Observable<any>} the body of /v1/status, null before the first */
  status = new Observable(null);
  connection = new Observable(Connection.CONNECTING);
  /** @type {Observable<any[]>} entries of /v1/models whose files are read, the default first */
  models = new Observable([]);
  /** @type {Observable<any>} the one of them that is to draw, null while there is none */
  model = new Observable(null);
  /** @type {Observable<string[]>} names of the LoRA adapters that fit the model */
  loras = new Observable([]);
  #api;
  #following = null;
  #isAsking = false;

  /** @param {import("./api.js").Api} api */
  constructor(api) {
    this.#api = api;
  }

  /** Follows the state while the page is seen: browsers have few connections to give, and other tabs want some. */
  start() {
    document.addEventListener("visibilitychange", () => (document.hidden ? this.#stop() : this.#follow()));
    this.#follow();
  }

  /** Has the next pictures drawn by the model of that name, if there is one. */
  choose(name) {
    const found = this.models.value.find(({ id }) => id === name);
    if (!found) return;
    this.model.value = found;
    this.askForLoras();
    keep(name);
  }

  /** @returns {{model?: string}} what requests say of the model: nothing, where there is no choice */
  get asked() {
    return this.models.value.length > 1 ? { model: this.model.value.id } : {};
  }

  /** Has a model loaded, or tries again where that has failed. Throws as `Api.fetch`. */
  async load(name = this.status.value.model) {
    this.status.value = await this.#api.json(`/v1/models/${encodeURI(name)}/load`, { method: "POST" });
  }

  /** Gives workers new processes, one after the other: one of them, or all. Throws as `Api.fetch`. */
  async restart(worker = null) {
    const path = worker === null ? "/v1/workers/restart" : `/v1/workers/${worker}/restart`;
    this.status.value = await this.#api.json(path, { method: "POST" });
  }

  /** Adapters come and go while the server runs. */
  async askForLoras() {
    try {
      const { data } = await this.#api.json(`/v1/loras?model=${encodeURIComponent(this.model.value.id)}`);
      this.loras.value = data.filter(({ fits }) => fits).map(({ name }) => name);
    } catch {
      // Then there are those that were known.
    }
  }

  #follow() {
    this.#stop();
    this.#following = new AbortController();
    followEvents(this.#api, "/v1/status/stream", {
      signal: this.#following.signal,
      onEvent: ({ data }) => this.#take(JSON.parse(data)),
      onConnected: (isConnected) => {
        this.connection.value = isConnected ? Connection.LIVE : Connection.LOST;
      },
    }).catch(() => (this.connection.value = Connection.LOST));
  }

  #stop() {
    this.#following?.abort();
  }

  #take(status) {
    const before = this.status.value;
    const isOther = before?.model !== status.model || before.uptime_s > status.uptime_s;
    this.status.value = status;
    if (isOther || !this.model.value) this.#askForModel();
  }

  async #askForModel() {
    if (this.#isAsking) return;
    this.#isAsking = true;
    try {
      const { data } = await this.#api.json("/v1/models");
      this.models.value = data.filter((entry) => entry.tasks && !entry.alias_of);
      const kept = this.models.value.find(({ id }) => id === keptModel());
      this.model.value = kept ?? this.models.value[0] ?? null;
      if (this.model.value) this.askForLoras();
    } catch {
      // The next status asks again.
    } finally {
      this.#isAsking = false;
    }
  }
}

const CHOSEN = "safelight.model";

/** @returns {string | null} the model that was chosen last in this browser */
function keptModel() {
  try {
    return localStorage.getItem(CHOSEN);
  } catch {
    return null;
  }
}

function keep(name) {
  try {
    localStorage.setItem(CHOSEN, name);
  } catch {
    // Storage is switched off or full: the next visit begins with the default.
  }
}
