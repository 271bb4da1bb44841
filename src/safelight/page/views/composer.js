/** The form: what to draw, and how. */

import { ServerError } from "../api.js";
import { html } from "../html.js";
import { useValue } from "../observable.js";
import { expectedParams, inputOf, storeSettings } from "../settings.js";
import { tasksOf } from "../tasks.js";
import { useEffect, useRef, useState } from "../vendor/hooks.js";
import { Examples, Vocabulary } from "./examples.js";
import { Icon } from "./icons.js";
import { SettingsFields } from "./settings_fields.js";
import { SourceField } from "./source_field.js";

export function Composer({ session, dropError }) {
  const model = useValue(session.server.model);
  const settings = useValue(session.settings);
  return html`
    <section class="composer" aria-label="What to draw">
      ${model && settings
        ? html`<${Form} session=${session} model=${model} settings=${settings} dropError=${dropError} />`
        : html`<${NoModel} session=${session} />`}
    </section>
  `;
}

function NoModel({ session }) {
  const status = useValue(session.server.status);
  return html`<p class="quiet no-model">${status?.status === "failed" ? "There is no model to draw with yet." : " "}</p>`;
}

function Form({ session, model, settings, dropError }) {
  const [error, setError] = useState(null);
  const [isSending, setIsSending] = useState(false);
  const prompt = useRef(null);
  useEffect(() => storeSettings(model, settings), [settings]);
  const submit = async (event) => {
    event.preventDefault();
    const asked = session.settings.value; // a field that was left just now may not be drawn yet
    const lacking = whatLacks(asked, session.source, tasksOf(model));
    if (lacking) {
      setError(lacking);
      return lacking.param === "prompt" && prompt.current.focus();
    }
    setError(null);
    setIsSending(true);
    showStage();
    try {
      await make(session, asked);
    } catch (failure) {
      setError(failure);
    } finally {
      setIsSending(false);
    }
  };
  const onKeyDown = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit(event);
  };
  const isPromptWrong = error?.param?.endsWith("prompt");
  return html`
    <form onSubmit=${submit} noValidate>
      <${ModelPicker} session=${session} model=${model} />
      <label class="prompt">
        <span class="label">What should the picture show?</span>
        <textarea ref=${prompt} rows="3" name="prompt" placeholder=${model.examples[0] ?? ""} value=${settings.prompt}
          aria-invalid=${isPromptWrong ? "true" : undefined} aria-describedby=${error ? "composer-error" : undefined}
          enterkeyhint="go" onInput=${({ target }) => session.set({ prompt: target.value })} onKeyDown=${onKeyDown}></textarea>
      </label>
      <${Examples} model=${model} onPick=${(text) => session.set({ prompt: text })} />
      <${Vocabulary} session=${session} model=${model} field=${prompt} />
      <${SourceField} session=${session} error=${dropError} />
      <${SettingsFields} session=${session} model=${model} settings=${settings} wrong=${error?.param} />
      <div class="submit">
        ${error && html`<p class="error" role="alert" id="composer-error" data-testid="composer-error">${error.message}</p>`}
        <${SubmitButton} session=${session} isSending=${isSending} />
      </div>
    </form>
  `;
}

/** Where there is more than one. */
function ModelPicker({ session, model }) {
  const models = useValue(session.server.models);
  if (models.length < 2) return null;
  return html`
    <label class="field model">
      <span class="label">Model</span>
      <select name="model" value=${model.id} onChange=${({ target }) => session.choose(target.value)}>
        ${models.map(({ id, title }) => html`<option key=${id} value=${id} title=${title}>${id}</option>`)}
      </select>
    </label>
  `;
}

/** @returns {ServerError | null} what the server would say, before pictures travel to it */
function whatLacks(asked, source, tasks) {
  const error = (sentence, param) => new ServerError(sentence, 400, { param });
  const picture = source.picture.value;
  if (tasks.needsPicture && !picture) return error("This model changes pictures: choose one first.", "image");
  if (tasks.needsMask && !source.hasMask.value) return error("Paint over what is to be drawn anew first.", "mask");
  if (!asked.prompt.trim() && (!picture || tasks.needsPrompt))
    return error("Say first what the picture should show.", "prompt");
  return null;
}

function SubmitButton({ session, isSending }) {
  const status = useValue(session.server.status)?.status;
  const isReady = status === "ready" || status === "degraded";
  return html`
    <button class="primary" type="submit" aria-disabled=${isSending} data-ready=${isReady}>
      <${Icon} name="picture" /> ${isReady ? "Make the picture" : "Make it when the model is ready"}
    </button>
  `;
}

/** Submits what the form says. Throws ServerError. */
export async function make(session, settings) {
  const source = session.source.asInput;
  const { hasStrength } = tasksOf(session.server.model.value);
  const input = inputOf(hasStrength ? settings : { ...settings, strength: null }, source);
  const size = source && session.source.picture.value;
  if (!settings.isSeedLocked) session.set({ seed: String(input.seed) });
  await session.jobs.submit(input, expectedParams(settings, input, size));
}

/** On a phone the picture is below the form. */
export function showStage() {
  const stage = document.getElementById("stage");
  const { top } = stage.getBoundingClientRect();
  if (top >= 0 && top < innerHeight * 0.25) return;
  const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
  stage.scrollIntoView({ behavior: isStill ? "auto" : "smooth", block: "start" });
}
