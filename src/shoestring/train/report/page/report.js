// Draws the curves of a report as SVG from the values that stand in the page. Nothing is fetched; all text goes in as
// text. A chart is drawn anew when its width, the axis below or the choice of runs changes.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 240, LEFT = 58, RIGHT = 14, TOP = 16, BOTTOM = 26;
const COLOURS = 8;
const shown = data.runs.map(() => true);
const many = data.runs.length > 1;
const axis = document.getElementById("axis");
const logarithmic = document.getElementById("log");

function make(name, attributes, parent, text) {
  const one = name === "div" || name === "span" || name === "b" || name === "button" || name === "figure" ||
    name === "figcaption" || name === "h3" ? document.createElement(name) : document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) one.setAttribute(key, value);
  if (text !== undefined) one.textContent = text;
  if (parent) parent.append(one);
  return one;
}

// --- numbers as people read them ---

function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e12) return trimmed(value / 1e12) + "T";
  if (size >= 1e9) return trimmed(value / 1e9) + "B";
  if (size >= 1e6) return trimmed(value / 1e6) + "M";
  if (size >= 1e4) return trimmed(value / 1e3) + "k";
  if (size >= 1e-3) return Number(value.toPrecision(4)).toLocaleString("en", { maximumFractionDigits: 6 });
  return trimmed(value);
}

function trimmed(value) {
  return String(Number(value.toPrecision(3)));
}

function bytes(value) {
  if (value >= 1e9) return trimmed(value / 1e9) + " GB";
  if (value >= 1e6) return trimmed(value / 1e6) + " MB";
  if (value >= 1e3) return trimmed(value / 1e3) + " kB";
  return trimmed(value) + " B";
}

function clock(seconds) {
  const whole = Math.round(seconds);
  const two = (number) => String(number).padStart(2, "0");
  if (whole < 3600) return `${Math.floor(whole / 60)}:${two(whole % 60)}`;
  return `${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
}

const UNITS = { number: short, bytes: bytes, share: (value) => trimmed(100 * value) + "%" };
const AXES = { step: (value) => Math.round(value).toLocaleString("en"), tokens: short, seconds: clock };

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((each) => each * power >= rough) || 10);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) found.push(n * step);
  return found;
}

function clockTicks(low, high, count) {
  const steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400];
  const step = steps.find((each) => (high - low) / each <= count);
  if (!step) return ticks(low, high, count);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high; at += step) found.push(at);
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    for (const each of [1, 2, 5]) {
      const tick = each * 10 ** power;
      if (tick >= low * 0.999 && tick <= high * 1.001) found.push(tick);
    }
  }
  if (found.length > 8) return found.filter((tick) => Math.abs(Math.log10(tick) % 1) < 1e-9);
  return found.length > 1 ? found : ticks(low, high, 4);
}

// --- what is drawn ---

function runningMean(values) {
  const width = Math.max(1, Math.round(values.length * 0.03));
  let total = 0;
  return values.map((value, n) => {
    total += value - (n >= width ? values[n - width] : 0);
    return total / Math.min(n + 1, width);
  });
}

function range(chart, curves, levels, isLog) {
  let low = Infinity, high = -Infinity;
  for (const curve of curves) {
    // One value in fifty may lie beyond the picture, if it is far away: a spike must not press all others flat.
    const tops = [...(curve.high || curve.mean)].sort((a, b) => a - b);
    const bottoms = [...(curve.low || curve.mean)].sort((a, b) => a - b);
    const least = isLog ? bottoms.findIndex((value) => value > 0) : 0;
    if (least < 0) continue;
    const usual = tops[Math.floor((tops.length - 1) * 0.98)], top = tops[tops.length - 1];
    const far = curve.style === "noisy" && top - bottoms[least] > 4 * (usual - bottoms[least]) && usual > bottoms[least];
    high = Math.max(high, far ? usual : top);
    low = Math.min(low, bottoms[least]);
  }
  for (const level of levels) high = Math.max(high, level.value);
  if (chart.zero) low = Math.min(0, low);
  if (!isFinite(low) || !isFinite(high)) return [0, 1];
  if (isLog) return [low, Math.max(high, low * 1.01)].map((value, n) => value * (n ? 1.05 : 0.95));
  if (high <= low) return [low - Math.abs(low) * 0.1 - 1e-12, high + Math.abs(high) * 0.1 + 1e-12];
  const room = 0.05 * (high - low);
  return [chart.zero && low >= 0 ? 0 : low - room, high + room];
}

function colourOf(curve) {
  return "colour" + (many ? curve.run : curve.colour) % COLOURS;
}

function seriesOf(chart) {
  return [...new Set([...chart.curves, ...chart.levels].map((one) => one.name))];
}

function dash(chart, curve) {
  return many ? ["", " second", " third"][seriesOf(chart).indexOf(curve.name) % 3] : "";
}

function path(xs, ys) {
  return xs.map((x, n) => (n ? "L" : "M") + x.toFixed(1) + " " + ys[n].toFixed(1)).join("");
}

class Chart {
  constructor(values, parent, number) {
    this.chart = values;
    this.figure = make("figure", { class: "chart" }, parent);
    const caption = make("figcaption", {}, this.figure);
    make("h3", {}, caption, values.title);
    if (values.axis) make("span", { class: "quiet" }, caption, values.axis);
    this.key = make("div", { class: "key" }, this.figure);
    this.svg = make("svg", { class: "plot", role: "img", tabindex: "0", height: HEIGHT }, this.figure);
    this.values = make("div", { class: "values", hidden: "" }, this.figure);
    this.clip = "clip" + number;
    this.fraction = null;
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerdown", (event) => this.point(event));
    // A finger that is lifted leaves the values standing.
    this.svg.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && this.hide());
    this.svg.addEventListener("blur", () => this.hide());
    this.svg.addEventListener("keydown", (event) => this.press(event));
  }

  draw() {
    const chart = this.chart, by = axis.value, svg = this.svg;
    const width = Math.max(this.figure.clientWidth, 200);
    const curves = chart.curves.filter((curve) => shown[curve.run]);
    const levels = chart.levels.filter((level) => shown[level.run]);
    const isLog = logarithmic.checked && chart.log && curves.some((curve) => curve.mean.some((value) => value > 0));
    const [low, high] = range(chart, curves, levels, isLog);
    const last = Math.max(1e-9, ...curves.map((curve) => curve[by][curve[by].length - 1]));
    const first = by === "step" ? Math.min(1, last / 2) : 0;
    const right = width - RIGHT, bottom = HEIGHT - BOTTOM;
    const x = (value) => LEFT + ((value - first) / (last - first)) * (right - LEFT);
    const y = isLog
      ? (value) => bottom - (Math.log(Math.max(value, 1e-300) / low) / Math.log(high / low)) * (bottom - TOP)
      : (value) => bottom - ((value - low) / (high - low)) * (bottom - TOP);
    Object.assign(this, { curves, x, y, first, last, right, bottom, by });
    this.hide();
    svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    svg.replaceChildren();
    svg.setAttribute("aria-label", this.summary());
    const clip = make("clipPath", { id: this.clip }, make("defs", {}, svg));
    make("rect", { x: LEFT, y: TOP - 4, width: right - LEFT + 4, height: bottom - TOP + 8 }, clip);
    this.axes(low, high, isLog);
    const inside = make("g", { "clip-path": `url(#${this.clip})` }, svg);
    this.marks(inside);
    for (const level of levels) {
      const at = y(level.value);
      make("line", { class: `level ${colourOf(level)}`, x1: LEFT, x2: right, y1: at, y2: at }, inside);
    }
    for (const curve of curves) this.curve(curve, inside);
    this.drawKey();
  }

  axes(low, high, isLog) {
    const { svg, x, y, right, bottom, by } = this;
    for (const tick of isLog ? logTicks(low, high) : ticks(low, high, 5)) {
      const at = y(tick);
      if (at < TOP - 2 || at > bottom + 2) continue;
      make("line", { class: "grid", x1: LEFT, x2: right, y1: at, y2: at }, svg);
      make("text", { x: LEFT - 6, y: at + 4, "text-anchor": "end" }, svg, UNITS[this.chart.unit](tick));
    }
    make("line", { class: "axis", x1: LEFT, x2: right, y1: bottom, y2: bottom }, svg);
    const count = Math.max(2, Math.floor((right - LEFT) / 62));
    const below = (by === "seconds" ? clockTicks : ticks)(this.first, this.last, count);
    for (const tick of below.filter((tick) => by !== "step" || Number.isInteger(tick))) {
      const at = x(tick), end = at > right - 20 ? "end" : "middle";
      make("line", { class: "axis", x1: at, x2: at, y1: bottom, y2: bottom + 4 }, svg);
      make("text", { x: at, y: bottom + 17, "text-anchor": end }, svg, AXES[by](tick));
    }
  }

  marks(parent) {
    const marks = data.marks.filter((mark) => shown[mark.run]).map((mark) => ({ ...mark, at: this.x(mark[this.by]) }));
    marks.sort((a, b) => a.at - b.at);
    marks.forEach(({ at, what }, n) => {
      make("line", { class: "mark", x1: at, x2: at, y1: TOP - 4, y2: this.bottom }, parent);
      const next = n + 1 < marks.length ? marks[n + 1].at : this.right;
      if (at + 6.4 * what.length + 6 < next) make("text", { x: at + 3, y: TOP + 5 }, parent, what);
    });
  }

  curve(curve, parent) {
    const { x, y } = this, xs = curve[this.by].map(x), colour = colourOf(curve);
    const kind = colour + dash(this.chart, curve);
    if (curve.low) {
      const upper = path(xs, curve.high.map(y));
      const lower = path([...xs].reverse(), [...curve.low].reverse().map(y)).replace("M", "L");
      make("path", { class: `band ${colour}`, d: upper + lower + "Z" }, parent);
    }
    if (curve.style === "noisy" && !curve.low && curve.mean.length > 30) {
      make("path", { class: `curve raw ${kind}`, d: path(xs, curve.mean.map(y)) }, parent);
      make("path", { class: `curve ${kind}`, d: path(xs, runningMean(curve.mean).map(y)) }, parent);
    } else {
      const thin = curve.style === "dots" ? " thin" : "";
      make("path", { class: `curve${thin} ${kind}`, d: path(xs, curve.mean.map(y)) }, parent);
    }
    if ((curve.style === "dots" && xs.length <= 60) || xs.length === 1) {
      xs.forEach((at, n) => make("circle", { class: `dot ${colour}`, cx: at, cy: y(curve.mean[n]), r: 3.4 }, parent));
    }
  }

  drawKey() {
    const names = seriesOf(this.chart);
    this.key.replaceChildren();
    if (names.length < 2) return;
    for (const name of names) {
      const curve = this.chart.curves.find((one) => one.name === name);
      const level = curve ? null : this.chart.levels.find((one) => one.name === name);
      const item = make("span", {}, this.key);
      const sign = make("svg", { viewBox: "0 0 22 10", "aria-hidden": "true" }, item);
      const kind = many ? "colour7" + (curve ? dash(this.chart, curve) : "") : colourOf(curve || level);
      make("line", { class: `${curve ? "curve" : "level"} ${kind}`, x1: 0, x2: 22, y1: 5, y2: 5 }, sign);
      if (curve && curve.style === "dots") make("circle", { class: `dot ${kind}`, cx: 11, cy: 5, r: 3.4 }, sign);
      item.append(name);
    }
  }

  summary() {
    const ends = this.curves.map((curve) => {
      const end = UNITS[this.chart.unit](curve.mean[curve.mean.length - 1]);
      return `${many ? data.runs[curve.run].name + ", " : ""}${curve.name} ends at ${end}`;
    });
    return `${this.chart.title}: ${ends.join("; ") || "no run is shown"}`;
  }

  // --- values under the pointer ---

  point(event) {
    const box = this.svg.getBoundingClientRect();
    this.show((event.clientX - box.left - LEFT) / (this.right - LEFT));
  }

  press(event) {
    const step = { ArrowLeft: -0.02, ArrowRight: 0.02, Home: -2, End: 2 }[event.key];
    if (event.key === "Escape") this.hide();
    if (step === undefined) return;
    event.preventDefault();
    this.show((this.fraction === null ? (step < 0 ? 1 : 0) : this.fraction) + step);
  }

  show(fraction) {
    if (!this.curves.length) return;
    this.fraction = Math.min(1, Math.max(0, fraction));
    const at = this.first + this.fraction * (this.last - this.first);
    this.group?.remove();
    this.group = make("g", {}, this.svg);
    const across = this.x(at), unit = UNITS[this.chart.unit];
    make("line", { class: "hover", x1: across, x2: across, y1: TOP, y2: this.bottom }, this.group);
    this.values.replaceChildren();
    make("div", { class: "quiet" }, this.values, `${axis.selectedOptions[0].textContent} ${AXES[this.by](at)}`);
    for (const mark of data.marks.filter((one) => shown[one.run] && Math.abs(this.x(one[this.by]) - across) < 5)) {
      make("div", { class: "quiet" }, this.values, (many ? data.runs[mark.run].name + ": " : "") + mark.what);
    }
    const near = 0.02 * (this.last - this.first);
    for (const curve of this.curves) {
      const places = curve[this.by];
      if (at < places[0] - near || at > places[places.length - 1] + near) continue;
      const n = nearest(curve[this.by], at), value = curve.mean[n];
      const row = make("div", {}, this.values);
      const name = make("span", {}, row);
      make("span", { class: `swatch ${colourOf(curve)}` }, name);
      name.append((many ? data.runs[curve.run].name + (seriesOf(this.chart).length > 1 ? ", " : "") : "") +
        (many && seriesOf(this.chart).length < 2 ? "" : curve.name));
      const spread = curve.low && curve.low[n] !== curve.high[n];
      make("b", {}, row, unit(value) + (spread ? ` (${unit(curve.low[n])} to ${unit(curve.high[n])})` : ""));
      const height = this.y(value);
      if (height >= TOP - 5 && height <= this.bottom + 5) {
        const colour = colourOf(curve);
        make("circle", { class: `dot ${colour}`, cx: this.x(curve[this.by][n]), cy: height, r: 4 }, this.group);
      }
    }
    this.values.hidden = false;
    const room = this.figure.clientWidth - this.values.offsetWidth;
    const beside = across + 14 <= room ? across + 14 : across - 14 - this.values.offsetWidth;
    this.values.style.left = Math.max(0, Math.min(room, beside)) + "px";
    const below = this.figure.clientWidth < 480; // where there is no room beside what they are of
    this.values.style.top = this.key.offsetTop + this.key.offsetHeight + (below ? HEIGHT : TOP) + "px";
  }

  hide() {
    this.group?.remove();
    this.values.hidden = true;
    this.fraction = null;
  }
}

function nearest(places, at) {
  let low = 0, high = places.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (places[middle] < at) low = middle + 1;
    else high = middle;
  }
  return low > 0 && at - places[low - 1] < places[low] - at ? low - 1 : low;
}

// --- the page ---

const parent = document.getElementById("charts");
const charts = data.charts.map((values, number) => new Chart(values, parent, number));
const drawAll = () => charts.forEach((chart) => chart.draw());
const legend = document.getElementById("legend");
if (many) {
  data.runs.forEach((run, number) => {
    const button = make("button", { type: "button", "aria-pressed": "true" }, legend);
    make("span", { class: `swatch colour${number % COLOURS}` }, button);
    button.append(run.name);
    button.addEventListener("click", () => {
      shown[number] = !shown[number];
      button.setAttribute("aria-pressed", String(shown[number]));
      drawAll();
    });
  });
}
document.getElementById("controls").hidden = !charts.length;
axis.addEventListener("change", drawAll);
logarithmic.addEventListener("change", drawAll);
let drawnWidth = 0;
new ResizeObserver(() => {
  if (parent.clientWidth !== drawnWidth) {
    drawnWidth = parent.clientWidth;
    drawAll();
  }
}).observe(parent);
drawAll();
