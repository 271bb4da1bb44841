/** A picture to change, and what of it: kept in canvases, sent as data URIs. */

import { Observable } from "./observable.js";

const MAX_SIDE = 2048;

/** @typedef {{name: string, canvas: HTMLCanvasElement, width: number, height: number}} Picture */

export class Source {
  /** @type {Observable<Picture | null>} */
  picture = new Observable(null);
  /** Whether any of it is marked. */
  hasMask = new Observable(false);
  /** @type {HTMLCanvasElement | null} opaque where the picture is to be drawn anew */
  mask = null;

  /**
   * Takes a picture in any format that the browser reads; a large one is made smaller, as the server would.
   * @param {Blob} blob
   * @param {string} name
   * @returns {Promise<void>} throws an Error with a sentence if it is no picture
   */
  async take(blob, name) {
    let bitmap;
    try {
      bitmap = await createImageBitmap(blob);
    } catch {
      throw new Error(`${name} is not a picture that this browser can read.`);
    }
    const scale = Math.min(1, MAX_SIDE / Math.max(bitmap.width, bitmap.height));
    const canvas = newCanvas(Math.round(bitmap.width * scale), Math.round(bitmap.height * scale));
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    bitmap.close();
    this.mask = newCanvas(canvas.width, canvas.height);
    this.hasMask.value = false;
    this.picture.value = { name, canvas, width: canvas.width, height: canvas.height };
  }

  clear() {
    this.picture.value = null;
    this.mask = null;
    this.hasMask.value = false;
  }

  /** @returns {{image: string, mask?: string} | null} */
  get asInput() {
    const picture = this.picture.value;
    if (!picture) return null;
    const image = picture.canvas.toDataURL("image/png");
    return this.hasMask.value ? { image, mask: this.#opaqueMask() } : { image };
  }

  /** White where the picture is drawn anew, black elsewhere. */
  #opaqueMask() {
    const canvas = newCanvas(this.mask.width, this.mask.height);
    const context = canvas.getContext("2d");
    context.drawImage(this.mask, 0, 0);
    context.globalCompositeOperation = "source-in";
    context.fillStyle = "white";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.globalCompositeOperation = "destination-over";
    context.fillStyle = "black";
    context.fillRect(0, 0, canvas.width, canvas.height);
    return canvas.toDataURL("image/png");
  }
}

/** @returns {HTMLCanvasElement} */
export function newCanvas(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}
