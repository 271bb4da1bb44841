/** One worker, as an operator wants to see it. */

import { html } from "../html.js";
import * as words from "../words.js";
import { Components, LoadTime } from "./loading.js";
import { Order } from "./order.js";

const SERVING = ["ready", "busy"];
const LOADING = ["starting", "loading", "warming", "restarting"];

export function Worker({ session, worker }) {
  const isLoading = LOADING.includes(worker.state);
  return html`
    <article class="worker" data-state=${worker.state} aria-label=${`Worker ${worker.id}`} data-testid="worker">
      <header>
        <h4>Worker ${worker.id}</h4>
        <span class="quiet">${worker.device}</span>
        ${worker.model && html`<span class="quiet" data-testid="worker-model">${worker.model}</span>`}
        <span class="state" data-testid="worker-state">${worker.state}</span>
        ${SERVING.includes(worker.state) && html`
          <${Order} label=${`Restart worker ${worker.id}`} order=${() => session.server.restart(worker.id)}>Restart<//>
        `}
      </header>
      ${worker.error && html`<p class="reason">${worker.error}</p>`}
      ${worker.state === "failed" && html`
        <${Order} order=${() => session.server.load()}>Try to load again<//>
      `}
      ${isLoading && html`
        <p class="quiet">${words.phase(worker)}<${LoadTime} worker=${worker} /></p>
        <${Components} worker=${worker} />
      `}
      <${Switch} worker=${worker} />
      ${worker.jobs.map(
        (job) => html`
          <div key=${job.id} class="running">
            <span class="quiet">${job.request_id}</span>
            <progress max=${job.total_steps} value=${job.step} aria-label=${`Steps of ${job.request_id}`}></progress>
            <span class="numbers">${job.step} of ${job.total_steps}</span>
          </div>
        `,
      )}
      <${Facts} session=${session} worker=${worker} />
    </article>
  `;
}

/** Going over to another model, or why that has failed. */
function Switch({ worker }) {
  const { switch: change, coming } = worker;
  if (!change || change.state === "done") return null;
  const next = change.to === change.from ? "its next process" : change.to;
  if (change.state === "failed") {
    return html`<p class="quiet" data-testid="switch">${next} could not take the place of ${change.from}: ${change.error}</p>`;
  }
  const order = change.keeps_serving ? `${change.from} serves until ${next} is ready` : `${change.from} ends before ${next} begins`;
  return html`
    <p class="quiet" data-testid="switch">${order}: ${change.reason}.</p>
    ${coming && html`
      <p class="quiet">${words.phase(coming)}<${LoadTime} worker=${coming} /></p>
      <${Components} worker=${{ ...coming, id: `${worker.id}-coming` }} />
    `}
  `;
}

function Facts({ session, worker }) {
  const phases = Object.entries(worker.phase_seconds);
  const weights = worker.components.reduce((sum, component) => sum + component.bytes_total, 0);
  const warm = Object.entries(worker.warm).map(([size, rows]) => `${size.replace("x", " × ")}, ${rows.join(" or ")} at once`);
  return html`
    <dl class="facts">
      <dt>Restarts</dt><dd>${worker.restarts}</dd>
      <dt>Weights</dt><dd>${words.bytes(weights)}</dd>
      ${worker.memory && html`<dt>Memory</dt><dd><${Memory} memory=${worker.memory} /></dd>`}
      ${worker.fit && html`<dt>Fit</dt><dd><${Fit} fit=${worker.fit} /></dd>`}
      <dt>At once</dt><dd>${worker.batch_tokens ? `jobs of up to ${worker.batch_tokens} tokens together` : "one job"}</dd>
      ${warm.length > 0 && html`<dt>Warm</dt><dd>${warm.join(" · ")}</dd>`}
      ${worker.past_loads.length > 0 && html`<dt>Loads</dt><dd><${PastLoads} loads=${worker.past_loads} /></dd>`}
      ${phases.length > 0 && html`<dt>Last load</dt><dd><${Phases} phases=${phases} seconds=${worker.seconds} /></dd>`}
    </dl>
  `;
}

function Memory({ memory: { used_bytes, total_bytes } }) {
  const text = `${words.bytes(used_bytes)} of ${words.bytes(total_bytes)}`;
  return html`
    ${text}
    <div class="memory" role="meter" aria-label="Memory" aria-valuemin="0" aria-valuemax=${total_bytes}
      aria-valuenow=${used_bytes} aria-valuetext=${text}>
      <span style=${{ width: `${(100 * used_bytes) / total_bytes}%` }}></span>
    </div>
  `;
}

/** How the model lies in the memory, what room that leaves, and whether it could be better. */
function Fit({ fit: { mode, number_format, planned_bytes, max_pixels, note } }) {
  const room = max_pixels ? `, room for steps of ${(max_pixels / 1e6).toFixed(1)} megapixels` : "";
  return html`
    mode ${mode}, ${number_format}, ${words.bytes(planned_bytes)} planned${room}
    ${note && html`<p class="quiet">${note}</p>`}
  `;
}

/** The newest first. */
function PastLoads({ loads }) {
  return html`
    <ol class="past-loads">
      ${loads.toReversed().map(
        (load) => html`
          <li key=${load.ended_at} data-testid="past-load">
            <time datetime=${load.ended_at}>${words.moment(load.ended_at)}</time> ${load.model}
            ${load.error ? html` failed after ${load.seconds.toFixed(1)} s: ${load.error}` : html` ready in ${load.seconds.toFixed(1)} s`}
            ${load.lost && html`<span class="quiet">, lost later: ${load.lost}</span>`}
          </li>
        `,
      )}
    </ol>
  `;
}

/** How the seconds of a load were spent. */
function Phases({ phases, seconds }) {
  return html`
    ${seconds.toFixed(1)} s
    <span class="phase-bars">
      ${phases.map(
        ([name, value]) => html`
          <span key=${name} class="phase-bar" style=${{ flexGrow: value }} title=${`${name} ${value.toFixed(1)} s`}></span>
        `,
      )}
    </span>
    <span class="quiet">${phases.map(([name, value]) => `${words.componentName(name)} ${value.toFixed(1)} s`).join(" · ")}</span>
  `;
}
