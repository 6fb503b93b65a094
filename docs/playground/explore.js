// The page that explores a promise: sliders in, the certificate and its pictures out.
"use strict";

const $ = (id) => document.getElementById(id);
const make = (tag, text, name) => {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
};
const LIMITS = [0.0025, 0.005, 0.0075, 0.01, 0.0125, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.07, 0.1];
const DELTAS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.3];
const SHOWN = 24; // images of each stage
const percent = (x, digits = 1) => `${(100 * x).toFixed(digits)}\u00a0%`;
const points = (x) => `${+(100 * x).toFixed(2)} ${x === 0.01 ? "point" : "points"}`;
const signed = (x) => (Math.abs(x) < 5e-5 ? "0.00" : `${x < 0 ? "\u2212" : "+"}${Math.abs(100 * x).toFixed(2)}`);

// ---- what was recorded

const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const opened = (part) => ({
  n: part.n,
  labels: bytes(part.labels),
  said: part.said.map(bytes),
  sure: part.sure.map((text) => new Float32Array(bytes(text).buffer)),
});
const { stages, reference } = RECORDED;
const parts = { calibrate: opened(RECORDED.parts.calibrate), test: opened(RECORDED.parts.test) };
const pixels = bytes(RECORDED.images);
const place = RECORDED.points.findIndex((p) => p.single && p.stages[0] === reference);
const large = stages[reference];

/** All points tested on the first n images, and what is promised of them. */
function answered(asked) {
  const tested = RECORDED.points.map((p) => Certificate.replay(p, parts.calibrate, asked.n, reference));
  const all = RECORDED.points.map((p, i) => ({ ...p, tested: tested[i] }));
  return { points: all, ...Certificate.certify(all, place, asked) };
}

function asked() {
  return {
    limit: LIMITS[+$("limit").value],
    delta: DELTAS[+$("delta").value],
    n: +$("n").value,
    risk: document.querySelector("input[name=risk]:checked").value,
  };
}

// ---- the page

function show() {
  const given = asked(), found = answered(given);
  const promised = found.chosen !== null;
  const runs = promised ? found.chosen : place;
  const test = Certificate.replay(RECORDED.points[runs], parts.test, parts.test.n, reference);
  says(given);
  outcome(given, found, test);
  drawFrontier(given, found);
  drawWalk(given, found);
  drawExits(RECORDED.points[runs], test, promised);
  table(given, found);
  code(given);
}

function says({ limit, delta, n, risk }) {
  const lost = risk === "accuracy_drop";
  const words = {
    limit: `${points(limit)} of ${lost ? "accuracy" : "new errors"}`,
    delta: `${percent(delta, 0)}: sure to ${percent(1 - delta, 0)}`,
    n: `${n} images`,
  };
  for (const [name, text] of Object.entries(words)) {
    $(`${name}-says`).textContent = text;
    $(name).setAttribute("aria-valuetext", text);
  }
  $("risk-says").textContent = lost
    ? `Errors that ${large} alone would not make, less those that it would.`
    : `Errors that ${large} alone would not make; what is corrected does not count.`;
}

const loss = (found, risk) => (found.lost - (risk === "accuracy_drop" ? found.won : 0)) / found.n;

function outcome(given, found, test) {
  const { limit, delta, n, risk } = given;
  const promised = found.chosen !== null;
  $("outcome").className = promised ? "outcome" : "outcome no";
  $("badge").textContent = promised ? "Certified" : "Not certified";
  const what = risk === "accuracy_drop" ? "loses at most" : "makes new errors in at most";
  const much = risk === "accuracy_drop" ? `${points(limit)} of accuracy` : `${percent(limit, limit < 0.01 ? 2 : 1)} of the images`;
  let sentence;
  if (promised) {
    const point = found.points[found.chosen];
    sentence = `With a confidence of ${percent(1 - delta, 0)}, ${chain(point)} ${what} ${much}, for ${percent(point.tested.cost)} of what ${large} costs.`;
  } else {
    const enough = found.needed !== null && found.needed > n ? ` About ${found.needed.toLocaleString("en")} images would do.` : "";
    sentence = `${n} labeled images do not show that any threshold ${what} ${much}.${enough} So ${large} runs alone.`;
  }
  $("sentence").textContent = sentence;
  const kept = loss(test, risk) <= limit;
  const keys = [
    [promised ? percent(found.points[found.chosen].tested.cost) : "100\u00a0%", `of the cost of ${large} alone`, promised ? `${(1 / found.points[found.chosen].tested.cost).toFixed(1)} times less work` : "nothing is saved"],
    [promised ? found.pValue.toPrecision(2) : found.p.length ? found.p[0].toPrecision(2) : "\u2013", "p-value of a broken promise", promised ? `at most delta = ${delta}` : found.p.length ? `above delta = ${delta}, at the first test` : `it takes ${found.fewest} images at least`],
    [risk === "accuracy_drop" ? signed(-loss(test, risk)) : percent(loss(test, risk)), risk === "accuracy_drop" ? "points, on new images" : "new errors, on new images", `${parts.test.n} that nobody has looked at: ${kept ? "kept" : "not kept there"}`],
    [percent(test.accuracy), "right, on new images", `${large} alone: ${percent(alone.accuracy)}`],
  ];
  $("keys").replaceChildren(...keys.map(([value, name, more]) => {
    const key = make("div", undefined, "key");
    key.append(make("dt", name), make("dd", value, "value"), make("dd", more, "more"));
    return key;
  }));
}

const chain = (point) => {
  const names = point.stages.map((k) => stages[k]);
  return names.length === 1 ? `${names[0]} alone` : `the cascade of ${names.slice(0, -1).join(", ")} and ${names[names.length - 1]}`;
};
const alone = Certificate.replay(RECORDED.points[place], parts.test, parts.test.n, reference);

// ---- pictures

const NS = "http://www.w3.org/2000/svg";
function shape(tag, given, text) {
  const made = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(given)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}
function cross(x, y, r = 4) {
  return shape("path", { class: "failed", d: `M${x - r} ${y - r}L${x + r} ${y + r}M${x - r} ${y + r}L${x + r} ${y - r}` });
}
function width() { return Math.max(300, Math.round($("frontier").getBoundingClientRect().width) || 640); }

/** How each place of the order came out: "passed", "failed", or "waiting". */
function fates({ order, p }, delta) {
  return new Map(order.map((i, k) => [i, k >= p.length ? "waiting" : p[k] <= delta ? "passed" : "failed"]));
}

function drawFrontier({ limit, delta, risk }, found) {
  const w = width(), h = w < 480 ? 300 : 340, left = 42, right = 12, top = 26, bottom = 42;
  const fate = fates(found, delta), lost = (p) => -loss(p.tested, risk);
  const lowest = Math.min(-1.9 * limit, -0.03), highest = Math.max(0.012, ...found.points.map(lost)) + 0.004;
  const cheapest = Math.min(...found.points.map((p) => p.tested.cost));
  const x = (cost) => left + ((w - left - right) * Math.log(cost / (cheapest / 1.15))) / Math.log(1.15 / (cheapest / 1.15));
  const y = (change) => top + ((h - top - bottom) * (highest - change)) / (highest - lowest);
  const parts = [shape("text", { x: 0, y: 12 }, `points of accuracy${risk === "accuracy_drop" ? "" : " lost to new errors"}, against ${large}`)];
  const step = highest - lowest > 0.16 ? 0.05 : highest - lowest > 0.08 ? 0.02 : 0.01;
  for (let v = Math.ceil(lowest / step) * step; v <= highest; v += step) {
    parts.push(shape("line", { class: "grid", x1: left, x2: w - right, y1: y(v), y2: y(v) }));
    parts.push(shape("text", { x: left - 8, y: y(v) + 4, "text-anchor": "end" }, Math.abs(v) < 1e-9 ? "0" : signed(v).replace(/\.00$/, "")));
  }
  for (const tick of [0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1]) {
    if (tick < cheapest / 1.15 || (w < 480 && [0.03, 0.3].includes(tick))) continue;
    parts.push(shape("text", { x: x(tick), y: h - bottom + 18, "text-anchor": "middle" }, String(tick)));
    parts.push(shape("line", { class: "axis", x1: x(tick), x2: x(tick), y1: h - bottom, y2: h - bottom + 4 }));
  }
  parts.push(shape("text", { x: w - right, y: h - 4, "text-anchor": "end" }, `cost per image, ${large} = 1 (log scale)`));
  parts.push(shape("rect", { class: "band", x: left, width: w - left - right, y: y(0), height: y(-limit) - y(0) }));
  parts.push(shape("line", { class: "level", x1: left, x2: w - right, y1: y(0), y2: y(0) }));
  parts.push(shape("line", { class: "limit", x1: left, x2: w - right, y1: y(-limit), y2: y(-limit) }));
  const inside = (p) => lost(p) >= lowest;
  found.points.forEach((p, i) => {
    if (!fate.has(i) && !p.single && inside(p)) parts.push(shape("circle", { class: "other", cx: x(p.tested.cost), cy: y(lost(p)), r: 2.2 }));
  });
  const way = found.order.map((i) => found.points[i]).filter(inside).map((p) => `${x(p.tested.cost)},${y(lost(p))}`);
  parts.push(shape("polyline", { class: "way", points: way.join(" ") }));
  found.points.forEach((p, i) => {
    if (!p.single || !inside(p)) return;
    const [cx, cy] = [x(p.tested.cost), y(lost(p))];
    const how = fate.get(i) === "failed" ? "alone not" : "alone";
    parts.push(shape("path", { class: how, d: `M${cx} ${cy - 6}L${cx + 6} ${cy}L${cx} ${cy + 6}L${cx - 6} ${cy}Z` }));
    if (p.cost === 1) parts.push(shape("text", { class: "halo", x: left + 4, y: cy - 6 }, `${large} alone`));
    else parts.push(shape("text", { class: "halo", x: cx + 10, y: cy + 15 }, `${stages[p.stages[0]]} alone`));
  });
  for (const [i, how] of fate) {
    const p = found.points[i];
    if (!inside(p) || p.single) continue;
    const [cx, cy] = [x(p.tested.cost), y(lost(p))];
    parts.push(how === "failed" ? cross(cx, cy) : shape("circle", { class: how, cx, cy, r: 4.6 }));
  }
  const below = y(-limit) + 15 < h - bottom;
  parts.push(shape("text", { class: "halo", x: left + 4, y: y(-limit) + (below ? 15 : -6) }, `the loss allowed`));
  if (found.chosen !== null) {
    const p = found.points[found.chosen], [cx, cy] = [x(p.tested.cost), y(lost(p))];
    parts.push(shape("circle", { class: "chosen", cx, cy, r: 9 }));
    const up = cy > top + 26;
    parts.push(shape("text", { class: "halo strong", x: Math.min(cx, w - right - 30), y: up ? cy - 15 : cy + 24, "text-anchor": "middle" }, "promised"));
  }
  $("frontier").setAttribute("viewBox", `0 0 ${w} ${h}`);
  $("frontier").replaceChildren(...parts);
  $("frontier-says").textContent = `Each point is one setting of the thresholds, as measured on the ${found.points[0].tested.n} labeled images. Inside the green band the loss is allowed; the promise also needs room for chance.`;
}

function legend() {
  const icon = (...parts) => { const svg = shape("svg", { viewBox: "0 0 16 16" }); svg.append(...parts); return svg; };
  const dot = (name) => icon(shape("circle", { class: name, cx: 8, cy: 8, r: 4.6 }));
  const entries = [
    [dot("passed"), "passed its test"],
    [icon(cross(8, 8)), "failed: the walk ends"],
    [dot("waiting"), "not tested"],
    [dot("other"), "not on the way"],
    [icon(shape("path", { class: "alone", d: "M8 2L14 8L8 14L2 8Z" })), "one network alone"],
  ];
  $("legend").replaceChildren(...entries.map(([svg, text]) => { const li = make("li"); li.append(svg, make("span", text)); return li; }));
}

function drawWalk({ delta }, found) {
  const w = width(), h = 196, left = 56, right = 12, top = 26, bottom = 40;
  const p = found.p, least = Math.min(delta / 10, ...p, 1e-3);
  const low = Math.max(1e-6, 10 ** Math.floor(Math.log10(least)));
  const y = (value) => top + ((h - top - bottom) * Math.log(Math.max(value, low))) / Math.log(low);
  const count = Math.max(2, found.order.length);
  const x = (k) => left + 10 + ((w - left - right - 20) * k) / (count - 1);
  const parts = [shape("text", { x: 0, y: 12 }, "p-value (log scale): small is safe")];
  for (let v = 1; v >= low * 0.99; v /= 10) {
    parts.push(shape("line", { class: "grid", x1: left, x2: w - right, y1: y(v), y2: y(v) }));
    parts.push(shape("text", { x: left - 8, y: y(v) + 4, "text-anchor": "end" }, v >= 0.001 ? String(+v.toPrecision(1)) : `1e${Math.round(Math.log10(v))}`));
  }
  parts.push(shape("rect", { class: "band", x: left, width: w - left - right, y: y(delta), height: h - bottom - y(delta) }));
  parts.push(shape("line", { class: "limit", x1: left, x2: w - right, y1: y(delta), y2: y(delta) }));
  parts.push(shape("text", { class: "halo", x: w - right, y: y(delta) - 6, "text-anchor": "end" }, `delta = ${delta}`));
  found.order.forEach((i, k) => {
    if (k >= p.length) parts.push(shape("circle", { class: "waiting", cx: x(k), cy: h - bottom + 9, r: 2.6 }));
  });
  if (p.length) parts.push(shape("polyline", { class: "way", points: p.map((v, k) => `${x(k)},${y(v)}`).join(" ") }));
  p.forEach((value, k) => {
    parts.push(value <= delta ? shape("circle", { class: "passed", cx: x(k), cy: y(value), r: 4.6 }) : cross(x(k), y(value)));
    if (found.order[k] === found.chosen) parts.push(shape("circle", { class: "chosen", cx: x(k), cy: y(value), r: 9 }));
  });
  parts.push(shape("text", { x: left, y: h - 4 }, "safest first"));
  parts.push(shape("text", { x: w - right, y: h - 4, "text-anchor": "end" }, "then cheaper and cheaper"));
  $("walk").setAttribute("viewBox", `0 0 ${w} ${h}`);
  $("walk").replaceChildren(...parts);
}

function drawExits(point, test, promised) {
  $("exits-says").textContent = `The ${test.n} new images under what ${promised ? "is promised" : "runs then"}; a wrong answer has a red frame.`;
  const rows = stages.map((name, k) => {
    const at = point.stages.indexOf(k);
    const share = at < 0 ? 0 : test.leaving[at] / test.n;
    const row = make("div", undefined, "row");
    const who = make("div", name, "who");
    const threshold = at < 0 ? undefined : point.thresholds[at];
    who.append(make("small", at < 0 ? "not used" : threshold === undefined ? "takes the rest" : threshold === null ? "nobody leaves" : `if sure to ${percent(threshold)}`));
    const track = make("div", undefined, "track"), bar = make("i"), text = make("b", at < 0 ? "" : percent(share));
    bar.style.width = `${100 * share}%`;
    if (share > 0.2) { text.style.left = "0"; text.style.color = "var(--on-blue)"; } else text.style.left = `${100 * share}%`;
    if (at < 0) bar.style.display = "none";
    track.append(bar, text);
    const side = make("div");
    side.append(track, images(test, k));
    row.append(who, side);
    return row;
  });
  $("exits").replaceChildren(...rows);
}

function images(test, stage) {
  const box = make("div", undefined, "tiles");
  const there = [];
  for (let i = 0; i < test.n; i++) if (test.left[i] === stage) there.push(i);
  if (!there.length) box.className = "hidden";
  const wrong = (i) => parts.test.said[stage][i] !== parts.test.labels[i];
  const shown = there.slice(0, SHOWN);
  for (const i of shown) {
    const canvas = make("canvas"), label = RECORDED.class_names[parts.test.labels[i]];
    const said = RECORDED.class_names[parts.test.said[stage][i]];
    canvas.title = wrong(i) ? `${label}, taken for ${said}` : label;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", canvas.title);
    if (wrong(i)) canvas.className = "wrong";
    paint(canvas, i);
    box.append(canvas);
  }
  const more = there.length > shown.length ? `and ${there.length - shown.length} more; ` : "";
  box.append(make("span", `${more}${there.filter(wrong).length} of ${there.length} wrong`));
  return box;
}

function paint(canvas, i) {
  canvas.width = canvas.height = 8;
  const context = canvas.getContext("2d"), image = context.createImageData(8, 8);
  for (let k = 0; k < 64; k++) {
    const light = 255 - (255 * pixels[64 * i + k]) / 16;
    image.data.set([light, light, light, 255], 4 * k);
  }
  context.putImageData(image, 0, 0);
}

function table({ delta, risk }, found) {
  const head = make("tr");
  for (const word of ["networks", "sure to", "cost", "lost", "corrected", "p"]) { const cell = make("th", word); cell.scope = "col"; head.append(cell); }
  $("table").tHead.replaceChildren(head);
  const rows = found.order.map((i, k) => {
    const p = found.points[i], row = make("tr", undefined, i === found.chosen ? "marked" : "");
    const sure = p.thresholds.map((t) => (t === null ? "never" : percent(t))).join(", ") || "\u2013";
    const cells = [p.stages.map((s) => stages[s]).join(" \u2192 "), sure, percent(p.tested.cost), p.tested.lost, p.tested.won, k < found.p.length ? found.p[k].toPrecision(2) : "not tested"];
    for (const cell of cells) row.append(make("td", String(cell)));
    return row;
  });
  $("table").tBodies[0].replaceChildren(...rows);
}

function code({ limit, delta, n, risk }) {
  const lines = [
    `frontier = offramp.fit(`,
    `    trace, "threshold", combines=["last"], confidences=["max_prob"]`,
    `)`,
    `choice = frontier.certify({"${risk}": ${limit}}, delta=${delta})`,
    `print(choice.sentence)`,
  ];
  if (n < parts.calibrate.n) lines.unshift(`# with ${n} examples in the split "calibrate"`);
  $("code").textContent = lines.join("\n");
}

// ---- begin

function begin() {
  const times = Math.round(RECORDED.costs[reference] / RECORDED.costs[0]);
  $("intro").textContent = `Three small networks read handwritten digits: ${stages.join(", ")}. The last costs ${times} times as much as the first and is right in ${percent(alone.accuracy)} of new images. Easy images can leave early. How many, if little may be lost, and you want to be sure?`;
  $("limit").max = LIMITS.length - 1;
  $("limit").value = LIMITS.indexOf(0.02);
  $("delta").max = DELTAS.length - 1;
  $("delta").value = DELTAS.indexOf(0.1);
  $("n").max = parts.calibrate.n;
  $("n").value = parts.calibrate.n;
  legend();
  for (const input of document.querySelectorAll(".controls input")) input.addEventListener("input", show);
  $("limit").form.addEventListener("submit", (event) => event.preventDefault());
  new ResizeObserver(() => { const given = asked(), found = answered(given); drawFrontier(given, found); drawWalk(given, found); }).observe($("frontier").parentElement);
  show();
}
begin();
