// The page on which a digit is drawn: 8 x 8 pixels of it go through the exported cascade, and through
// each network alone, which shows what the networks that were not asked would have said.
"use strict";

const $ = (id) => document.getElementById(id);
const make = (tag, text, name) => {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
};
const { stages, reference, costs, deployed, class_names: names } = RECORDED;
const point = RECORDED.points[deployed.point];
const large = stages[reference];
const FULL = 32; // the data set's images were 32 x 32 bits, of which blocks of 4 x 4 are counted
const FINE = 4; // pixels of a bit while it is drawn
const INK = 6; // width of a stroke, in bits, about as it is in the data set
const ROUNDS = 9, RUNS = 20; // timed in turn; a browser's clock ticks in tenths of a millisecond
const percent = (x) => `${(100 * x).toFixed(1)}\u00a0%`;
const median = (values) => values.sort((a, b) => a - b)[values.length >> 1];

// ---- the drawing: strokes in [0, 1] x [0, 1], or a picture

let strokes = [], picture = null, ready = null, asked = 0;
const board = $("canvas"), pen = { x: 0.5, y: 0.3, down: false, shown: false };

function paint() {
  const context = board.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, board.width, board.height);
  if (picture) { context.imageSmoothingEnabled = picture.width > 8; contained(context); }
  context.strokeStyle = "#111";
  context.lineWidth = 18;
  context.lineCap = context.lineJoin = "round";
  for (const stroke of strokes) line(context, stroke, (x) => x * board.width, (y) => y * board.height);
  if (!pen.shown) return;
  context.beginPath();
  context.arc(pen.x * board.width, pen.y * board.height, 8, 0, 2 * Math.PI);
  context.fillStyle = pen.down ? "#d1480a" : "#d1480a66";
  context.fill();
}

function contained(context) {
  const fit = board.width / Math.max(picture.width, picture.height);
  const [w, h] = [fit * picture.width, fit * picture.height];
  context.drawImage(picture, (board.width - w) / 2, (board.height - h) / 2, w, h);
}

function line(context, stroke, x, y) {
  context.beginPath();
  context.moveTo(x(stroke[0][0]), y(stroke[0][1]));
  for (const [a, b] of stroke) context.lineTo(x(a), y(b));
  if (stroke.length === 1) context.lineTo(x(stroke[0][0]) + 0.01, y(stroke[0][1]));
  context.stroke();
}

/** Numbers of 0 to 16, eight by eight, as the data set has them; null where nothing is drawn. */
function pixels() {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = FULL * FINE;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  if (picture) pictured(context, canvas.width);
  else if (strokes.length) drawn(context, canvas.width);
  else return null;
  const data = context.getImageData(0, 0, canvas.width, canvas.width).data;
  const counted = new Float32Array(64);
  for (let row = 0; row < FULL; row++) {
    for (let column = 0; column < FULL; column++) {
      const at = 4 * ((row * FINE + FINE / 2) * canvas.width + column * FINE + FINE / 2);
      if (data[at] < 128) counted[8 * (row >> 2) + (column >> 2)] += 1;
    }
  }
  return counted.some((value) => value > 0) ? counted : null;
}

/** The strokes at the height and the width of ink that the data set has. */
function drawn(context, size) {
  const all = strokes.flat(), xs = all.map(([x]) => x), ys = all.map(([, y]) => y);
  const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const room = size - INK * FINE;
  const scale = room / Math.max(bottom - top, right - left, 0.05);
  const dx = (size - scale * (left + right)) / 2, dy = (size - scale * (top + bottom)) / 2;
  context.strokeStyle = "#000";
  context.lineWidth = INK * FINE;
  context.lineCap = context.lineJoin = "round";
  for (const stroke of strokes) line(context, stroke, (x) => scale * x + dx, (y) => scale * y + dy);
}

/** A picture: its ink, dark on light or light on dark, cut out and brought to the same height. */
function pictured(context, size) {
  const side = 256, small = document.createElement("canvas");
  small.width = small.height = side;
  const inner = small.getContext("2d", { willReadFrequently: true });
  inner.fillStyle = "#fff";
  inner.fillRect(0, 0, side, side);
  const fit = side / Math.max(picture.width, picture.height);
  const [w, h] = [fit * picture.width, fit * picture.height].map((v) => Math.max(1, Math.round(v)));
  inner.drawImage(picture, 0, 0, w, h);
  const image = inner.getImageData(0, 0, w, h), { data } = image;
  const light = (i) => 0.3 * data[4 * i] + 0.59 * data[4 * i + 1] + 0.11 * data[4 * i + 2];
  let edge = 0, low = 255, high = 0;
  for (let i = 0; i < w; i++) edge += (light(i) + light(w * (h - 1) + i)) / (2 * w);
  for (let i = 0; i < w * h; i++) { low = Math.min(low, light(i)); high = Math.max(high, light(i)); }
  const middle = (low + high) / 2, dark = edge < middle;
  let [left, right, top, bottom] = [w, 0, h, 0];
  for (let i = 0; i < w * h; i++) {
    const ink = high - low > 32 && (light(i) > middle) === dark;
    data.fill(ink ? 0 : 255, 4 * i, 4 * i + 3);
    if (!ink) continue;
    [left, right] = [Math.min(left, i % w), Math.max(right, i % w)];
    [top, bottom] = [Math.min(top, Math.floor(i / w)), Math.max(bottom, Math.floor(i / w))];
  }
  if (right < left) return;
  inner.putImageData(image, 0, 0);
  const [width, height] = [right - left + 1, bottom - top + 1];
  const scale = size / Math.max(width, height);
  context.drawImage(small, left, top, width, height, (size - scale * width) / 2, (size - scale * height) / 2, scale * width, scale * height);
}

// ---- the networks

async function open() {
  if (location.protocol === "file:") throw new Error("A browser runs no WebAssembly for a page that was opened as a file. In this folder: python -m http.server, then open http://localhost:8000/draw.html.");
  if (typeof ort === "undefined") throw new Error("onnxruntime-web is not beside this page. python tools/vendor_onnxruntime_web.py brings it; make docs does so.");
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = new URL("vendor/", location.href).href;
  const sessions = {};
  for (const name of ["cascade", ...stages]) {
    sessions[name] = await ort.InferenceSession.create(`data/${name}.onnx`, { executionProviders: ["wasm"] });
  }
  return sessions;
}

const run = async (session, values) =>
  session.run({ [session.inputNames[0]]: new ort.Tensor("float32", values, [1, 1, 8, 8]) });

/** Probabilities of one stage at the temperature that the policy reads it at. */
async function chances(session, values, temperature) {
  const told = Array.from((await run(session, values)).log_probs.data, (x) => Math.exp(x / temperature));
  const sum = told.reduce((a, b) => a + b);
  return told.map((x) => x / sum);
}

async function classify(known) {
  const turn = ++asked, values = known ? known.values : pixels();
  see(values);
  if (!values) return nothing();
  const sessions = await ready;
  const told = await run(sessions.cascade, values);
  const each = [];
  for (const [k, name] of stages.entries()) each.push(await chances(sessions[name], values, deployed.temperatures[k]));
  const times = { cascade: [], [large]: [] };
  for (let round = 0; round < ROUNDS; round++) {
    for (const name of Object.keys(times)) {
      const begin = performance.now();
      for (let i = 0; i < RUNS; i++) await run(sessions[name], values);
      times[name].push((performance.now() - begin) / RUNS);
    }
    if (turn !== asked) return undefined;
  }
  const answer = { label: Number(told.label.data[0]), stage: Number(told.stage.data[0]), each, values: [...values], known: known?.label, place: known?.place };
  answer.seconds = { cascade: median(times.cascade) / 1000, reference: median(times[large]) / 1000 };
  window.answered = answer; // for those who look under the bonnet, and for the test
  return show(answer);
}

// ---- the page

function nothing() {
  $("badge").textContent = "Waiting for a digit";
  $("outcome").className = "outcome";
  for (const id of ["answer", "keys", "stages"]) $(id).replaceChildren();
}

function see(values) {
  const context = $("seen").getContext("2d"), image = context.createImageData(8, 8);
  for (let k = 0; k < 64; k++) {
    const light = values ? 255 - (255 * values[k]) / 16 : 255;
    image.data.set([light, light, light, 255], 4 * k);
  }
  context.putImageData(image, 0, 0);
}

function show({ label, stage, each, seconds, known }) {
  const at = point.stages.indexOf(stage);
  const visited = point.stages.slice(0, at + 1);
  const spent = visited.reduce((sum, k) => sum + costs[k], 0) / costs[reference];
  $("badge").textContent = at === point.stages.length - 1 ? `All the way to ${stages[stage]}` : `Left early, after ${stages[stage]}`;
  const said = make("strong", names[label]);
  const how = known === undefined ? `${percent(each[stage][label])} sure` : `${percent(each[stage][label])} sure; the label is ${names[known]}`;
  $("answer").replaceChildren(said, make("span", how));
  const ratio = seconds.reference / seconds.cascade;
  const keys = [
    [percent(spent), `of the work of ${large} alone`, visited.map((k) => stages[k]).join(", ")],
    [milliseconds(seconds.cascade), "the cascade, in this browser", `median of ${ROUNDS} rounds of ${RUNS}, one image at a time`],
    [milliseconds(seconds.reference), `${large} alone, likewise`, ratio >= 1.05 ? `${ratio.toFixed(1)} times as long` : "no slower this time"],
  ];
  $("keys").replaceChildren(...keys.map(([value, name, more]) => {
    const key = make("div", undefined, "key");
    key.append(make("dt", name), make("dd", value, "value"), make("dd", more, "more"));
    return key;
  }));
  $("stages").replaceChildren(...stages.map((name, k) => card(name, k, stage, visited.includes(k), each[k])));
}

const milliseconds = (s) => (s < 1e-3 ? `${Math.round(1e6 * s)}\u00a0µs` : `${(1e3 * s).toFixed(2)}\u00a0ms`);

function card(name, k, stage, visited, probabilities) {
  const used = point.stages.indexOf(k), threshold = point.thresholds[used];
  const best = probabilities.indexOf(Math.max(...probabilities)), sure = probabilities[best];
  const item = make("li", undefined, !visited ? "unvisited" : k === stage ? "left" : "on");
  const head = make("div", undefined, "head");
  head.append(make("b", name), make("span", `${percent(costs[k] / costs[reference])} of ${large}\u2019s cost`));
  const bars = make("div", undefined, "chances");
  bars.setAttribute("role", "img");
  bars.setAttribute("aria-label", probabilities.map((p, c) => `${names[c]}: ${percent(p)}`).join(", "));
  probabilities.forEach((p, c) => {
    const bar = make("div", undefined, c === best ? "best" : ""), fill = make("i");
    fill.style.height = `${56 * p}px`;
    bar.append(fill, make("span", names[c]));
    bars.append(bar);
  });
  if (visited && threshold != null) {
    const mark = make("span", undefined, "threshold");
    mark.style.bottom = `${16 + 56 * threshold}px`;
    bars.append(mark);
  }
  item.append(head, bars, make("p", why({ name, k, stage, visited, used, threshold, sure, best }), "why"));
  return item;
}

function why({ k, stage, visited, used, threshold, sure, best }) {
  const says = `${percent(sure)} sure of ${names[best]}`;
  if (used < 0) return `Not part of what is promised; it would be ${says}.`;
  if (!visited) return `Not asked; it would be ${says}.`;
  if (threshold == null) return `${says}. Nothing follows: it answers.`;
  const takes = `it takes ${percent(threshold)} to leave here`;
  return k === stage ? `${says}; ${takes}. It leaves.` : `${says}; ${takes}. It goes on.`;
}

// ---- what comes in

let later;
function changed() {
  asked++; // what is on its way is of the drawing before
  paint();
  clearTimeout(later);
  later = setTimeout(() => classify().catch(failed), 120);
}
function failed(error) { $("notice").textContent = error.message; }

function clear() { strokes = []; picture = null; pen.down = false; changed(); }

function where(event) {
  const box = board.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}
board.addEventListener("pointerdown", (event) => {
  if (picture) { picture = null; strokes = []; }
  board.setPointerCapture(event.pointerId);
  pen.shown = false;
  strokes.push([where(event)]);
  changed();
});
board.addEventListener("pointermove", (event) => {
  if (!event.buttons || !strokes.length || !board.hasPointerCapture(event.pointerId)) return;
  strokes[strokes.length - 1].push(where(event));
  changed();
});
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
board.addEventListener("keydown", (event) => {
  const move = MOVES[event.key];
  if (!move && event.key !== " ") return;
  event.preventDefault();
  if (picture) { picture = null; strokes = []; }
  pen.shown = true;
  if (move) {
    [pen.x, pen.y] = [pen.x + 0.04 * move[0], pen.y + 0.04 * move[1]].map((v) => Math.min(0.95, Math.max(0.05, v)));
    if (pen.down) strokes[strokes.length - 1].push([pen.x, pen.y]);
  } else {
    pen.down = !pen.down;
    if (pen.down) strokes.push([[pen.x, pen.y]]);
  }
  changed();
});
board.addEventListener("blur", () => { pen.shown = pen.down = false; paint(); });
$("clear").addEventListener("click", clear);

let next = 0;
$("example").addEventListener("click", () => {
  const i = (next = (next + 37) % RECORDED.parts.test.n), byte = (text, k) => atob(text).charCodeAt(k);
  const values = new Float32Array(64), small = document.createElement("canvas");
  small.width = small.height = 8;
  const context = small.getContext("2d"), image = context.createImageData(8, 8);
  const held = atob(RECORDED.images);
  for (let k = 0; k < 64; k++) {
    values[k] = held.charCodeAt(64 * i + k);
    const light = 255 - (255 * values[k]) / 16;
    image.data.set([light, light, light, 255], 4 * k);
  }
  context.putImageData(image, 0, 0);
  strokes = [];
  picture = small;
  clearTimeout(later);
  paint();
  classify({ values, place: i, label: byte(RECORDED.parts.test.labels, i) }).catch(failed);
});

async function give(file) {
  if (!file) return;
  try { picture = await createImageBitmap(file); } catch { return failed(new Error(`This cannot be read as an image: ${file.name}.`)); }
  $("notice").textContent = "";
  strokes = [];
  changed();
}
$("file").addEventListener("change", (event) => give(event.target.files[0]));
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    board.classList.toggle("over", name === "dragover");
    if (name === "drop") give(event.dataTransfer.files[0]);
  });
}

// ---- begin

$("promise").textContent = `What is promised of this cascade: ${deployed.words}`;
nothing();
paint();
see(null);
ready = open();
ready.then(() => { document.body.dataset.ready = "yes"; }).catch(failed);
