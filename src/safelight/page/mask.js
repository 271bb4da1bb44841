/** Painting a mask: strokes on a canvas that is as large as the picture, whatever its size on the screen. */

import { newCanvas } from "./source.js";

const STRIPES = 24;

export class MaskBrush {
  /** As a share of the picture's shorter side. */
  size = 0.2;
  isErasing = false;
  #context;
  #film;
  #last = null;

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    this.#context = canvas.getContext("2d", { willReadFrequently: true });
    this.#film = this.#context.createPattern(stripes(Math.min(canvas.width, canvas.height)), "repeat");
  }

  get widthPx() {
    return Math.max(this.size * Math.min(this.canvas.width, this.canvas.height), 2);
  }

  /** Paints from the last place of this stroke. @param {{x: number, y: number}} place in pixels of the picture */
  moveTo(place) {
    const from = this.#last ?? place;
    const context = this.#context;
    context.globalCompositeOperation = this.isErasing ? "destination-out" : "source-over";
    context.strokeStyle = this.#film;
    context.lineWidth = this.widthPx;
    context.lineCap = "round";
    context.lineJoin = "round";
    context.beginPath();
    context.moveTo(from.x, from.y);
    context.lineTo(place.x + 0.01, place.y);
    context.stroke();
    this.#last = place;
  }

  endStroke() {
    this.#last = null;
  }

  clear() {
    this.#context.clearRect(0, 0, this.canvas.width, this.canvas.height);
  }

  /** @returns {boolean} whether anything is painted */
  get isUsed() {
    const { data } = this.#context.getImageData(0, 0, this.canvas.width, this.canvas.height);
    for (let index = 3; index < data.length; index += 4) if (data[index]) return true;
    return false;
  }
}

/** Red film with dark stripes, so that it is seen on red pictures too. Opaque: what is painted counts, not its colour. */
function stripes(side) {
  const tile = newCanvas(Math.max(Math.round(side / STRIPES), 4), Math.max(Math.round(side / STRIPES), 4));
  const context = tile.getContext("2d");
  context.fillStyle = "#ff2a14";
  context.fillRect(0, 0, tile.width, tile.height);
  context.strokeStyle = "#3a0500";
  context.lineWidth = tile.width / 5;
  for (const shift of [-1, 0, 1]) {
    context.beginPath();
    context.moveTo((shift - 0.1) * tile.width, tile.height * 1.1);
    context.lineTo((shift + 1.1) * tile.width, -0.1 * tile.height);
    context.stroke();
  }
  return tile;
}
