/** The picture that is to be changed: chosen, dropped or pasted; what of it; and how much. */

import { html } from "../html.js";
import { useValue } from "../observable.js";
import { usualStrength } from "../settings.js";
import { useRef, useState } from "../vendor/hooks.js";
import { Icon } from "./icons.js";
import { MaskEditor } from "./mask_editor.js";

export function SourceField({ session, error }) {
  const picture = useValue(session.source.picture);
  const model = useValue(session.server.model);
  if (!model.tasks.includes("image-to-image")) return null;
  return picture
    ? html`<${Chosen} session=${session} picture=${picture} />`
    : html`<${Choose} source=${session.source} dropError=${error} />`;
}

function Choose({ source, dropError }) {
  const input = useRef(null);
  const [error, setError] = useState("");
  const take = async ({ target }) => {
    const [file] = target.files;
    target.value = "";
    if (!file) return;
    try {
      await source.take(file, file.name);
    } catch (failure) {
      setError(failure.message);
    }
  };
  return html`
    <div class="choose">
      <input ref=${input} type="file" accept="image/*" class="unseen" id="source-file" tabindex="-1" aria-hidden="true"
        onChange=${take} />
      <button type="button" class="wide" onClick=${() => input.current.click()}>
        <${Icon} name="picture" /> Change a picture <span class="quiet">— or drop one anywhere</span>
      </button>
      ${(error || dropError) && html`<p class="error" role="alert">${error || dropError}</p>`}
    </div>
  `;
}

function Chosen({ session, picture }) {
  const settings = useValue(session.settings);
  const hasMask = useValue(session.source.hasMask);
  const strength = settings.strength ?? usualStrength(hasMask);
  const clear = () => {
    session.source.clear();
    session.set({ strength: null });
  };
  return html`
    <fieldset class="source">
      <legend>The picture to change</legend>
      <${MaskEditor} source=${session.source} picture=${picture} />
      <div class="slider">
        <label for="range-strength">Change</label>
        <input id="range-strength" type="range" min="0.05" max="1" step="0.05" value=${strength}
          onInput=${({ target }) => session.set({ strength: Number(target.value) })} />
        <output for="range-strength">${Math.round(strength * 100)} %</output>
      </div>
      <p class="quiet">${hasMask ? "Only what is under the red film is drawn anew." : "Paint over what should change, or leave it: then all may."}</p>
      <button type="button" class="wide" onClick=${clear}><${Icon} name="close" /> Draw from nothing again</button>
    </fieldset>
  `;
}
