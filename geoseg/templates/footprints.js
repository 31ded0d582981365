// Footprints of the map: unpacked once, drawn where they are seen, found by place or id. See geoseg/packing.py.

function unpack(text, count, units, areaSteps, chanceSteps) {
  const raw = atob(text);
  let at = 0;
  const next = () => {
    let value = 0, place = 1, byte;
    do {
      byte = raw.charCodeAt(at++);
      value += (byte & 127) * place;
      place *= 128;
    } while (byte > 127);
    return value;
  };
  const signed = () => {
    const value = next();
    return value % 2 ? -(value + 1) / 2 : value / 2;
  };
  const all = {
    count,
    id: new Float64Array(count),
    area: new Float64Array(count),
    chance: new Float32Array(count),
    box: new Float32Array(4 * count), // left, top, right, bottom in pixels of the mosaic
    first: new Int32Array(count + 1), // its first ring
    ring: [0], // where each ring starts among the corners
    corner: [], // x, y, x, y, … in pixels of the mosaic
    size: 0, // mean extent in pixels
  };
  for (let i = 0; i < count; i++) {
    all.id[i] = next();
    const area = next();
    all.area[i] = area ? (area - 1) / areaSteps : NaN;
    all.chance[i] = next() / chanceSteps;
    let x0 = Infinity, y0 = Infinity, x1 = -Infinity, y1 = -Infinity;
    for (let rings = next(); rings > 0; rings--) {
      let x = 0, y = 0;
      for (let corners = next(); corners > 0; corners--) {
        x += signed();
        y += signed();
        all.corner.push(x / units, y / units);
        if (x < x0) x0 = x;
        if (x > x1) x1 = x;
        if (y < y0) y0 = y;
        if (y > y1) y1 = y;
      }
      all.ring.push(all.corner.length);
    }
    all.first[i + 1] = all.ring.length - 1;
    all.box.set([x0 / units, y0 / units, x1 / units, y1 / units], 4 * i);
    all.size += (x1 - x0 + y1 - y0) / (2 * units * count);
  }
  all.ring = Int32Array.from(all.ring);
  all.corner = Float32Array.from(all.corner);
  return all;
}

// Adds the rings of one footprint to the path of `pen`; x and y of the screen are `k`, `l` times those of the mosaic.
function trace(pen, all, i, view) {
  for (let r = all.first[i]; r < all.first[i + 1]; r++) {
    for (let c = all.ring[r]; c < all.ring[r + 1]; c += 2) {
      const x = all.corner[c] * view.k + view.x, y = all.corner[c + 1] * view.l + view.y;
      if (c === all.ring[r]) pen.moveTo(x, y);
      else pen.lineTo(x, y);
    }
    pen.closePath();
  }
}

function drawFootprints(pen, all, view, colour) {
  const dot = view.dpr;
  const shown = (all.size * view.k) / dot, close = shown > 14;
  const width = !close ? 0.9 : shown > 60 ? 2 : 1.6;
  const left = -view.x / view.k, right = (view.width - view.x) / view.k;
  const top = -view.y / view.l, bottom = (view.height - view.y) / view.l;
  pen.lineJoin = "round";
  const flush = () => {
    pen.fillStyle = `rgba(${colour},${close ? 0.14 : 0.3})`;
    pen.fill("evenodd");
    if (close) {
      pen.strokeStyle = "rgba(16,24,31,.6)";
      pen.lineWidth = 2 * width * dot;
      pen.stroke();
    }
    pen.strokeStyle = `rgb(${colour})`;
    pen.lineWidth = width * dot;
    pen.stroke();
  };
  const small = [];
  let open = 0;
  for (let i = 0; i < all.count; i++) {
    const x0 = all.box[4 * i], y0 = all.box[4 * i + 1], x1 = all.box[4 * i + 2], y1 = all.box[4 * i + 3];
    if (x1 < left || x0 > right || y1 < top || y0 > bottom) continue;
    if (Math.max((x1 - x0) * view.k, (y1 - y0) * view.l) < 3 * dot) {
      small.push(i);
      continue;
    }
    if (!open++) pen.beginPath();
    trace(pen, all, i, view);
    // Very long paths are slow to stroke.
    if (open === 400) {
      flush();
      open = 0;
    }
  }
  if (open) flush();
  // What would be a dot is drawn as one.
  pen.fillStyle = `rgba(${colour},.9)`;
  for (const i of small) {
    const x = all.box[4 * i], y = all.box[4 * i + 1];
    const wide = Math.max((all.box[4 * i + 2] - x) * view.k, dot), high = Math.max((all.box[4 * i + 3] - y) * view.l, dot);
    pen.fillRect(x * view.k + view.x, y * view.l + view.y, wide, high);
  }
}

function drawChosen(pen, all, i, view, colour) {
  pen.beginPath();
  trace(pen, all, i, view);
  pen.fillStyle = `rgba(${colour},.25)`;
  pen.fill("evenodd");
  for (const [width, style] of [[5.5, "rgba(0,0,0,.65)"], [2.8, `rgb(${colour})`]]) {
    pen.lineWidth = width * view.dpr;
    pen.strokeStyle = style;
    pen.stroke();
  }
}

function contains(all, i, x, y) {
  let inside = false;
  for (let r = all.first[i]; r < all.first[i + 1]; r++) {
    const from = all.ring[r], to = all.ring[r + 1];
    for (let c = from, before = to - 2; c < to; before = c, c += 2) {
      const xa = all.corner[c], ya = all.corner[c + 1], xb = all.corner[before], yb = all.corner[before + 1];
      if (ya > y !== yb > y && x < ((xb - xa) * (y - ya)) / (yb - ya) + xa) inside = !inside;
    }
  }
  return inside;
}

// Returns the footprint at a place of the mosaic, else the one whose box is nearest within `reach` pixels, else -1.
function footprintAt(all, x, y, reach) {
  let near = -1, least = reach;
  for (let i = 0; i < all.count; i++) {
    const away = Math.max(all.box[4 * i] - x, x - all.box[4 * i + 2], all.box[4 * i + 1] - y, y - all.box[4 * i + 3]);
    if (away <= 0 && contains(all, i, x, y)) return i;
    if (Math.max(away, 0) < least) {
      least = Math.max(away, 0);
      near = i;
    }
  }
  return near;
}

// Ids rise.
function footprintOf(all, id) {
  let low = 0, high = all.count - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (all.id[middle] < id) low = middle + 1;
    else high = middle;
  }
  return all.count && all.id[low] === id ? low : -1;
}
