// The map of the report: where it looks, what it shows, and what people do to it. It asks nothing of the network.

const $ = (id) => document.getElementById(id);
const facts = JSON.parse($("map-facts").textContent);
const stage = $("map-stage"), canvas = $("map-canvas"), pen = canvas.getContext("2d");
const footprints = unpack(facts.footprints, facts.count, facts.units, facts.areaSteps, facts.chanceSteps);
facts.footprints = null;
const look = { x: facts.width / 2, y: facts.height / 2, z: 1, whole: true }; // centre in pixels; screen pixels for one
const layers = { imagery: true, probability: false, footprints: true, mode: "heat", opacity: 75 };
const OTHER = [0, 229, 255]; // colour of the chosen one, or of all others
let chosen = -1, pointer = null, touched = false;

// --- pictures

let colours = palette(facts.ramp, layers.mode, facts.threshold ?? 0.5);
const imagery = new Tiles(facts.imagery, facts.shrink, facts.tile, ask);
const chance = new Tiles(facts.probability, facts.shrink, facts.tile, ask, (image) => coloured(image, colours));
const insets = facts.insets.map((inset) => ({ ...inset, image: document.querySelector(`#${inset.id} .imagery`) }));

// --- geometry

function viewNow() {
  const dpr = Math.min(window.devicePixelRatio || 1, 3);
  const k = look.z * dpr, l = k * facts.aspect;
  const width = canvas.width, height = canvas.height;
  return { k, l, x: width / 2 - look.x * k, y: height / 2 - look.y * l, width, height, dpr };
}

const fit = () => 0.98 * Math.min(stage.clientWidth / facts.width, stage.clientHeight / (facts.height * facts.aspect));
const bounded = (value, low, high) => Math.min(Math.max(value, low), high);

function toMap(col, row) {
  const [a, b, c, d, e, f] = facts.transform;
  return [a * col + b * row + c, d * col + e * row + f];
}

function toPixel(x, y) {
  const [a, b, c, d, e, f] = facts.transform, area = a * e - b * d;
  return [(e * (x - c) - b * (y - f)) / area, (a * (y - f) - d * (x - c)) / area];
}

// From a place on the stage.
const column = (left) => look.x + (left - stage.clientWidth / 2) / look.z;
const row = (top) => look.y + (top - stage.clientHeight / 2) / (look.z * facts.aspect);

function at(event) {
  const box = stage.getBoundingClientRect();
  return [event.clientX - box.left - stage.clientLeft, event.clientY - box.top - stage.clientTop];
}

// --- where it looks

function go(x, y, z) {
  const least = fit();
  // Far enough in to see what a pixel is.
  look.z = bounded(z, least, Math.max(24, 4 * least));
  look.whole = look.z === least;
  look.x = look.whole ? facts.width / 2 : bounded(x, 0, facts.width);
  look.y = look.whole ? facts.height / 2 : bounded(y, 0, facts.height);
  // Where there is nothing to drag, fingers scroll the page.
  stage.style.touchAction = look.whole ? "pan-y" : "none";
  moving();
  ask();
}

function zoom(factor, left = stage.clientWidth / 2, top = stage.clientHeight / 2) {
  const x = column(left), y = row(top), before = look.z;
  const z = bounded(look.z * factor, fit(), Math.max(24, 4 * fit()));
  const rest = 1 - before / z;
  touched = true;
  go(look.x + (x - look.x) * rest, look.y + (y - look.y) * rest, z);
}

function pan(right, down) {
  touched = true;
  go(look.x + right / look.z, look.y + down / (look.z * facts.aspect), look.z);
}

function showAll() {
  touched = true;
  go(facts.width / 2, facts.height / 2, fit());
}

// --- drawing

let asked = 0, sheet = null, busyUntil = 0, cost = 0;

function ask() {
  asked ||= requestAnimationFrame(draw);
}

function moving() {
  busyUntil = performance.now() + 140;
  setTimeout(ask, 160);
}

function draw() {
  asked = 0;
  const view = viewNow();
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.fillStyle = "#1b2228";
  pen.fillRect(0, 0, view.width, view.height);
  const left = Math.round(view.x), top = Math.round(view.y);
  const wide = Math.round(facts.width * view.k), high = Math.round(facts.height * view.l);
  pen.save();
  pen.beginPath();
  pen.rect(left, top, wide, high);
  pen.clip(); // the last pixels of the pictures reach beyond the mosaic
  pen.fillStyle = layers.imagery ? hatch() : "#2a333b";
  pen.fillRect(left, top, wide, high);
  if (layers.imagery) {
    imagery.draw(pen, view);
    drawInsets(view);
  }
  if (layers.probability) {
    pen.globalAlpha = layers.opacity / 100;
    chance.draw(pen, view);
    pen.globalAlpha = 1;
  }
  pen.restore();
  if (layers.footprints) drawSheet(view);
  if (chosen >= 0) drawChosen(pen, footprints, chosen, view, outline() === OTHER ? facts.outline : OTHER);
  showScale();
  showPosition();
  remember();
  stage.dataset.waiting = String(imagery.waiting() || chance.waiting() || performance.now() < busyUntil);
}

function hatch() {
  const small = document.createElement("canvas"), lines = small.getContext("2d");
  small.width = small.height = 12;
  lines.fillStyle = "#80868c";
  lines.fillRect(0, 0, 12, 12);
  lines.strokeStyle = "#989ea4";
  lines.lineWidth = 2;
  for (const shift of [-12, 0, 12]) {
    lines.moveTo(shift - 2, 14);
    lines.lineTo(shift + 14, -2);
  }
  lines.stroke();
  return pen.createPattern(small, "repeat");
}

// Where the report has details, the map has them too.
function drawInsets(view) {
  if (imagery.step(imagery.levels.length - 1) === 1 || imagery.step(imagery.levels.length - 1) * view.k < 1.25) return;
  for (const { image, place: [x0, y0, x1, y1] } of insets) {
    const left = Math.round(x0 * view.k + view.x), top = Math.round(y0 * view.l + view.y);
    const right = Math.round(x1 * view.k + view.x), bottom = Math.round(y1 * view.l + view.y);
    if (right < 0 || bottom < 0 || left > view.width || top > view.height || !image) continue;
    if (!image.complete) image.addEventListener("load", ask, { once: true });
    else if (image.naturalWidth) {
      pen.imageSmoothingEnabled = view.k < 5 * view.dpr;
      pen.drawImage(image, left, top, right - left, bottom - top);
    }
  }
}

// Their usual colour is one of the probability's.
const outline = () => (layers.probability && layers.mode === "heat" ? OTHER : facts.outline);

// Many outlines take longer than a frame: while the map moves, the last drawing moves with it.
function drawSheet(view) {
  const still = sheet?.outline === outline() && ["k", "l", "x", "y", "width", "height"].every((name) => sheet.view[name] === view[name]);
  if (!still && (sheet?.outline !== outline() || cost < 12 || performance.now() >= busyUntil)) {
    const clock = performance.now();
    sheet ||= { canvas: document.createElement("canvas") };
    Object.assign(sheet, { view, outline: outline() });
    sheet.canvas.width = view.width;
    sheet.canvas.height = view.height;
    drawFootprints(sheet.canvas.getContext("2d"), footprints, view, outline());
    cost = performance.now() - clock;
  }
  const ratio = view.k / sheet.view.k;
  pen.imageSmoothingEnabled = ratio !== 1;
  const x = view.x - sheet.view.x * ratio, y = view.y - sheet.view.y * ratio;
  pen.drawImage(sheet.canvas, x, y, sheet.canvas.width * ratio, sheet.canvas.height * ratio);
}

function showScale() {
  const unit = facts.ground || 1, most = (stage.clientWidth / 5) * (unit / look.z);
  const power = 10 ** Math.floor(Math.log10(most));
  const length = [5, 2, 1].find((step) => step * power <= most) * power;
  $("map-scale").style.width = `${(length * look.z) / unit}px`;
  const large = facts.ground && length >= 1000, value = Number((large ? length / 1000 : length).toPrecision(1));
  $("map-scale-text").textContent = `${value}\u202f${facts.ground ? (large ? "km" : "m") : "px"}`;
}

function showPosition() {
  const [left, top] = pointer || [stage.clientWidth / 2, stage.clientHeight / 2];
  $("map-position").textContent = `${pointer ? "" : "centre: "}${inWords(column(left), row(top))}`;
}

function inWords(col, line) {
  const [x, y] = toMap(col, line).map((value) => value.toFixed(facts.decimals));
  return [`${facts.axes[0]} ${x}`, `${facts.axes[1]} ${y}`, ...(facts.crs ? [facts.crs] : [])].join(" · ");
}

// --- one footprint

function choose(index) {
  chosen = index;
  $("map-info").hidden = index < 0;
  if (index >= 0) {
    const area = footprints.area[index], box = footprints.box.subarray(4 * index, 4 * index + 4);
    $("map-id").textContent = `Building ${footprints.id[index]}`;
    $("map-area").textContent = Number.isNaN(area) ? "–" : `${grouped(area.toFixed(1))}\u202f${facts.areaUnit}`;
    $("map-chance-of").textContent = footprints.chance[index].toFixed(2);
    $("map-place").textContent = inWords((box[0] + box[2]) / 2, (box[1] + box[3]) / 2);
  }
  ask();
}

// Thousands apart; old browsers know no look-behind, which would do for the decimals.
const grouped = (text) => text.replace(/^\d+/, (whole) => whole.replace(/\B(?=(\d{3})+$)/g, "\u202f"));

function pick(left, top) {
  touched = true;
  choose(layers.footprints ? footprintAt(footprints, column(left), row(top), 5 / look.z) : -1);
}

function find(text) {
  const index = footprintOf(footprints, Number(text));
  touched = true;
  $("map-missing").textContent = index < 0 ? `No footprint ${text} is drawn.` : "";
  if (index < 0) return;
  const [x0, y0, x1, y1] = footprints.box.subarray(4 * index, 4 * index + 4);
  setLayer("footprints", true);
  const room = 0.3 * Math.min(stage.clientWidth, stage.clientHeight);
  go((x0 + x1) / 2, (y0 + y1) / 2, Math.min(room / Math.max(x1 - x0, y1 - y0, 1), 8));
  choose(index);
}

// --- layers

function setLayer(name, value) {
  layers[name] = value;
  const input = $(`map-${name}`);
  if (typeof value === "boolean") input.checked = value;
  else input.value = value;
  if (name === "mode") {
    colours = palette(facts.ramp, value, facts.threshold ?? 0.5);
    chance.forget();
  }
  if (name === "footprints" && !value) choose(-1);
  $("map").parentElement.style.setProperty("--building", `rgb(${outline()})`);
  for (const other of ["mode", "opacity"]) $(`map-${other}`).disabled = !layers.probability;
  ask();
}

for (const name of Object.keys(layers)) {
  $(`map-${name}`).addEventListener("input", ({ target }) => {
    touched = true;
    setLayer(name, target.type === "checkbox" ? target.checked : name === "opacity" ? Number(target.value) : target.value);
  });
}

// --- the address: a view can be kept and handed on

let noted = 0;

function remember() {
  if (!touched) return;
  clearTimeout(noted);
  noted = setTimeout(() => {
    const [x, y] = toMap(look.x, look.y).map((value) => value.toFixed(facts.decimals + 1));
    const shown = ["imagery", "probability", "footprints"].filter((name) => layers[name]).join(",");
    const parts = [`x=${x}`, `y=${y}`, `z=${Number(look.z.toPrecision(6))}`, `layers=${shown}`];
    if (layers.probability) parts.push(`mode=${layers.mode}`, `opacity=${layers.opacity}`);
    if (chosen >= 0) parts.push(`id=${footprints.id[chosen]}`);
    history.replaceState(null, "", `#${parts.join("&")}`);
  }, 150);
}

function obey() {
  const wish = new URLSearchParams(location.hash.slice(1));
  const number = (name) => (wish.get(name)?.trim() ? Number(wish.get(name)) : NaN);
  if (wish.has("layers")) {
    const shown = wish.get("layers").split(",");
    for (const name of ["imagery", "probability", "footprints"]) setLayer(name, shown.includes(name));
  }
  if (["heat", "mask"].includes(wish.get("mode"))) setLayer("mode", wish.get("mode"));
  if (Number.isFinite(number("opacity"))) setLayer("opacity", bounded(number("opacity"), 0, 100));
  const [x, y] = toPixel(number("x"), number("y")), z = number("z");
  const placed = Number.isFinite(x) && Number.isFinite(y);
  if (Number.isFinite(number("id")) && !placed) find(String(number("id")));
  else if (Number.isFinite(number("id"))) choose(footprintOf(footprints, number("id")));
  if (placed) go(x, y, z > 0 ? z : look.z);
  return placed || wish.has("id") || wish.has("layers");
}

window.addEventListener("hashchange", () => {
  if (obey()) $("map").scrollIntoView({ block: "nearest" });
});

// --- mouse, fingers, keys

const down = new Map();
let pressed = null, scrolled = -Infinity;

stage.addEventListener("pointerdown", (event) => {
  if (event.target !== canvas || event.button > 0) return;
  stage.setPointerCapture(event.pointerId);
  down.set(event.pointerId, at(event));
  pressed = down.size === 1 ? at(event) : null;
});

stage.addEventListener("pointermove", (event) => {
  const here = at(event), before = down.get(event.pointerId);
  if (event.pointerType === "mouse") pointer = event.target === canvas || before ? here : null;
  if (before) {
    const other = [...down].find(([id]) => id !== event.pointerId)?.[1];
    if (pressed && Math.hypot(here[0] - pressed[0], here[1] - pressed[1]) > 5) pressed = null;
    down.set(event.pointerId, here);
    if (other) {
      const apart = (point) => Math.max(Math.hypot(point[0] - other[0], point[1] - other[1]), 1);
      zoom(apart(here) / apart(before), (here[0] + other[0]) / 2, (here[1] + other[1]) / 2);
      pan((before[0] - here[0]) / 2, (before[1] - here[1]) / 2);
    } else if (!pressed && !look.whole) {
      pan(before[0] - here[0], before[1] - here[1]);
    }
    stage.classList.toggle("dragged", !pressed && !look.whole);
  }
  ask();
});

for (const kind of ["pointerup", "pointercancel"]) {
  stage.addEventListener(kind, (event) => {
    if (!down.delete(event.pointerId)) return;
    stage.classList.remove("dragged");
    if (kind === "pointerup" && pressed) pick(...at(event));
    pressed = null;
  });
}

stage.addEventListener("pointerleave", () => {
  pointer = null;
  ask();
});

stage.addEventListener("dblclick", (event) => {
  // The stage itself where it has captured the pointer.
  if (event.target !== canvas && event.target !== stage) return;
  event.preventDefault();
  zoom(event.shiftKey ? 0.5 : 2, ...at(event));
});

// Who scrolls through the page scrolls on, also across the map.
window.addEventListener("scroll", () => (scrolled = performance.now()), { passive: true });

stage.addEventListener(
  "wheel",
  (event) => {
    if (event.target !== canvas) return;
    const lines = [1, 16, 400][event.deltaMode] * event.deltaY;
    const passing = performance.now() - scrolled < 350 || (look.whole && lines > 0);
    if (passing && !event.ctrlKey) return;
    event.preventDefault();
    zoom(Math.exp(-bounded(lines * (event.ctrlKey ? 0.01 : 0.002), -0.7, 0.7)), ...at(event));
  },
  { passive: false },
);

const KEYS = {
  ArrowLeft: () => pan(-90, 0),
  ArrowRight: () => pan(90, 0),
  ArrowUp: () => pan(0, -90),
  ArrowDown: () => pan(0, 90),
  "+": () => zoom(1.5),
  "=": () => zoom(1.5),
  "-": () => zoom(1 / 1.5),
  "0": showAll,
  Enter: () => pick(stage.clientWidth / 2, stage.clientHeight / 2),
  Escape: () => choose(-1),
};

stage.addEventListener("keydown", (event) => {
  if (event.target !== stage || event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
  event.preventDefault();
  KEYS[event.key]();
});

$("map-in").addEventListener("click", () => zoom(1.5));
$("map-out").addEventListener("click", () => zoom(1 / 1.5));
$("map-fit").addEventListener("click", showAll);
$("map-close").addEventListener("click", () => choose(-1));
$("map-find").addEventListener("change", ({ target }) => target.value.trim() && find(target.value.trim()));
$("map-full").hidden = !document.fullscreenEnabled;
$("map-full").addEventListener("click", () => {
  if (document.fullscreenElement) document.exitFullscreen();
  else $("map").requestFullscreen();
});

// --- start

let begun = false;
$("map").hidden = false;
new ResizeObserver(() => {
  const dpr = Math.min(window.devicePixelRatio || 1, 3);
  canvas.width = Math.max(Math.round(stage.clientWidth * dpr), 1);
  canvas.height = Math.max(Math.round(stage.clientHeight * dpr), 1);
  go(look.x, look.y, look.whole ? fit() : look.z);
  if (!begun) obey();
  begun = true;
}).observe(stage);
