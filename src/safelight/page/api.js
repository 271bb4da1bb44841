/** Requests to the server that this page came from, with the visitor's key, and its errors in its own words. */

export class ServerError extends Error {
  /**
   * @param {string} message the server's sentence
   * @param {number} status
   * @param {{code?: string, param?: string | null, retryAfterS?: number}} more
   */
  constructor(message, status, { code = "", param = null, retryAfterS = 0 } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.param = param;
    this.retryAfterS = retryAfterS;
  }
}

/** No answer came: the server is gone, or the way to it is. */
export class Disconnected extends Error {
  constructor() {
    super("The server cannot be reached.");
  }
}

export class Api {
  /** @param {import("./key.js").ApiKey} key */
  constructor(key) {
    this.key = key;
  }

  /**
   * The answer, if it is a good one. Asks for a key and tries again if one is needed.
   * @param {string} path
   * @param {{method?: string, body?: unknown, headers?: Record<string, string>, signal?: AbortSignal}} options
   * @returns {Promise<Response>} throws ServerError, Disconnected, or an AbortError of its signal
   */
  async fetch(path, { method = "GET", body, headers = {}, signal } = {}) {
    for (;;) {
      const key = this.key.value;
      const response = await this.#send(path, {
        method,
        signal,
        headers: {
          accept: "application/json",
          ...(body === undefined ? {} : { "content-type": "application/json" }),
          ...this.key.headers,
          ...headers,
        },
        body: body === undefined ? undefined : JSON.stringify(body, exactSeed),
      });
      if (response.ok) return response;
      const error = await serverError(response);
      if (error.status !== 401) throw error;
      await this.key.ask(key, error.message);
      signal?.throwIfAborted();
    }
  }

  /** @returns {Promise<any>} the body, null if there is none; throws as `fetch` */
  async json(path, options) {
    const response = await this.fetch(path, options);
    return response.status === 204 ? null : JSON.parse(await response.text(), seedAsWritten);
  }

  /** @returns {Promise<Blob>} */
  async blob(path, options) {
    return (await this.fetch(path, { ...options, headers: { accept: "*/*" } })).blob();
  }

  async #send(path, options) {
    try {
      return await fetch(path, { ...options, cache: "no-store", credentials: "omit" });
    } catch (error) {
      if (options.signal?.aborted) throw error;
      throw new Disconnected();
    }
  }
}

async function serverError(response) {
  const retryAfterS = Number(response.headers.get("retry-after") ?? 0);
  try {
    const { error } = await response.json();
    return new ServerError(error.message, response.status, { code: error.code, param: error.param, retryAfterS });
  } catch {
    return new ServerError(`The server answered ${response.status}.`, response.status, { retryAfterS });
  }
}

/** Seeds go up to 2^63, numbers here up to 2^53: larger ones are kept as their digits, both ways. */
function seedAsWritten(name, value, context) {
  return name === "seed" && !Number.isSafeInteger(value) ? (context?.source ?? value) : value;
}

function exactSeed(name, value) {
  return name === "seed" && typeof value === "string" && JSON.rawJSON ? JSON.rawJSON(value) : value;
}
