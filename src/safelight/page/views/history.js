/** What was made before, newest first: to look at again, to search, to go on from. */

import { html } from "../html.js";
import { isOpen } from "../jobs.js";
import { useValue } from "../observable.js";
import { useEffect, useRef, useState } from "../vendor/hooks.js";
import * as words from "../words.js";
import { showStage } from "./composer.js";
import { Icon } from "./icons.js";

const SEARCH_PAUSE_MS = 250;
const MOVES = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

export function History({ session }) {
  const { jobs } = session;
  const list = useValue(jobs.list);
  const next = useValue(jobs.next);
  const hasLoaded = useValue(jobs.hasLoaded);
  const search = useValue(jobs.search);
  const grid = useRef(null);
  const onKeyDown = (event) => {
    const tiles = [...grid.current.querySelectorAll("button")];
    const place = tiles.indexOf(document.activeElement);
    const target = { Home: tiles[0], End: tiles.at(-1) }[event.key] ?? (event.key in MOVES && tiles[place + MOVES[event.key]]);
    if (place < 0 || !target) return;
    event.preventDefault();
    target.focus();
  };
  return html`
    <section class="history" aria-labelledby="history-title">
      <div class="history-top">
        <h2 id="history-title">Pictures so far</h2>
        <${Search} jobs=${jobs} />
      </div>
      ${hasLoaded && !list.length && html`<p class="quiet" data-testid="nothing">${search ? "No prompt has these words." : "None yet."}</p>`}
      <ul class="tiles" ref=${grid} onKeyDown=${onKeyDown}>
        ${list.map((job, index) => html`<${Tile} key=${job.id} session=${session} job=${job} isFirst=${index === 0} />`)}
      </ul>
      ${next && html`<button type="button" class="wide" onClick=${() => jobs.more()}>Older ones</button>`}
    </section>
  `;
}

function Search({ jobs }) {
  const timer = useRef(0);
  const search = useValue(jobs.search);
  const [text, setText] = useState(search);
  useEffect(() => setText(search), [search]);
  const onInput = ({ target }) => {
    clearTimeout(timer.current);
    setText(target.value);
    timer.current = setTimeout(() => jobs.find(target.value), SEARCH_PAUSE_MS);
  };
  return html`
    <label class="search">
      <${Icon} name="search" />
      <input type="search" placeholder="Search" aria-label="Search the prompts" value=${text} onInput=${onInput} />
    </label>
  `;
}

function Tile({ session, job, isFirst }) {
  const selectedId = useValue(session.jobs.selectedId);
  const isSelected = selectedId === job.id;
  const { prompt, num_images: count } = job.params;
  const select = () => {
    session.jobs.select(job.id);
    showStage();
  };
  const isReached = isSelected || (isFirst && !session.jobs.selected);
  return html`
    <li>
      <button type="button" class="tile" data-status=${job.status} data-testid="tile" aria-pressed=${isSelected}
        tabindex=${isReached ? 0 : -1} title=${prompt} onClick=${select}
        aria-label=${`${prompt || "A changed picture"}, ${words.jobState(job)}${count > 1 ? `, ${count} pictures` : ""}`}>
        <${Face} session=${session} job=${job} />
        ${count > 1 && html`<span class="badge" aria-hidden="true">${count}</span>`}
      </button>
    </li>
  `;
}

function Face({ session, job }) {
  const [isGone, setIsGone] = useState(false);
  useValue(session.previews.shown);
  if (job.status === "succeeded" && !isGone) {
    return html`<img src=${session.pictures.path(job, 0)} alt="" loading="lazy" decoding="async" onError=${() => setIsGone(true)} />`;
  }
  const preview = isOpen(job) && session.previews.of(job, 0);
  return html`
    ${preview && html`<img src=${preview.url} alt="" class="dim" />`}
    <span class="tile-word" aria-hidden="true">${isGone ? "gone" : words.jobState(job)}</span>
    <span class="tile-prompt" aria-hidden="true">${job.params.prompt}</span>
  `;
}
