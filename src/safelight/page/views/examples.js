/** What could be asked of this model: whole prompts and, where it knows few words, all of them. */

import { html } from "../html.js";
import { useState } from "../vendor/hooks.js";
import { Icon } from "./icons.js";

const SHOWN = 3;
const GROUPS = [
  ["sizes", "Sizes"],
  ["colours", "Colours"],
  ["shapes", "Shapes"],
  ["positions", "Places"],
  ["relations", "Of two"],
];

export function Examples({ model, onPick }) {
  const [first, setFirst] = useState(0);
  if (!model.examples.length) return null;
  const count = Math.min(SHOWN, model.examples.length);
  const shown = Array.from({ length: count }, (_, index) => model.examples[(first + index) % model.examples.length]);
  return html`
    <div class="examples" role="group" aria-labelledby="examples-title">
      <div class="line">
        <span class="label" id="examples-title">For example</span>
        ${model.examples.length > SHOWN &&
        html`<button class="bare" type="button" onClick=${() => setFirst(first + SHOWN)}><${Icon} name="again" /> Others</button>`}
      </div>
      ${shown.map(
        (example) => html`
          <button key=${example} class="chip" type="button" title=${example} onClick=${() => onPick(example)}>
            <span class="clipped">${example}</span>
          </button>
        `,
      )}
    </div>
  `;
}

const lowerFirst = (text) => text.charAt(0).toLowerCase() + text.slice(1);

export function Vocabulary({ session, model, field }) {
  if (!model.vocabulary) return null;
  const add = (word) => {
    const { prompt } = session.settings.value;
    const { selectionStart: start, selectionEnd: end } = field.current;
    const place = document.activeElement === field.current ? [start, end] : [prompt.length, prompt.length];
    const before = prompt.slice(0, place[0]).replace(/\s*$/, (space) => (place[0] ? " " : space));
    const article = prompt.trim() || model.vocabulary.positions?.includes(word) ? "" : /^[aeiou]/.test(word) ? "an " : "a ";
    session.set({ prompt: `${before}${article}${word} ${prompt.slice(place[1]).trimStart()}` });
  };
  return html`
    <details class="vocabulary">
      <summary>The only words that it knows</summary>
      <p class="quiet">${model.title}: ${lowerFirst(model.description)}</p>
      ${GROUPS.filter(([name]) => model.vocabulary[name]?.length).map(
        ([name, label]) => html`
          <div key=${name} role="group" aria-label=${label} class="words">
            <span class="label">${label}</span>
            ${model.vocabulary[name].map(
              (word) => html`
                <button key=${word} class="chip" type="button" onClick=${() => add(word)}>
                  ${name === "colours" && html`<span class="swatch" data-colour=${word}></span>`}${word}
                </button>
              `,
            )}
          </div>
        `,
      )}
    </details>
  `;
}
