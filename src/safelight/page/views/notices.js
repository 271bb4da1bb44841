/** What a visitor should know of the server while it works on. */

import { html } from "../html.js";
import { useValue } from "../observable.js";
import { Connection } from "../server.js";

export function Notices({ server }) {
  const connection = useValue(server.connection);
  const status = useValue(server.status);
  const sentences = [];
  if (connection === Connection.LOST) {
    sentences.push("The server cannot be reached. Trying again; what it has accepted goes on without this page.");
  } else if (status) {
    if (status.status === "draining") sentences.push("The server is shutting down. What waits goes on after its next start.");
    if (status.storage.error) sentences.push(`Nothing new can be stored: ${status.storage.error}.`);
    if (status.status === "degraded") sentences.push(...status.workers.filter(({ error }) => error).map(ofWorker));
  }
  return html`${sentences.map((sentence) => html`<p key=${sentence} class="notice" data-testid="notice">${sentence}</p>`)}`;
}

const ofWorker = ({ device, error }) => `The worker on ${device} does not serve now: ${error}.`;
