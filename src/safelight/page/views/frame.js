/** One picture of a job: dark, then developing in red light, then itself; and what can be done with it. */

import { html } from "../html.js";
import { isOpen } from "../jobs.js";
import { useValue } from "../observable.js";
import { expectedParams, inputOf, settingsOf } from "../settings.js";
import { fileName, seedOf } from "../snippet.js";
import { tasksOf } from "../tasks.js";
import { useRef, useState } from "../vendor/hooks.js";
import { CopyButton } from "./copy_button.js";
import { Icon } from "./icons.js";

const LIKE_THIS = 0.6;

export function Frame({ session, job, index, attempt }) {
  useValue(session.previews.shown);
  const preview = session.previews.of(job, index);
  const { width, height, num_images: count, prompt } = job.params;
  const isFinished = job.status === "succeeded";
  const isDrawing = job.status === "processing";
  const name = count > 1 ? `${prompt}, picture ${index + 1} of ${count}` : prompt;
  const done = isFinished ? 1 : developed(job, index);
  const style = { "--ratio": width / height, "--width": `${width}px`, "--red": 1 - done };
  return html`
    <figure class="frame" style=${style} data-developing=${isDrawing}>
      <div class="paper">
        ${preview && html`<img class="preview" data-testid="preview" data-step=${preview.step} src=${preview.url}
          alt=${isFinished ? "" : `${name}, unfinished`} />`}
        ${isFinished && html`<${Finished} session=${session} job=${job} index=${index} name=${name} />`}
        ${!preview && !isFinished && html`<span class="latent" aria-hidden="true"></span>`}
      </div>
      ${isFinished && html`<${PictureActions} session=${session} job=${job} index=${index} attempt=${attempt} />`}
    </figure>
  `;
}

/** How far this picture is, from 0 to 1: those of a job are drawn together or one after the other. */
function developed(job, index) {
  if (!isOpen(job) || !job.progress) return 0;
  return job.progress.total ? job.progress.step / job.progress.total : 0;
}

function Finished({ session, job, index, name }) {
  const [isGone, setIsGone] = useState(false);
  const dialog = useRef(null);
  const path = session.pictures.path(job, index);
  if (isGone) return html`<p class="gone">This picture is no longer kept.</p>`;
  return html`
    <button type="button" class="look" aria-label=${`Look closer: ${name}`} onClick=${() => dialog.current.showModal()}>
      <img class="finished" data-testid="picture" src=${path} alt=${name} width=${job.params.width} height=${job.params.height}
        onError=${() => setIsGone(true)} />
    </button>
    <dialog ref=${dialog} class="closer" aria-label=${name} onClick=${() => dialog.current.close()}>
      <img src=${path} alt=${name} />
      <button type="button" class="tool" aria-label="Close"><${Icon} name="close" /></button>
    </dialog>
  `;
}

function PictureActions({ session, job, index, attempt }) {
  const path = session.pictures.path(job, index);
  const seed = seedOf(job, index);
  const model = useValue(session.server.model);
  const tasks = model && tasksOf(model);
  const edit = async () => {
    await session.source.take(await session.api.blob(path), fileName(job, index));
    document.querySelector(".composer .source")?.scrollIntoView({ block: "nearest" });
  };
  return html`
    <figcaption class="actions" role="group" aria-label=${`Picture ${index + 1}`}>
      <a class="button" title="Download" href=${path} download=${fileName(job, index)}><${Icon} name="download" /> <span class="text">Download</span></a>
      ${tasks?.varies && html`
        <button type="button" title="Another picture that begins with this one, with another seed"
          onClick=${() => attempt(() => moreLikeThis(session, job, path))}><${Icon} name="again" /> <span class="text">More like this</span></button>
      `}
      ${tasks?.takesPicture && html`
        <button type="button" title="Draw on from this picture" onClick=${() => attempt(edit)}><${Icon} name="edit" /> <span class="text">Change it</span></button>
      `}
      <${CopyButton} icon="copy" label="Copy seed" title=${`Seed ${seed}`} text=${() => seed} />
    </figcaption>
  `;
}

/** The same prompt, beginning with this picture, with another seed. */
async function moreLikeThis(session, job, path) {
  const data = await dataUri(await session.api.blob(path));
  session.server.choose(job.model);
  const settings = { ...settingsOf(job, session.settings.value), isSeedLocked: false, strength: LIKE_THIS, count: 1 };
  const input = inputOf(settings, { image: data });
  await session.jobs.submit(input, expectedParams(settings, input, job.params));
}

function dataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}
