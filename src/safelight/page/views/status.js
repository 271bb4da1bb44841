/** The operator's view: workers, queue, throughput, what went wrong, how loading went; all of it live. */

import { html } from "../html.js";
import { useValue } from "../observable.js";
import { Throughput } from "../throughput.js";
import { useEffect, useMemo, useState } from "../vendor/hooks.js";
import * as words from "../words.js";
import { Notices } from "./notices.js";
import { Order } from "./order.js";
import { Worker } from "./worker.js";

const MAX_FAILURES = 8;
const PATIENT_SAMPLES = 15;

export function StatusView({ session }) {
  const status = useValue(session.server.status);
  return html`
    <main class="status" id="stage" tabindex="-1">
      <h2>Status</h2>
      <${Notices} server=${session.server} />
      ${status &&
      html`
        <${Figures} session=${session} status=${status} />
        <${Models} session=${session} models=${status.models} />
        <section aria-labelledby="workers-title">
          <h3 id="workers-title">Workers</h3>
          ${status.workers.length > 1 && html`<${Rollout} session=${session} rollout=${status.rollout} />`}
          ${status.workers.map((worker) => html`<${Worker} key=${worker.id} session=${session} worker=${worker} />`)}
        </section>
        <${Failures} session=${session} status=${status} />
      `}
      ${session.key.value && html`<p><button type="button" onClick=${() => forget(session)}>Forget my API key</button></p>`}
    </main>
  `;
}

function forget(session) {
  session.key.forget();
  location.reload();
}

function Figures({ session, status }) {
  const throughput = useMemo(() => new Throughput(session.api), []);
  useEffect(() => {
    throughput.start();
    return () => throughput.stop();
  }, []);
  const samples = useValue(throughput.samples);
  const latest = samples.at(-1);
  const { waiting, running, limit } = status.queue;
  return html`
    <dl class="figures">
      <${Figure} name="State" value=${status.status} />
      <${Figure} name="Drawing" value=${running} />
      <${Figure} name="Waiting" value=${waiting} note=${`of ${limit} places`} />
      <${Figure} name="Pictures a minute" value=${rate(samples)}
        note=${latest ? `${latest.images} since the start` : ""} title="Measured while this view is open, over a minute">
        <${Sparkline} values=${samples.map((sample) => sample.per_minute)} />
      <//>
      <${Figure} name="Storage" value=${status.storage.error ? "trouble" : "works"} note=${status.storage.error ?? ""} />
      <${Figure} name="Up for" value=${words.duration(status.uptime_s)} note=${`version ${status.version}`} />
    </dl>
  `;
}

/** Where there is more than one. */
function Models({ session, models }) {
  if (models.length < 2) return null;
  return html`
    <section aria-labelledby="models-title">
      <h3 id="models-title">Models</h3>
      <ul class="models">
        ${models.map((model) => html`<${Model} key=${model.id} session=${session} model=${model} />`)}
      </ul>
    </section>
  `;
}

function Model({ session, model }) {
  const [refusal, setRefusal] = useState("");
  const load = () => session.server.load(model.id).catch((error) => setRefusal(error.message));
  const isThere = !["unloaded", "failed"].includes(model.state);
  const facts = [model.loaded_on.join(", "), model.pinned && "pinned", model.waiting > 0 && `${model.waiting} waiting`];
  return html`
    <li data-testid="model" data-state=${model.state}>
      <span>${model.id}</span>
      <span class="quiet">${facts.filter(Boolean).join(" · ")}</span>
      <span class="state">${model.state}</span>
      ${!isThere && html`<button type="button" onClick=${load} aria-label=${`Load ${model.id}`}>Load</button>`}
      ${(refusal || model.error) && html`<p class="reason">${refusal || model.error}</p>`}
    </li>
  `;
}

/** All workers get new processes, and how far that is. */
function Rollout({ session, rollout }) {
  return html`
    <div class="rollout">
      <${Order} order=${() => session.server.restart()}>Restart all, one after the other<//>
      ${rollout && html`<span class="quiet" role="status" data-testid="rollout">${rolloutText(rollout)}</span>`}
    </div>
  `;
}

function rolloutText({ state, worker, waiting, done, error }) {
  if (state === "failed") return `Stopped: ${error}`;
  if (state === "done") return `${done.length} with a new process`;
  const now = worker === null ? "waiting until another one serves" : `worker ${worker} gets a new process`;
  return `${now}, ${waiting.length} to come`;
}

/** Nothing is said of a rate before there is one to be seen. */
function rate(samples) {
  const latest = samples.at(-1);
  const isKnown = samples.some(({ per_minute }) => per_minute > 0) || samples.length > PATIENT_SAMPLES;
  return latest && isKnown ? latest.per_minute.toFixed(1) : "–";
}

function Figure({ name, value, note, title, children }) {
  return html`
    <div class="figure" title=${title}>
      <dt>${name}</dt>
      <dd><span class="value">${value}</span>${children}<span class="quiet note">${note}</span></dd>
    </div>
  `;
}

function Sparkline({ values }) {
  if (values.length < 2) return html`<svg class="sparkline" aria-hidden="true"></svg>`;
  const top = Math.max(...values, 1);
  const points = values.map((value, index) => `${(index / (values.length - 1)) * 100},${30 - (value / top) * 28}`);
  return html`
    <svg class="sparkline" viewBox="0 0 100 31" preserveAspectRatio="none" aria-hidden="true">
      <polyline points=${points.join(" ")} />
    </svg>
  `;
}

function Failures({ session, status }) {
  const jobs = useValue(session.jobs.list).filter((job) => job.status === "failed").slice(0, MAX_FAILURES);
  const workers = status.workers.filter((worker) => worker.error);
  return html`
    <section aria-labelledby="failures-title">
      <h3 id="failures-title">Last errors</h3>
      ${!jobs.length && !workers.length && html`<p class="quiet">None.</p>`}
      <ul class="failures">
        ${workers.map(({ id, device, error }) => html`<li key=${id}><span class="where">${device}</span> ${error}</li>`)}
        ${jobs.map(
          (job) => html`
            <li key=${job.id}>
              <time class="where" datetime=${job.completed_at}>${words.moment(job.completed_at)}</time>
              ${job.error} <span class="quiet">(your “${job.params.prompt}”)</span>
            </li>
          `,
        )}
      </ul>
    </section>
  `;
}
