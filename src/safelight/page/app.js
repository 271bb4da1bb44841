/** The page: which view is shown, and what all of them share. */

import { html } from "./html.js";
import { Observable, useValue } from "./observable.js";
import { Session } from "./session.js";
import { render } from "./vendor/preact.js";
import { useEffect } from "./vendor/hooks.js";
import { Announcer } from "./views/announcer.js";
import { Header } from "./views/header.js";
import { KeyDialog } from "./views/key_dialog.js";
import { StatusView } from "./views/status.js";
import { Studio } from "./views/studio.js";
import { isOpen } from "./jobs.js";

const route = new Observable(location.hash);
addEventListener("hashchange", () => (route.value = location.hash));

function App({ session }) {
  const isStatus = useValue(route) === "#/status";
  return html`
    <a class="skip" href="#stage">To the picture</a>
    <${Header} session=${session} isStatus=${isStatus} />
    ${isStatus ? html`<${StatusView} session=${session} />` : html`<${Studio} session=${session} />`}
    <${KeyDialog} apiKey=${session.key} />
    <${Announcer} session=${session} />
    <${Title} session=${session} isStatus=${isStatus} />
  `;
}

/** The tab says how far the picture is. */
function Title({ session, isStatus }) {
  const job = useValue(session.jobs.list).filter(isOpen).at(-1);
  const step = job?.status === "processing" ? `${job.progress.step}/${job.progress.total} · ` : "";
  useEffect(() => {
    document.title = `${step}${isStatus ? "Status · " : ""}Safelight`;
  });
  return null;
}

const session = new Session();
render(html`<${App} session=${session} />`, document.getElementById("app"));
session.start();
