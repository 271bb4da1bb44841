/** Says aloud, for screen readers, what others see happen. */

import { html } from "../html.js";
import { useValue } from "../observable.js";
import { Connection } from "../server.js";
import { useEffect, useRef } from "../vendor/hooks.js";

const STATES = {
  ready: "The model is ready.",
  loading: "The model is loading.",
  warming: "The model is warming up.",
  failed: "The model could not be loaded.",
  draining: "The server is shutting down.",
};

export function Announcer({ session }) {
  const { announcement, server } = session;
  const sentence = useValue(announcement);
  const state = useValue(server.status)?.status;
  const connection = useValue(server.connection);
  const wasLost = useRef(false);
  useEffect(() => {
    if (state && STATES[state]) announcement.value = STATES[state];
  }, [state]);
  useEffect(() => {
    if (connection === Connection.LOST) announcement.value = "The connection is lost. Trying again.";
    if (connection === Connection.LIVE && wasLost.current) announcement.value = "The connection is back.";
    wasLost.current = connection === Connection.LOST;
  }, [connection]);
  return html`<div class="unseen" role="status" aria-live="polite">${sentence}</div>`;
}
