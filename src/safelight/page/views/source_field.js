/** The picture that is to be changed: chosen, dropped or pasted; what of it; and how much. */

import { html } from "../html.js";
import { useValue } from "../observable.js";
import { usualStrength } from "../settings.js";
import { tasksOf } from "../tasks.js";
import { useLayoutEffect, useRef, useState } from "../vendor/hooks.js";
import { Icon } from "./icons.js";
import { MaskEditor } from "./mask_editor.js";

export function SourceField({ session, error }) {
  const picture = useValue(session.source.picture);
  const model = useValue(session.server.model);
  const tasks = tasksOf(model);
  if (!tasks.takesPicture) return null;
  return picture
    ? html`<${Chosen} session=${session} picture=${picture} tasks=${tasks} />`
    : html`<${Choose} source=${session.source} dropError=${error} tasks=${tasks} />`;
}

function Choose({ source, dropError, tasks }) {
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
        <${Icon} name="picture" /> ${tasks.needsPicture ? "Choose the picture to change" : "Change a picture"} <span class="quiet">— or drop one anywhere</span>
      </button>
      ${(error || dropError) && html`<p class="error" role="alert">${error || dropError}</p>`}
    </div>
  `;
}

function Chosen({ session, picture, tasks }) {
  const settings = useValue(session.settings);
  const hasMask = useValue(session.source.hasMask);
  const strength = settings.strength ?? usualStrength(hasMask || tasks.needsMask);
  const clear = () => {
    session.source.clear();
    session.set({ strength: null });
  };
  return html`
    <fieldset class="source">
      <legend>The picture to change</legend>
      ${tasks.takesMask
        ? html`<${MaskEditor} source=${session.source} picture=${picture} />`
        : html`<${Plain} picture=${picture} />`}
      ${tasks.hasStrength &&
      html`<div class="slider">
        <label for="range-strength">Change</label>
        <input id="range-strength" type="range" min="0.05" max="1" step="0.05" value=${strength}
          onInput=${({ target }) => session.set({ strength: Number(target.value) })} />
        <output for="range-strength">${Math.round(strength * 100)} %</output>
      </div>`}
      <p class="quiet">${advice(tasks, hasMask)}</p>
      <button type="button" class="wide" onClick=${clear}>
        <${Icon} name="close" /> ${tasks.needsPicture ? "Take another picture" : "Draw from nothing again"}
      </button>
    </fieldset>
  `;
}

function advice(tasks, hasMask) {
  if (!tasks.takesMask) return "The model looks at it while it draws: say what should be different.";
  if (hasMask) return "Only what is under the red film is drawn anew.";
  if (tasks.needsMask) return "Paint over what is to be drawn anew: the model draws only there.";
  return "Paint over what should change, or leave it: then all may.";
}

/** The picture alone, for models that take no mask. */
function Plain({ picture }) {
  const holder = useRef(null);
  useLayoutEffect(() => holder.current.replaceChildren(picture.canvas), [picture]);
  return html`
    <div class="sheet" style=${{ aspectRatio: `${picture.width} / ${picture.height}` }}>
      <div ref=${holder} class="canvases plain" role="img" aria-label=${picture.name} data-testid="source"></div>
    </div>
  `;
}
