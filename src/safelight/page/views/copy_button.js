/** A button that copies something, and says so. */

import { copy } from "../clipboard.js";
import { html } from "../html.js";
import { useState } from "../vendor/hooks.js";
import { Icon } from "./icons.js";

const SHOWN_MS = 1600;

/** @param {{icon: string, label: string, title?: string, text: () => string}} props */
export function CopyButton({ icon, label, title, text }) {
  const [answer, setAnswer] = useState("");
  const onClick = async () => {
    setAnswer((await copy(text())) ? "Copied" : "Not allowed here");
    setTimeout(() => setAnswer(""), SHOWN_MS);
  };
  return html`
    <button type="button" title=${title} onClick=${onClick}>
      <${Icon} name=${icon} />
      <span class="swap"><span class="text" data-off=${answer !== ""}>${label}</span><span role="status" class="answer">${answer}</span></span>
    </button>
  `;
}
