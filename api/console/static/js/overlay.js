// Annotations over the slide on one 2D canvas. Outlines that are smaller than a few pixels become dots, longer ones lose
// vertices that nobody could see, and where a frame costs too much the last picture is moved along until the view rests.

const TINY = 4;          // screen pixels: below, a ring is a dot
const BUDGET_MS = 12;    // what a frame may cost while the view moves
const REST_MS = 120;
const CHUNK = 64;        // rings per path: long paths are slow to stroke

export class Overlay {
  constructor(viewer, stage, data) {
    Object.assign(this, { viewer, stage, data, opacity: 0.35, cost: 0, drawn: null, rest: 0, frame: 0 });
    this.shown = data.classes.map(() => true);
    this.canvas = document.createElement("canvas");
    this.canvas.className = "overlay";
    this.canvas.setAttribute("aria-hidden", "true");
    stage.querySelector(".osd").after(this.canvas);
    this.context = this.canvas.getContext("2d");
    viewer.addHandler("update-viewport", () => this.moved());
    viewer.addHandler("animation-finish", () => this.draw());
    viewer.addHandler("resize", () => this.draw());
    this.draw();
  }

  /** Screen = level 0 * scale + shift. */
  place() {
    const viewport = this.viewer.viewport;
    const origin = viewport.imageToViewerElementCoordinates(new OpenSeadragon.Point(0, 0));
    const unit = viewport.imageToViewerElementCoordinates(new OpenSeadragon.Point(1000, 0));
    return { scale: (unit.x - origin.x) / 1000, x: origin.x, y: origin.y };
  }

  moved() {
    const now = this.place();
    if (this.drawn && now.scale === this.drawn.scale && now.x === this.drawn.x && now.y === this.drawn.y) return;
    if (this.cost <= BUDGET_MS || !this.drawn) {
      this.draw();
      return;
    }
    const zoom = now.scale / this.drawn.scale;
    this.canvas.style.transform = `translate(${now.x - this.drawn.x * zoom}px, ${now.y - this.drawn.y * zoom}px) scale(${zoom})`;
    clearTimeout(this.rest);
    this.rest = setTimeout(() => this.draw(), REST_MS);
  }

  set(index, on) {
    this.shown[index] = on;
    this.draw();
  }

  draw() {
    clearTimeout(this.rest);
    const began = performance.now();
    const { canvas, context: g, stage, data } = this;
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const width = stage.clientWidth, height = stage.clientHeight;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
    }
    canvas.style.transform = "none";
    g.setTransform(1, 0, 0, 1, 0, 0);
    g.clearRect(0, 0, canvas.width, canvas.height);
    const at = this.place();
    const dots = new Dots(canvas.width, canvas.height);
    this.rings(g, at, ratio, width, height, dots);
    this.points(at, ratio, width, height, dots);
    dots.onto(g);
    this.drawn = at;
    this.cost = performance.now() - began;
    canvas.dataset.cost = this.cost.toFixed(1);
    stage.dispatchEvent(new CustomEvent("overlay-drawn", { detail: { features: data.features, cost: this.cost } }));
  }

  rings(g, at, ratio, width, height, dots) {
    const { boxes, starts, coords, ringClass, ringKind, classes } = this.data;
    const { scale, x: dx, y: dy } = at;
    const left = -dx / scale, top = -dy / scale, right = (width - dx) / scale, bottom = (height - dy) / scale;
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.lineWidth = 1.5;
    g.lineJoin = "round";
    let current = -1, filled = false, open = 0;
    const flush = () => {
      if (!open) return;
      if (filled) g.fill();
      g.stroke();
      open = 0;
    };
    for (let r = 0; r < ringClass.length; r++) {
      const b = 4 * r;
      if (boxes[b] > right || boxes[b + 2] < left || boxes[b + 1] > bottom || boxes[b + 3] < top) continue;
      const index = ringClass[r];
      if (!this.shown[index]) continue;
      const w = (boxes[b + 2] - boxes[b]) * scale, h = (boxes[b + 3] - boxes[b + 1]) * scale;
      if (w < TINY && h < TINY) {
        dots.put(((boxes[b] + boxes[b + 2]) / 2 * scale + dx) * ratio, ((boxes[b + 1] + boxes[b + 3]) / 2 * scale + dy) * ratio, classes[index].rgb, ratio);
        continue;
      }
      const area = ringKind[r] === 2;
      if (index !== current || area !== filled || open >= CHUNK) {
        flush();
        current = index;
        filled = area;
        const [red, green, blue] = classes[index].rgb;
        g.strokeStyle = `rgb(${red} ${green} ${blue})`;
        g.fillStyle = `rgb(${red} ${green} ${blue} / ${this.opacity * (classes[index].heat ? 1 : 0.6)})`;
        g.beginPath();
      }
      open += 1;
      const from = starts[r], to = starts[r + 1];
      // No more vertices than about one for two pixels of the ring's size.
      const step = Math.max(1, Math.floor((to - from) / Math.max(8, w + h)));
      g.moveTo(coords[2 * from] * scale + dx, coords[2 * from + 1] * scale + dy);
      for (let i = from + step; i < to; i += step) g.lineTo(coords[2 * i] * scale + dx, coords[2 * i + 1] * scale + dy);
      if (ringKind[r] === 0) g.lineTo(coords[2 * to - 2] * scale + dx, coords[2 * to - 1] * scale + dy);
      else g.closePath();
    }
    flush();
  }

  points(at, ratio, width, height, dots) {
    const { points, pointClass, classes } = this.data;
    const { scale, x: dx, y: dy } = at;
    const size = Math.min(9, Math.max(2, 12 * scale)) * ratio;
    for (let i = 0; i < pointClass.length; i++) {
      const x = points[2 * i] * scale + dx, y = points[2 * i + 1] * scale + dy;
      if (x < -5 || y < -5 || x > width + 5 || y > height + 5 || !this.shown[pointClass[i]]) continue;
      dots.put(x * ratio, y * ratio, classes[pointClass[i]].rgb, size);
    }
  }
}

/** Small filled squares, written as pixels: a hundred thousand of them cost some milliseconds. */
class Dots {
  constructor(width, height) {
    Object.assign(this, { width, height, pixels: null, layer: null });
  }
  put(x, y, rgb, size) {
    if (!this.pixels) {
      this.image = new ImageData(this.width, this.height);
      this.pixels = new Uint32Array(this.image.data.buffer);
    }
    const color = (0xff000000 | (rgb[2] << 16) | (rgb[1] << 8) | rgb[0]) >>> 0;
    const half = size / 2;
    const x0 = Math.max(0, Math.round(x - half)), x1 = Math.min(this.width, Math.round(x + half) || 1);
    const y0 = Math.max(0, Math.round(y - half)), y1 = Math.min(this.height, Math.round(y + half) || 1);
    for (let row = y0; row < Math.max(y1, y0 + 1) && row < this.height; row++) {
      const from = row * this.width;
      for (let column = x0; column < Math.max(x1, x0 + 1) && column < this.width; column++) this.pixels[from + column] = color;
    }
  }
  onto(g) {
    if (!this.pixels) return;
    const layer = new OffscreenCanvas(this.width, this.height);
    layer.getContext("2d").putImageData(this.image, 0, 0);
    g.setTransform(1, 0, 0, 1, 0, 0);
    g.drawImage(layer, 0, 0);
  }
}
