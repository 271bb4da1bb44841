/** Everything that one visit has, made once and handed to the views. */

import { Api } from "./api.js";
import { Jobs } from "./jobs.js";
import { ApiKey } from "./key.js";
import { Observable } from "./observable.js";
import { Pictures, Previews } from "./pictures.js";
import { Server } from "./server.js";
import { defaultSettings } from "./settings.js";
import { Source } from "./source.js";

export class Session {
  key = new ApiKey();
  api = new Api(this.key);
  server = new Server(this.api);
  pictures = new Pictures();
  previews = new Previews(this.api);
  /** What a screen reader is told next. */
  announcement = new Observable("");
  jobs = new Jobs(this.api, this.server, this.previews, (sentence) => (this.announcement.value = sentence));
  source = new Source();
  /** @type {Observable<import("./settings.js").Settings | null>} null until the model is known */
  settings = new Observable(null);

  start() {
    this.jobs.start();
    this.server.start();
  }

  /** Has the next pictures drawn by another model, as that usually draws; what they show stays. */
  choose(name) {
    this.server.choose(name);
    const { prompt, seed, isSeedLocked, count, format, strength } = this.settings.value;
    this.set({ ...defaultSettings(this.server.model.value), prompt, seed, isSeedLocked, count, format, strength });
  }

  /** Changes some of the settings. */
  set(members) {
    this.settings.value = { ...this.settings.value, ...members };
  }
}
