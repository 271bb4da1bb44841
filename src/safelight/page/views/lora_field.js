/** The LoRA adapters that act on the picture, each with its scale: where the server has any that fit its model. */

import { html } from "../html.js";
import { useValue } from "../observable.js";
import { Icon } from "./icons.js";

const MAX_LORAS = 8;
const MAX_SCALE = 2; // of the slider; the number beside it takes what the server takes
const LARGEST = 10;

export function LoraField({ session, settings, wrong }) {
  const known = useValue(session.server.loras);
  const chosen = settings.loras;
  if (!known.length && !chosen.length) return null;
  const set = (loras) => session.set({ loras });
  const others = known.filter((name) => !chosen.some((lora) => lora.name === name));
  return html`
    <fieldset class="loras" aria-invalid=${wrong?.includes("loras") ? "true" : undefined}>
      <legend>LoRA adapters</legend>
      ${chosen.map((lora) => html`
        <${Chosen} key=${lora.name} lora=${lora}
          onScale=${(scale) => set(chosen.map((other) => (other.name === lora.name ? { ...other, scale } : other)))}
          onRemove=${() => set(chosen.filter(({ name }) => name !== lora.name))} />
      `)}
      ${others.length > 0 && chosen.length < MAX_LORAS && html`<${Adder} names=${others} server=${session.server}
        onAdd=${(name) => set([...chosen, { name, scale: 1 }])} />`}
    </fieldset>
  `;
}

function Chosen({ lora, onScale, onRemove }) {
  const { name, scale } = lora;
  const take = ({ target }) => Number.isFinite(target.valueAsNumber) && onScale(target.valueAsNumber);
  return html`
    <div class="slider lora" data-testid="lora">
      <span class="clipped" title=${name}>${name}</span>
      <input type="range" aria-label=${`${name}, how strongly`} min="0" max=${MAX_SCALE} step="0.05" value=${scale} onInput=${take} />
      <input type="number" aria-label=${`${name}, how strongly, exactly`} min=${-LARGEST} max=${LARGEST} step="0.05" value=${scale}
        onChange=${take} />
      <button type="button" class="tool" aria-label=${`Without ${name}`} title=${`Without ${name}`} onClick=${onRemove}>
        <${Icon} name="close" />
      </button>
    </div>
  `;
}

/** What lies there is asked for again whenever somebody is about to choose. */
function Adder({ names, server, onAdd }) {
  const add = ({ target }) => {
    if (target.value) onAdd(target.value);
    target.value = "";
  };
  return html`
    <select aria-label="Add a LoRA adapter" name="lora" onFocus=${() => server.askForLoras()} onChange=${add}>
      <option value="">Add one …</option>
      ${names.map((name) => html`<option key=${name} value=${name}>${name}</option>`)}
    </select>
  `;
}
