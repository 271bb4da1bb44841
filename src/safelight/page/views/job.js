/** One job: waiting, developing, finished, failed. */

import { html } from "../html.js";
import { isOpen } from "../jobs.js";
import { useValue } from "../observable.js";
import { settingsOf } from "../settings.js";
import { asCurl, asPython } from "../snippet.js";
import { useState } from "../vendor/hooks.js";
import * as words from "../words.js";
import { CopyButton } from "./copy_button.js";
import { Frame } from "./frame.js";
import { Icon } from "./icons.js";
import { make } from "./composer.js";

export function JobView({ session, job }) {
  const [error, setError] = useState("");
  const attempt = async (action) => {
    setError("");
    try {
      await action();
    } catch (failure) {
      setError(failure.message);
    }
  };
  const { params } = job;
  return html`
    <article class="job" data-status=${job.status} data-testid="job" aria-label=${params.prompt || "A changed picture"}>
      <div class="frames" data-count=${params.num_images > 1 ? "many" : "one"} style=${frameStyle(params)}>
        ${Array.from({ length: params.num_images }, (_, index) => html`
          <${Frame} key=${index} session=${session} job=${job} index=${index} attempt=${attempt} />
        `)}
      </div>
      <${Progress} session=${session} job=${job} attempt=${attempt} />
      <${Failure} job=${job} />
      <h2 class="job-prompt">${params.prompt}</h2>
      <p class="quiet facts">${facts(job)}</p>
      ${job.warnings.map((warning) => html`<p key=${warning} class="hint">${warning}</p>`)}
      ${error && html`<p class="error" role="alert">${error}</p>`}
      ${!isOpen(job) && html`<${Actions} session=${session} job=${job} attempt=${attempt} />`}
    </article>
  `;
}

function frameStyle({ num_images: count, width, height }) {
  return { "--columns": Math.min(Math.ceil(Math.sqrt(count)), 4), "--ratio": width / height };
}

function facts(job) {
  const { params } = job;
  const seconds = job.metrics?.predict_time;
  return [
    `${params.width} × ${params.height}`,
    `${params.num_inference_steps} steps`,
    params.guidance_scale !== null && `guidance ${params.guidance_scale}`,
    params.source && (params.source.reference_size ? "after a picture" : `changed by ${Math.round(params.source.strength * 100)} %`),
    ...(params.loras ?? []).map(({ name, scale }) => `${name} ${scale}`),
    `seed ${params.seed}`,
    seconds && `took ${seconds.toFixed(1)} s`,
    words.moment(job.created_at),
  ]
    .filter(Boolean)
    .join(" · ");
}

/** Always as high, so that nothing jumps when it goes. */
function Progress({ session, job, attempt }) {
  if (!isOpen(job)) return html`<div class="job-progress" aria-hidden="true"></div>`;
  const { step, total } = job.progress ?? { step: 0, total: 1 };
  return html`
    <div class="job-progress">
      <progress max=${total} value=${step} aria-label="Steps"></progress>
      <p data-testid="progress">${sentence(job)}</p>
      ${job.status !== "sending" &&
      html`<button type="button" class="small" onClick=${() => attempt(() => session.jobs.cancel(job))}>
        <${Icon} name="stop" /> Cancel
      </button>`}
    </div>
  `;
}

function sentence(job) {
  const left = words.timeLeft(job.eta_s);
  const rest = left && ` · ${left}`;
  if (job.status === "sending") return "On its way to the server";
  if (job.status === "processing") return `Step ${job.progress.step} of ${job.progress.total}${rest}`;
  if (job.attempt > 0) return `Its worker was lost: it runs again${rest}`;
  const before = job.queue_position ?? 0;
  return `${before === 0 ? "Waiting, next in line" : `Waiting, ${before} before it`}${rest}`;
}

function Failure({ job }) {
  if (job.status === "canceled") return html`<p class="reason" data-testid="reason">This picture was cancelled.</p>`;
  if (job.status !== "failed") return null;
  return html`<p class="reason" role="alert" data-testid="reason"><strong>It failed.</strong> ${job.error}</p>`;
}

function Actions({ session, job, attempt }) {
  const model = useValue(session.server.model);
  const hasKey = session.key.value !== null;
  const reuse = () => {
    session.server.choose(job.model);
    session.set(settingsOf(job, session.settings.value));
    document.querySelector(".composer textarea")?.focus();
  };
  const again = () => {
    session.server.choose(job.model);
    const settings = { ...settingsOf(job, session.settings.value), isSeedLocked: false };
    return make(session, settings);
  };
  return html`
    <div class="actions" role="group" aria-label="This job">
      ${job.status !== "succeeded" && !job.params.source &&
      html`<button type="button" onClick=${() => attempt(again)}><${Icon} name="again" /> Try again</button>`}
      <button type="button" onClick=${reuse}><${Icon} name="reuse" /> Reuse settings</button>
      <${CopyButton} icon="terminal" label="Copy as curl" text=${() => asCurl(job, hasKey, session.server.models.value.length > 1)} />
      <${CopyButton} icon="code" label="Copy as Python" text=${() => asPython(job, job.model ?? model?.id, hasKey)} />
      <${DeleteButton} onDelete=${() => attempt(() => session.jobs.delete(job))} />
    </div>
  `;
}

/** Asks once more, in place: what is deleted is gone. */
function DeleteButton({ onDelete }) {
  const [isSure, setIsSure] = useState(false);
  return html`
    <button type="button" class=${isSure ? "danger" : ""} onBlur=${() => setIsSure(false)}
      onClick=${() => (isSure ? onDelete() : setIsSure(true))}>
      <${Icon} name="trash" /> ${isSure ? "Delete for good" : "Delete"}
    </button>
  `;
}
