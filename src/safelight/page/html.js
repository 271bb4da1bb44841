/** Markup without a build step: `html` is preact's `h` behind htm's template syntax. */

import htm from "./vendor/htm.js";
import { h } from "./vendor/preact.js";

export const html = htm.bind(h);
