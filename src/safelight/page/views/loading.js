/** The model on its way to the device: every component with its bytes, the phase, how long it will take. */

import { html } from "../html.js";
import { useValue } from "../observable.js";
import { Connection } from "../server.js";
import { useEffect, useRef, useState } from "../vendor/hooks.js";
import * as words from "../words.js";

const PHASES = [
  ["Start", ["starting", "verify", "import"]],
  ["Weights", ["weights", "to_device"]],
  ["Warm-up", ["warmup"]],
];
const SERVING = ["ready", "busy"];
const QUIET = ["unloaded", "draining"];

/** `isBrief` where there is something else to look at. */
export function LoadingPanel({ session, isBrief }) {
  const status = useValue(session.server.status);
  const connection = useValue(session.server.connection);
  if (!status || connection === Connection.LOST || status.status === "draining") return null;
  if (status.workers.some((worker) => SERVING.includes(worker.state))) return null;
  const worker = furthest(status.workers.filter(({ state }) => !QUIET.includes(state)));
  if (!worker) return null;
  if (status.status === "failed") return html`<${FailedLoad} session=${session} sentence=${worker.error} />`;
  const isAgain = worker.restarts > 0;
  return html`
    <section class="loading" aria-labelledby="loading-title" data-testid="loading">
      <h2 id="loading-title">${isAgain ? "The worker starts again" : "The model is loading"}</h2>
      <p class="quiet" data-testid="phase">${words.phase(worker)} on ${worker.device}<${LoadTime} worker=${worker} /></p>
      ${worker.error && html`<p class="reason">${worker.error}</p>`}
      <${Phases} worker=${worker} />
      ${!isBrief && html`
        <${Components} worker=${worker} />
        <p class="quiet">What you ask for now waits in line until the model is ready.</p>
      `}
    </section>
  `;
}

/** Counts on between the server's reports: what is left, or how long it has taken if nobody can say. */
export function LoadTime({ worker }) {
  const received = useRef({ worker: null, at_ms: 0 });
  const [, tick] = useState(0);
  if (received.current.worker !== worker) received.current = { worker, at_ms: Date.now() };
  useEffect(() => {
    const timer = setInterval(() => tick((count) => count + 1), 1000);
    return () => clearInterval(timer);
  }, []);
  const since_s = (Date.now() - received.current.at_ms) / 1000;
  const text =
    worker.eta_s === null ? `for ${words.duration(worker.seconds + since_s)}` : words.timeLeft(worker.eta_s - since_s);
  return html`<span> · ${text}</span>`;
}

function Phases({ worker }) {
  const current = PHASES.findIndex(([, names]) => names.includes(worker.phase));
  return html`
    <ol class="phases">
      ${PHASES.map(
        ([name], index) => html`
          <li key=${name} data-state=${index < current ? "done" : index === current ? "now" : "later"}
            aria-current=${index === current ? "step" : undefined}>${name}</li>
        `,
      )}
    </ol>
  `;
}

export function Components({ worker }) {
  const components = worker.components.filter((component) => component.bytes_total > 0);
  return html`
    <ul class="components">
      ${components.map(
        ({ name, bytes_done, bytes_total }) => html`
          <li key=${name} data-testid="component">
            <span class="name" id=${`component-${worker.id}-${name}`}>${words.componentName(name)}</span>
            <progress max=${bytes_total} value=${bytes_done} aria-labelledby=${`component-${worker.id}-${name}`}></progress>
            <span class="figures">${words.bytes(bytes_done)} of ${words.bytes(bytes_total)}</span>
          </li>
        `,
      )}
    </ul>
  `;
}

function FailedLoad({ session, sentence }) {
  const [refusal, setRefusal] = useState("");
  const [isAsking, setIsAsking] = useState(false);
  const retry = async () => {
    setIsAsking(true);
    setRefusal("");
    try {
      await session.server.load();
    } catch (error) {
      setRefusal(error.message);
    } finally {
      setIsAsking(false);
    }
  };
  return html`
    <section class="loading failed" role="alert" aria-labelledby="failed-title" data-testid="load-failed">
      <h2 id="failed-title">The model could not be loaded</h2>
      <p class="reason">${sentence}</p>
      ${refusal && html`<p class="reason">${refusal}</p>`}
      <button class="primary" type="button" disabled=${isAsking} onClick=${retry}>Try again</button>
    </section>
  `;
}

/** The worker whose state says most about when pictures can be made. */
function furthest(workers) {
  const order = ["warming", "loading", "starting", "restarting", "failed", "draining"];
  return [...workers].sort((one, other) => order.indexOf(one.state) - order.indexOf(other.state))[0];
}
