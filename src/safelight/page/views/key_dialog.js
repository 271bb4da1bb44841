/** Asks for the API key, once, when the server wants one. */

import { html } from "../html.js";
import { useValue } from "../observable.js";
import { useEffect, useRef } from "../vendor/hooks.js";

/** @param {{apiKey: import("../key.js").ApiKey}} props */
export function KeyDialog({ apiKey }) {
  const question = useValue(apiKey.question);
  const dialog = useRef(null);
  useEffect(() => {
    if (question) dialog.current?.showModal();
  }, [question !== null]);
  if (!question) return null;
  const submit = (event) => {
    event.preventDefault();
    const fields = new FormData(event.target);
    const value = String(fields.get("key")).trim();
    if (value) apiKey.give(value, fields.has("remember"));
  };
  return html`
    <dialog ref=${dialog} class="key-dialog" aria-labelledby="key-title" onCancel=${(event) => event.preventDefault()}>
      <form onSubmit=${submit}>
        <h2 id="key-title">This server needs an API key</h2>
        <p id="key-sentence" class="quiet">Whoever runs it has one for you. This tab forgets it when it is closed.</p>
        ${question.isRefused && html`<p class="error" role="alert">That key is not known here: ${question.sentence}</p>`}
        <label class="field">
          <span>Key</span>
          <input name="key" type="password" autocomplete="current-password" required autofocus
            aria-describedby="key-sentence" />
        </label>
        <label class="check"><input type="checkbox" name="remember" /> Remember it in this browser</label>
        <button class="primary" type="submit">Use this key</button>
      </form>
    </dialog>
  `;
}
