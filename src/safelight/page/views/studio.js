/** The main view: what is asked for, what develops, what was made before. */

import { html } from "../html.js";
import { useValue } from "../observable.js";
import { defaultSettings, storedSettings } from "../settings.js";
import { useEffect, useState } from "../vendor/hooks.js";
import { Composer } from "./composer.js";
import { History } from "./history.js";
import { Stage } from "./stage.js";

export function Studio({ session }) {
  const model = useValue(session.server.model);
  useEffect(() => {
    if (model) session.set({ ...defaultSettings(model), ...storedSettings(model), ...session.settings.value });
  }, [model?.id]);
  const drop = useDrop(session.source);
  return html`
    <main class="studio" ...${drop.handlers} data-dragging=${drop.isOver}>
      <${Composer} session=${session} dropError=${drop.error} />
      <${Stage} session=${session} />
      <${History} session=${session} />
      ${drop.isOver && html`<p class="drop-veil" aria-hidden="true">Let go to change this picture</p>`}
    </main>
  `;
}

/** Pictures may be dropped, or pasted, anywhere. */
function useDrop(source) {
  const [isOver, setIsOver] = useState(false);
  const [error, setError] = useState("");
  const take = async (file) => {
    setError("");
    try {
      await source.take(file, file.name || "The picture");
    } catch (failure) {
      setError(failure.message);
    }
  };
  useEffect(() => {
    const paste = (event) => {
      const file = [...(event.clipboardData?.files ?? [])].find(({ type }) => type.startsWith("image/"));
      if (file) take(file);
    };
    addEventListener("paste", paste);
    return () => removeEventListener("paste", paste);
  }, []);
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  const handlers = {
    onDragOver: (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      setIsOver(true);
    },
    onDragLeave: (event) => {
      if (!event.currentTarget.contains(event.relatedTarget)) setIsOver(false);
    },
    onDrop: (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      setIsOver(false);
      const [file] = event.dataTransfer.files;
      if (file) take(file);
    },
  };
  return { isOver, error, handlers };
}
