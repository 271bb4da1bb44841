/** The middle of the page: how loading goes, and the job that is looked at. */

import { html } from "../html.js";
import { isOpen } from "../jobs.js";
import { useValue } from "../observable.js";
import { LoadingPanel } from "./loading.js";
import { JobView } from "./job.js";
import { Notices } from "./notices.js";

export function Stage({ session }) {
  useValue(session.jobs.list);
  useValue(session.jobs.selectedId);
  const job = session.jobs.selected;
  return html`
    <section class="stage" id="stage" tabindex="-1" aria-label="The picture">
      <${Notices} server=${session.server} />
      <${LoadingPanel} session=${session} isBrief=${job !== null && !isOpen(job)} />
      ${job ? html`<${JobView} key=${job.id} session=${session} job=${job} />` : html`<${Empty} session=${session} />`}
    </section>
  `;
}

function Empty({ session }) {
  const status = useValue(session.server.status)?.status;
  const model = useValue(session.server.model);
  if (status !== "ready" && status !== "degraded") return null;
  return html`
    <div class="empty">
      <div class="tray" aria-hidden="true"></div>
      <h2>Your picture develops here</h2>
      ${model && html`<p class="quiet">${model.description}</p>`}
      <p class="quiet">Write what it should show, or take one of the examples, and press Enter.</p>
    </div>
  `;
}
