/** The top of every view: whose page it is, the lamp, and the way to the other view. */

import { html } from "../html.js";
import { useValue } from "../observable.js";
import { Connection } from "../server.js";

export function Header({ session, isStatus }) {
  const { lamp, name, text } = useLamp(session.server);
  return html`
    <header class="top">
      <h1 class="brand">
        <span class="lamp" data-state=${lamp} aria-hidden="true"></span>
        Safelight
      </h1>
      <p class="lamp-text" data-testid="connection">${name && html`<span class="model-name">${name} · </span>`}${text}</p>
      <nav aria-label="Views">
        <a href="#/" aria-current=${isStatus ? undefined : "page"}>Pictures</a>
        <a href="#/status" aria-current=${isStatus ? "page" : undefined}>Status</a>
      </nav>
    </header>
  `;
}

/** The lamp glows steadily while pictures can be made, and breathes while something is on its way. */
function useLamp(server) {
  const connection = useValue(server.connection);
  const status = useValue(server.status);
  const model = useValue(server.model);
  if (connection === Connection.LOST) return { lamp: "lost", text: "Reconnecting…" };
  if (!status) return { lamp: "busy", text: "Connecting…" };
  const name = model?.title ?? status.model;
  switch (status.status) {
    case "ready":
    case "degraded":
      return { lamp: "on", name, text: drawing(status.queue) };
    case "failed":
      return { lamp: "failed", name, text: "not loaded" };
    case "draining":
      return { lamp: "failed", text: "Shutting down" };
    default:
      return { lamp: "busy", name, text: status.status === "warming" ? "warming up" : "loading" };
  }
}

function drawing({ waiting, running }) {
  if (!waiting && !running) return "ready";
  return waiting ? `${running} drawing, ${waiting} waiting` : `${running} drawing`;
}
