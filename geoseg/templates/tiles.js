// Pictures of the map: tiles decoded when they are seen, and the few hundred seen last kept. See geoseg/pyramid.py.

class Tiles {
  // `paint` turns a decoded image into what is drawn; `arrived` is called when there is more to draw.
  constructor(levels, shrink, side, arrived, paint = (image) => image) {
    Object.assign(this, { levels, shrink, side, arrived, paint });
    this.kept = new Map();
  }

  forget() {
    this.kept.clear();
  }

  // Pixels of the mosaic for one of a level.
  step(level) {
    return this.shrink * this.levels[level].factor;
  }

  // Returns a tile that can be drawn, or null, having asked for it.
  tile(level, number) {
    const key = `${level}/${number}`;
    let entry = this.kept.get(key);
    if (entry) {
      this.kept.delete(key);
    } else {
      entry = { picture: null };
      const image = new Image();
      image.onload = () => {
        entry.picture = this.paint(image);
        this.arrived();
      };
      image.src = this.levels[level].tiles[number];
    }
    this.kept.set(key, entry);
    if (this.kept.size > 160) this.kept.delete(this.kept.keys().next().value);
    return entry.picture;
  }

  waiting() {
    return [...this.kept.values()].some((entry) => !entry.picture);
  }

  // The coarsest level that has a pixel for every one of the screen, or nearly; else the finest.
  level(k) {
    const found = this.levels.findIndex((_, level) => this.step(level) * k <= 1.25);
    return found < 0 ? this.levels.length - 1 : found;
  }

  draw(pen, view) {
    const level = this.level(view.k), { width, height, tiles } = this.levels[level];
    const step = this.step(level), span = this.side * step;
    const across = Math.ceil(width / this.side), down = Math.ceil(height / this.side);
    const bound = (value, most) => Math.min(Math.max(value, 0), most);
    const col0 = bound(Math.floor(-view.x / view.k / span), across), row0 = bound(Math.floor(-view.y / view.l / span), down);
    const col1 = bound(Math.ceil((view.width - view.x) / view.k / span), across);
    const row1 = bound(Math.ceil((view.height - view.y) / view.l / span), down);
    // Pixels are to be seen as such where they are large.
    pen.imageSmoothingEnabled = step * view.k < 5 * view.dpr;
    pen.imageSmoothingQuality = "medium";
    for (let row = row0; row < row1; row++) {
      for (let col = col0; col < col1; col++) {
        if (tiles[row * across + col]) this.place(pen, view, level, row, col);
      }
    }
  }

  // Draws a tile, or what a coarser level has of it.
  place(pen, view, level, row, col) {
    const { width, height } = this.levels[level];
    const wide = Math.min(this.side, width - col * this.side), high = Math.min(this.side, height - row * this.side);
    const step = this.step(level), x = col * this.side * step, y = row * this.side * step;
    // Whole pixels of the screen: no seams.
    const left = Math.round(x * view.k + view.x), top = Math.round(y * view.l + view.y);
    const right = Math.round((x + wide * step) * view.k + view.x), bottom = Math.round((y + high * step) * view.l + view.y);
    for (let other = level; other >= 0; other--) {
      const ratio = 2 ** (level - other);
      const r = Math.floor(row / ratio), c = Math.floor(col / ratio);
      const number = r * Math.ceil(this.levels[other].width / this.side) + c;
      if (!this.levels[other].tiles[number]) return;
      const picture = this.tile(other, number);
      if (!picture) continue;
      const sx = (col / ratio - c) * this.side, sy = (row / ratio - r) * this.side;
      const sw = Math.min(wide / ratio, picture.width - sx), sh = Math.min(high / ratio, picture.height - sy);
      if (sw > 0 && sh > 0) pen.drawImage(picture, sx, sy, sw, sh, left, top, right - left, bottom - top);
      return;
    }
  }
}

// Returns 256 colours with opacity: the ramp, clear at 0 and solid from one half on, as QGIS shows it, or a mask.
function palette(ramp, mode, threshold) {
  const colours = new Uint32Array(256);
  const bytes = new Uint8ClampedArray(colours.buffer);
  for (let value = 0; value < 256; value++) {
    const at = (value / 255) * (ramp.length - 1), low = Math.min(Math.floor(at), ramp.length - 2);
    const mixed = [0, 1, 2].map((band) => ramp[low][band] + (ramp[low + 1][band] - ramp[low][band]) * (at - low));
    const mask = [227, 26, 28, value >= threshold * 255 ? 255 : 0];
    bytes.set(mode === "mask" ? mask : [...mixed, Math.min(2 * value, 255)], 4 * value);
  }
  return colours;
}

// Returns a grey image in these colours.
function coloured(image, colours) {
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(image, 0, 0);
  const pixels = pen.getImageData(0, 0, canvas.width, canvas.height);
  const words = new Uint32Array(pixels.data.buffer);
  // Green, as the three bands are alike and it is the one kept best.
  for (let i = 0; i < words.length; i++) words[i] = colours[pixels.data[4 * i + 1]];
  pen.putImageData(pixels, 0, 0);
  return canvas;
}
