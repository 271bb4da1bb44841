/** Size, steps, guidance, adapters, seed, number and format: as far as the model has them. */

import { html } from "../html.js";
import { useValue } from "../observable.js";
import { FORMATS, MAX_COUNT, randomSeed, sizePresets } from "../settings.js";
import { Icon } from "./icons.js";
import { LoraField } from "./lora_field.js";

const MAX_GUIDANCE = 10;
const WIDE = "(min-width: 700px)";

export function SettingsFields({ session, model, settings, wrong }) {
  const set = (members) => session.set(members);
  return html`
    <details class="settings" open=${matchMedia(WIDE).matches}>
      <summary><span>Settings</span> <span class="quiet">${summary(settings)}</span></summary>
      <${Size} session=${session} model=${model} settings=${settings} set=${set} wrong=${wrong} />
      <${Slider} label="Steps" name="steps" min=${1} max=${model.max_num_inference_steps} step=${1}
        value=${settings.steps} onChange=${(steps) => set({ steps })} />
      ${settings.guidance !== null &&
      html`<${Slider} label="Guidance" name="guidance" min=${1} max=${mostGuidance(model)} step=${0.1}
        value=${settings.guidance} onChange=${(guidance) => set({ guidance })} />`}
      <${LoraField} session=${session} settings=${settings} wrong=${wrong} />
      <div class="pair">
        <${Count} settings=${settings} set=${set} />
        <${Format} settings=${settings} set=${set} />
      </div>
      <${Seed} settings=${settings} set=${set} wrong=${wrong} />
    </details>
  `;
}

/** FLUX.1-Fill wants more than others. */
const mostGuidance = (model) => Math.max(MAX_GUIDANCE, 2 * model.default_guidance_scale);

function summary(settings) {
  const seed = settings.isSeedLocked ? `seed ${settings.seed}` : "random seed";
  return `${settings.width} × ${settings.height} · ${settings.steps} steps · ${seed}`;
}

function Size({ session, model, settings, set, wrong }) {
  const source = useValue(session.source.picture);
  if (source) return html`<p class="quiet">The new picture has the shape of the one that it changes.</p>`;
  const presets = sizePresets(model);
  const usual = model.default_size.split("x").map(Number);
  const isUsual = settings.width === usual[0] && settings.height === usual[1];
  const isWrong = (side) => (wrong === "size" || wrong?.endsWith(side) ? "true" : undefined);
  const side = (name) => html`
    <input type="number" name=${name} aria-label=${name === "width" ? "Width in pixels" : "Height in pixels"}
      min=${model.min_size} max=${model.max_size} step=${model.size_multiple} value=${settings[name]}
      aria-invalid=${isWrong(name)} onChange=${({ target }) => set({ [name]: Number(target.value) })} />
  `;
  return html`
    <fieldset class="size">
      <legend class="unseen">Size</legend>
      <div class="sides"><span class="label" aria-hidden="true">Size</span>
        ${side("width")}<span aria-hidden="true">×</span>${side("height")}</div>
      <div class="presets">
        ${presets.map(
          ({ name, width, height }) => html`
            <label key=${name} class="preset" title=${`${name}, ${width} × ${height}`}>
              <input type="radio" name="preset" checked=${settings.width === width && settings.height === height}
                onChange=${() => set({ width, height })} />
              <span class="shape" style=${{ aspectRatio: `${width} / ${height}` }} aria-hidden="true"></span>
              <span class="preset-name">${name}</span>
            </label>
          `,
        )}
      </div>
      ${isWrong("width") || isWrong("height") ? html`<p class="hint">${limits(model)}</p>` : null}
      ${model.vocabulary && !isUsual && html`<p class="hint">This model draws well at ${usual.join(" × ")} only.</p>`}
    </fieldset>
  `;
}

const limits = (model) =>
  `${model.title} draws sides from ${model.min_size} to ${model.max_size} in steps of ${model.size_multiple}.`;

function Slider({ label, name, min, max, step, value, onChange }) {
  const take = ({ target }) => onChange(Number(target.value));
  return html`
    <div class="slider">
      <label for=${`range-${name}`}>${label}</label>
      <input id=${`range-${name}`} type="range" min=${min} max=${max} step=${step} value=${value} onInput=${take} />
      <input type="number" name=${name} aria-label=${`${label}, exactly`} min=${min} max=${max} step=${step} value=${value}
        onChange=${take} />
    </div>
  `;
}

function Count({ settings, set }) {
  return html`
    <label class="field">
      <span class="label">Pictures</span>
      <input type="number" name="count" min="1" max=${MAX_COUNT} value=${settings.count}
        onChange=${({ target }) => set({ count: Math.trunc(Number(target.value)) })} />
    </label>
  `;
}

function Format({ settings, set }) {
  return html`
    <label class="field">
      <span class="label">Format</span>
      <select name="format" value=${settings.format} onChange=${({ target }) => set({ format: target.value })}>
        ${FORMATS.map((format) => html`<option key=${format} value=${format}>${format.toUpperCase()}</option>`)}
      </select>
    </label>
  `;
}

/** Unlocked, each picture has a seed of its own; locked, the same settings make the same picture. */
function Seed({ settings, set, wrong }) {
  const { isSeedLocked } = settings;
  return html`
    <div class="field seed">
      <label class="label" for="seed">Seed</label>
      <div class="with-buttons">
        <input id="seed" name="seed" inputmode="numeric" autocomplete="off" placeholder="random" value=${settings.seed}
          aria-invalid=${wrong?.endsWith("seed") ? "true" : undefined}
          onInput=${({ target }) => set({ seed: target.value.replace(/\D/g, ""), isSeedLocked: /\d/.test(target.value) })} />
        <button type="button" class="tool" aria-pressed=${isSeedLocked} disabled=${!settings.seed}
          aria-label="Keep this seed" title=${isSeedLocked ? "The seed stays" : "The seed is new for each picture"}
          onClick=${() => set({ isSeedLocked: !isSeedLocked })}><${Icon} name=${isSeedLocked ? "lock" : "unlock"} /></button>
        <button type="button" class="tool" aria-label="Roll another seed" title="Roll another seed"
          onClick=${() => set({ seed: randomSeed(), isSeedLocked: true })}><${Icon} name="dice" /></button>
      </div>
    </div>
  `;
}
