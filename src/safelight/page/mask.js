/** Painting a mask: strokes on a canvas that is as large as the picture, whatever its size on the screen. */

export class MaskBrush {
  /** As a share of the picture's shorter side. */
  size = 0.2;
  isErasing = false;
  #context;
  #last = null;

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    this.#context = canvas.getContext("2d", { willReadFrequently: true });
  }

  get widthPx() {
    return Math.max(this.size * Math.min(this.canvas.width, this.canvas.height), 2);
  }

  /** Paints from the last place of this stroke. @param {{x: number, y: number}} place in pixels of the picture */
  moveTo(place) {
    const from = this.#last ?? place;
    const context = this.#context;
    context.globalCompositeOperation = this.isErasing ? "destination-out" : "source-over";
    context.strokeStyle = "#f00";
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
