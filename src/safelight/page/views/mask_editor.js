/** The picture under red film: what is painted over is drawn anew. With a pointer, or with the keyboard. */

import { html } from "../html.js";
import { MaskBrush } from "../mask.js";
import { useLayoutEffect, useMemo, useRef, useState } from "../vendor/hooks.js";
import { Icon } from "./icons.js";

const KEY_STEP = 0.04;
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export function MaskEditor({ source, picture }) {
  const brush = useMemo(() => new MaskBrush(source.mask), [picture]);
  const [, redraw] = useState(0);
  const update = () => redraw((count) => count + 1);
  const finish = () => {
    brush.endStroke();
    source.hasMask.value = brush.isUsed;
    update();
  };
  const set = (members) => {
    Object.assign(brush, members);
    update();
  };
  return html`
    <div class="mask-editor">
      <${Sheet} picture=${picture} brush=${brush} onChange=${finish} />
      <div class="tools" role="group" aria-label="Mask">
        <button type="button" class="tool" aria-pressed=${!brush.isErasing} aria-label="Paint" title="Paint"
          onClick=${() => set({ isErasing: false })}><${Icon} name="brush" /></button>
        <button type="button" class="tool" aria-pressed=${brush.isErasing} aria-label="Erase" title="Erase"
          onClick=${() => set({ isErasing: true })}><${Icon} name="eraser" /></button>
        <input type="range" min="0.02" max="0.5" step="0.02" value=${brush.size} aria-label="Brush size"
          onInput=${({ target }) => set({ size: Number(target.value) })} />
        <button type="button" class="small" onClick=${() => (brush.clear(), finish())}>Clear</button>
      </div>
    </div>
  `;
}

function Sheet({ picture, brush, onChange }) {
  const holder = useRef(null);
  const cursor = useRef({ x: picture.width / 2, y: picture.height / 2 });
  const [hasFocus, setHasFocus] = useState(false);
  const [, redraw] = useState(0);
  useLayoutEffect(() => {
    holder.current.replaceChildren(picture.canvas, brush.canvas);
  }, [brush]);
  const place = (event) => {
    const box = holder.current.getBoundingClientRect();
    const scale = picture.width / box.width;
    return { x: (event.clientX - box.left) * scale, y: (event.clientY - box.top) * scale };
  };
  const onPointerDown = (event) => {
    holder.current.setPointerCapture(event.pointerId);
    brush.moveTo(place(event));
  };
  const onPointerMove = (event) => {
    if (event.buttons & 1) brush.moveTo(place(event));
  };
  const onKeyDown = (event) => {
    const move = MOVES[event.key];
    if (!move && event.key !== " ") return;
    event.preventDefault();
    const step = KEY_STEP * Math.min(picture.width, picture.height);
    const [across, along] = move ?? [0, 0];
    cursor.current = {
      x: clamp(cursor.current.x + across * step, picture.width),
      y: clamp(cursor.current.y + along * step, picture.height),
    };
    redraw((count) => count + 1);
    if (event.key === " " || event.shiftKey) {
      brush.moveTo(cursor.current);
      onChange();
    }
  };
  return html`
    <div class="sheet" style=${{ aspectRatio: `${picture.width} / ${picture.height}` }}>
      <div ref=${holder} class="canvases" tabindex="0" role="application" data-testid="mask"
        aria-label="Mask of the picture. Arrow keys move the brush, space paints, with shift it paints as it moves."
        onPointerDown=${onPointerDown} onPointerMove=${onPointerMove} onPointerUp=${onChange} onPointerCancel=${onChange}
        onKeyDown=${onKeyDown} onFocus=${(event) => setHasFocus(event.target.matches(":focus-visible"))}
        onBlur=${() => setHasFocus(false)}></div>
      ${hasFocus && html`<span class="brush-cursor" aria-hidden="true" style=${cursorStyle(cursor.current, picture, brush)}></span>`}
    </div>
  `;
}

function cursorStyle({ x, y }, picture, brush) {
  return {
    left: `${(x / picture.width) * 100}%`,
    top: `${(y / picture.height) * 100}%`,
    width: `${(brush.widthPx / picture.width) * 100}%`,
  };
}

const clamp = (value, limit) => Math.min(Math.max(value, 0), limit);
