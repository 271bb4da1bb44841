/** What an operator may order of the server. */

import { html } from "../html.js";
import { useState } from "../vendor/hooks.js";

/** A button, and why what it asked for was refused. */
export function Order({ label, order, children }) {
  const [refusal, setRefusal] = useState("");
  const give = () => order().then(() => setRefusal(""), (error) => setRefusal(error.message));
  return html`
    <button type="button" onClick=${give} aria-label=${label}>${children}</button>
    ${refusal && html`<p class="error" role="alert">${refusal}</p>`}
  `;
}
