/** Small drawings, all in one line weight; they say nothing to screen readers. */

import { html } from "../html.js";

const PATHS = {
  dice: "M4 4h16v16H4z M8.5 8.5h.01 M15.5 8.5h.01 M8.5 15.5h.01 M15.5 15.5h.01 M12 12h.01",
  lock: "M6 11h12v9H6z M8.5 11V7.5a3.5 3.5 0 0 1 7 0V11",
  unlock: "M6 11h12v9H6z M8.5 11V7.5a3.5 3.5 0 0 1 6.6-1.6",
  download: "M12 4v11 M7 10.5l5 5 5-5 M5 20h14",
  copy: "M9 9h11v11H9z M15 9V4H4v11h5",
  again: "M19 12a7 7 0 1 1-2.2-5.1 M19 4v4h-4",
  edit: "M4 20l1-4L16 5l3 3L8 19z",
  reuse: "M4 7h16 M4 12h10 M4 17h6 M15 14l4 4 M19 14v4h-4",
  trash: "M5 7h14 M10 7V4h4v3 M7 7l1 13h8l1-13",
  stop: "M7 7h10v10H7z",
  close: "M6 6l12 12 M18 6L6 18",
  search: "M10.5 17a6.5 6.5 0 1 1 0-13 6.5 6.5 0 0 1 0 13z M15.5 15.5L20 20",
  picture: "M4 5h16v14H4z M4 16l5-5 4 4 3-3 4 4 M15.5 9h.01",
  brush: "M20 4c-5 3-9 7-10 10 M10 14a3 3 0 0 0-5 2c0 2-1 3-1 3 3 1 6 0 7-2a3 3 0 0 0-1-3z",
  eraser: "M8 19h12 M5 15l8-9 6 5-7 8H8z",
  terminal: "M4 5h16v14H4z M7.5 10l2.5 2-2.5 2 M12.5 14.5h4",
  code: "M9 7l-5 5 5 5 M15 7l5 5-5 5",
};

export function Icon({ name }) {
  return html`<svg class="icon" viewBox="0 0 24 24" aria-hidden="true" focusable="false"><path d=${PATHS[name]} /></svg>`;
}
