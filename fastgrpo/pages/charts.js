"use strict";

/* ---- numbers ---- */

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 2 });
const plain = (value, digits) => value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const minus = (written) => written.replace("-", "\u2212");
const power = (value, digits) => value.toExponential(digits).replace("e+", "e");

// A value as the hover shows it, with four digits.
function shown(value, percent) {
  if (value === null || value === undefined) return "\u2013";
  if (percent) return minus(`${plain(100 * value, Math.abs(value) < 0.01 && value !== 0 ? 3 : 1)}%`);
  const size = Math.abs(value);
  if (size >= 1e6) return minus(compact.format(value));
  if (size > 0 && size < 1e-3) return minus(power(value, 2));
  return minus(value.toLocaleString("en", size >= 1000 ? { maximumFractionDigits: 0 } : { maximumSignificantDigits: 4 }));
}

// The ticks of an axis: as many digits as tell neighbours apart.
function ticks(values, step, percent) {
  const most = Math.max(...values.filter((value) => value !== null).map(Math.abs));
  const digits = (size) => [0, 1, 2, 3, 4, 5, 6, 7, 8].find((n) => Math.abs(size * 10 ** n - Math.round(size * 10 ** n)) < 1e-6) ?? 8;
  return values.map((value) => {
    if (value === null) return "";
    if (percent) return minus(`${plain(100 * value, digits(100 * step))}%`);
    if (value === 0) return "0";
    if (most >= 1e5) return minus(compact.format(value));
    if (most < 1e-3) return minus(`${Number((value / 10 ** Math.floor(Math.log10(most))).toPrecision(3))}e${Math.floor(Math.log10(most))}`);
    return minus(plain(value, digits(step)));
  });
}

/* ---- theme ---- */

const dark = matchMedia("(prefers-color-scheme: dark)");
let colours = {};

function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["ink", "muted", "line", "card", "band", "band-line", "mark-line"])
    colours[name] = style.getPropertyValue(`--${name}`).trim();
}

const faint = (colour, share) => `${colour}${Math.round(255 * share).toString(16).padStart(2, "0")}`; // of #rrggbb

/* ---- one chart ---- */

const FEW = 40; // up to so many points, each is marked
const HEIGHT = { small: 120, normal: 230 };

class Chart {
  // `data` is one of page.charts, `axis` the x values of its points, `group` the charts that are zoomed together.
  constructor(holder, data, axis, group) {
    Object.assign(this, { holder, data, axis, group, hidden: new Set(), log: false });
    this.x = axis.first.map((first, i) => (axis.last ? (first + axis.last[i]) / 2 : first));
    this.few = this.x.length <= FEW && data.shaded !== false;
    const width = Math.max(1, Math.round(group.window / (axis.size ?? 1)));
    this.width = data.averaged ? width : 1;
    for (const one of data.series) one.mean = this.width > 1 ? runningMean(one.values, width) : one.values;
    this.log = isSkewed(data);
    this.addKey();
    this.draw();
    new ResizeObserver(() => this.resize()).observe(holder);
    holder.addEventListener("keydown", (event) => this.onKey(event));
  }

  // Above the chart: what is drawn, and its values at the cursor or, without one, at the end.
  addKey() {
    this.key = element("div", { className: "key" });
    this.at = element("span", { className: "at" });
    this.readouts = this.data.series.map((one) => {
      const value = element("strong"), name = element("span", { textContent: one.name });
      const item = element(this.data.series.length > 1 ? "button" : "span", { className: "item" });
      const swatch = element("i");
      swatch.style.background = one.colour;
      item.append(...(this.data.series.length > 1 ? [swatch, name, value] : [value]));
      if (this.data.series.length > 1) {
        Object.assign(item, { type: "button", title: "show or hide" });
        item.setAttribute("aria-pressed", "true");
        item.onclick = () => this.toggle(one, item);
      }
      this.key.append(item);
      return value;
    });
    this.key.prepend(this.at);
    if (canBeLog(this.data)) {
      const button = element("button", { type: "button", className: "log", textContent: "log", title: "logarithmic axis" });
      button.setAttribute("aria-pressed", this.log);
      button.onclick = () => {
        this.log = !this.log;
        button.setAttribute("aria-pressed", this.log);
        this.redraw();
      };
      this.key.append(button);
    }
    this.holder.before(this.key);
  }

  toggle(one, item) {
    if (!this.hidden.delete(one)) this.hidden.add(one);
    item.setAttribute("aria-pressed", String(!this.hidden.has(one)));
    this.redraw();
  }

  redraw() {
    this.plot.destroy();
    this.draw();
  }

  draw() {
    const { columns, series, bands } = this.data.stacked ? this.stack() : this.lines();
    this.plot = new uPlot(this.options(series, bands), [this.x, ...columns], this.holder);
  }

  // Thin lines or bands of single steps behind bold running means.
  lines() {
    const columns = [], series = [{}], bands = [];
    this.shownIn = new Map();
    const add = (values, options) => { columns.push(values); series.push({ points: { show: false }, ...options }); };
    for (const one of this.data.series.filter((one) => !this.hidden.has(one))) {
      const { colour } = one;
      if (one.low && this.data.shaded !== false) {
        bands.push({ series: [series.length, series.length + 1], fill: faint(colour, 0.2) });
        for (const edge of [one.high, one.low]) add(edge, { stroke: faint(colour, 0.32), width: 1, hidden: true }); // a spike must be seen
      } else if (this.width > 1) add(one.values, { stroke: faint(colour, 0.4), width: 1, hidden: true });
      this.shownIn.set(one, series.length);
      add(one.mean, { stroke: colour, width: one.width ?? 2, dash: one.dash, points: this.few ? { show: true, size: 6, fill: colour } : { show: this.isAlone(one.mean), size: 5, fill: colour } });
    }
    return { columns, series, bands };
  }

  // A value between two gaps has no line: such a series is marked point by point.
  isAlone(values) {
    return values.some((v, i) => v !== null && (values[i - 1] ?? null) === null && (values[i + 1] ?? null) === null);
  }

  // Areas on top of each other; the highest is drawn first, and each covers the lower part of the one before.
  stack() {
    const layers = [];
    let sum = this.x.map(() => 0);
    for (const one of this.data.series.filter((one) => !this.hidden.has(one))) {
      sum = sum.map((total, i) => (one.mean[i] === null ? total : total + one.mean[i]));
      layers.push([one, sum.map((total, i) => (this.data.series.every((s) => s.mean[i] === null) ? null : total))]);
    }
    layers.reverse();
    this.shownIn = new Map(layers.map(([one], i) => [one, i + 1]));
    const paths = this.few ? uPlot.paths.bars({ size: [0.7, 40] }) : undefined;
    const series = layers.map(([one]) => ({
      fill: () => mixed(one.colour, colours.card), width: 0, paths, points: { show: false }, hidden: true,
    }));
    return { columns: layers.map(([, values]) => values), series: [{}, ...series], bands: [] };
  }

  options(series, bands) {
    const { group } = this, small = this.data.small;
    const font = (size) => `${size}px ${getComputedStyle(document.body).fontFamily}`;
    const axis = { font: font(11), stroke: () => colours.muted, ticks: { show: false }, gap: 4 };
    const grid = { stroke: () => colours.line, width: 1 };
    return {
      width: Math.max(120, this.holder.clientWidth),
      height: this.data.height ?? (small ? HEIGHT.small : HEIGHT.normal),
      padding: [small ? 8 : 16, 10, 0, 0],
      legend: { show: false },
      series, bands,
      scales: {
        x: { time: false, distr: group.log2 ? 3 : 1, log: 2, range: () => group.view ?? group.whole(this) },
        y: { distr: this.log ? 3 : 1, range: this.log ? undefined : (u, low, high) => this.yRange(low, high) },
      },
      axes: [
        { ...axis, size: small ? 20 : 24, space: 56, grid: { show: false }, border: { show: true, stroke: () => colours.line, width: 1 },
          splits: group.splits, incrs: group.splits ? undefined : WHOLE, values: (u, values) => values.map((v) => (v === null ? "" : plain(v, 0))) },
        { ...axis, grid, space: small ? 32 : 38, size: (u, values) => widest(u, values),
          values: (u, values, _, __, step) => (this.log ? logTicks(values) : ticks(values, step, this.data.percent)) },
      ],
      cursor: {
        y: false,
        drag: { x: true, y: false, setScale: false },
        points: { size: (u, i) => (u.series[i].hidden ? 0 : 7), width: 0, fill: (u, i) => this.colourOf(i) },
        sync: { key: group.key, scales: ["x", null], filters: { pub: (type) => type === "mousemove" || type === "mouseleave" } },
        bind: { dblclick: () => () => { group.zoom(null); return null; } },
      },
      hooks: {
        init: [(u) => { u.root.setAttribute("aria-hidden", "true"); }],
        drawAxes: [(u) => this.drawBand(u)],
        draw: [(u) => this.drawMarks(u)],
        setCursor: [(u) => this.read(u.cursor.idx)],
        setSelect: [(u) => this.select(u)],
        ready: [() => this.read(null)],
      },
    };
  }

  colourOf(index) {
    return [...this.shownIn].find(([, place]) => place === index)?.[0].colour ?? "transparent";
  }

  // From zero where the values are shares or stacked or come near it: else a small change would look large.
  yRange(low, high) {
    const { band, line, stacked, zero } = this.data;
    const values = [low, high, ...(band ?? []), ...(line === undefined ? [] : [line])].filter((v) => v !== null && Number.isFinite(v));
    if (!values.length) return [0, 1];
    const most = Math.max(...values);
    const least = most - Math.min(...values) < 1e-9 * Math.abs(most) ? most : Math.min(...values); // else rounding would fill the chart
    if (stacked || zero || (least >= 0 && (least < 0.3 * most || least === most))) return [0, most === 0 ? 1 : most * 1.05];
    if (least === most) return [least - Math.abs(least), most === 0 ? 1 : 0];
    const room = 0.06 * (most - least);
    return [least - room, most > 0 || most + room < 0 ? most + room : 0];
  }

  // What was published, below the curves.
  drawBand(u) {
    const { band, line } = this.data, { left, top, width, height } = u.bbox;
    const y = (value) => Math.min(top + height, Math.max(top, u.valToPos(value, "y", true)));
    u.ctx.save();
    u.ctx.fillStyle = colours.band;
    u.ctx.strokeStyle = colours["band-line"];
    u.ctx.lineWidth = 1.5 * devicePixelRatio;
    if (band) u.ctx.fillRect(left, y(band[1]), width, y(band[0]) - y(band[1]));
    if (line !== undefined) {
      u.ctx.setLineDash([6 * devicePixelRatio, 4 * devicePixelRatio]);
      u.ctx.beginPath();
      u.ctx.moveTo(left, y(line));
      u.ctx.lineTo(left + width, y(line));
      u.ctx.stroke();
    }
    u.ctx.restore();
  }

  // Where the run changed. A label that would lie on another is left out.
  drawMarks(u) {
    const { ctx } = u, { left, top, width, height } = u.bbox, pixel = devicePixelRatio;
    ctx.save();
    Object.assign(ctx, { strokeStyle: colours["mark-line"], fillStyle: colours.muted, lineWidth: pixel, textAlign: "left", textBaseline: "bottom" });
    ctx.font = `${10 * pixel}px ${getComputedStyle(document.body).fontFamily}`;
    const taken = [];
    for (const { label, after } of this.group.marks) {
      const x = Math.round(u.valToPos(after + 0.5, "x", true)) + 0.5 * (pixel % 2);
      if (x < left || x > left + width) continue;
      ctx.setLineDash(label.startsWith("phase") ? [] : [3 * pixel, 3 * pixel]);
      ctx.beginPath();
      ctx.moveTo(x, top);
      ctx.lineTo(x, top + height);
      ctx.stroke();
      const wide = ctx.measureText(label).width, from = Math.min(x - wide / 2, left + width - wide);
      if (this.data.small || taken.some(([a, b]) => from < b && from + wide > a)) continue;
      ctx.fillText(label, from, top - 2 * pixel);
      taken.push([from - 10 * pixel, from + wide + 10 * pixel]);
    }
    ctx.restore();
  }

  // Writes the values at a point, or at the last one that has any.
  read(index) {
    const has = (i) => this.data.series.some((one) => one.values[i] !== null);
    let at = index ?? this.x.length - 1;
    while (index === null && at > 0 && !has(at)) at -= 1;
    const mark = index === null ? undefined : this.group.marks.find(({ after }) => Math.abs(after + 0.5 - this.x[at]) <= Math.max(0.5, this.axis.size / 2));
    this.at.textContent = this.group.name(this.axis, at) + (mark ? `, ${mark.label}` : "");
    this.data.series.forEach((one, i) => { this.readouts[i].textContent = this.valueOf(one, at); });
  }

  valueOf(one, at) {
    const write = (value) => shown(value, this.data.percent);
    if (this.data.small) return write(one.values[at]);
    if (this.data.stacked) return `${write(one.mean[at])} s`;
    const range = one.low && one.low[at] !== one.high[at] ? ` (${write(one.low[at])} to ${write(one.high[at])})` : "";
    if (this.width > 1 && this.data.series.length === 1) return `${write(one.values[at])}${range}, mean ${write(one.mean[at])}`;
    return write(one.values[at]) + (this.data.series.length === 1 || this.data.shaded === false ? range : "");
  }

  select(u) {
    const { left, width } = u.select;
    if (width < 5) return;
    this.group.zoom([u.posToVal(left, "x"), u.posToVal(left + width, "x")]);
    u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
  }

  resize() {
    const width = this.holder.clientWidth;
    if (width && width !== this.plot.width) this.plot.setSize({ width, height: this.plot.height });
  }

  point(at) {
    this.plot.setCursor({ left: this.plot.valToPos(this.x[at], "x"), top: 0 }, true, true);
  }

  // Arrows move along the curve, + and - zoom, Escape returns to the whole.
  onKey(event) {
    const { plot, group } = this, last = this.x.length - 1;
    const at = plot.cursor.idx ?? last, move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 }[event.key];
    if (move !== undefined) {
      this.point(Math.min(last, Math.max(0, at + move)));
    } else if (event.key === "+" || event.key === "-") {
      const [low, high] = group.view ?? group.whole(this), half = ((high - low) / 2) * (event.key === "+" ? 0.5 : 2);
      const [least, most] = group.whole(this);
      const view = [Math.max(least, this.x[at] - half), Math.min(most, this.x[at] + half)];
      group.zoom(view[0] === least && view[1] === most ? null : view);
      queueMicrotask(() => this.point(at)); // the scale is set in a microtask too
    } else if (event.key === "Escape") {
      group.zoom(null);
      plot.setCursor({ left: -10, top: -10 }, true, true);
    } else return;
    event.preventDefault();
  }
}

const WHOLE = [1, 2, 5, 10, 20, 25, 50, ...[1e2, 1e3, 1e4, 1e5, 1e6].flatMap((ten) => [1, 2, 2.5, 5].map((n) => n * ten))];

function widest(u, values) {
  if (!values) return 40;
  u.ctx.font = u.axes[1].font[0];
  return Math.ceil(Math.max(...values.map((value) => u.ctx.measureText(value).width)) / devicePixelRatio) + 10;
}

const logTicks = (values) => values.map((v) => (v === null || !/^1(\.0*)?(e|$)/.test(v.toExponential()) ? "" : shown(v, false)));
const known = (data) => data.series.flatMap((one) => [...(one.low ?? []), ...(one.high ?? []), ...one.values]).filter((v) => v !== null);

function canBeLog(data) {
  if (data.stacked || data.percent || data.band || data.log === false) return false;
  const values = known(data);
  return values.length > 1 && Math.min(...values.slice(0, 100_000)) > 0 && Math.max(...values) / Math.min(...values) > 3;
}

// Whether a few values are so large that all others would lie on the axis.
function isSkewed(data) {
  if (!canBeLog(data)) return false;
  const values = data.series.flatMap((one) => one.values).filter((v) => v !== null).sort((a, b) => a - b);
  return Math.max(...known(data)) > 100 * values[Math.floor(values.length / 2)];
}

// A colour of #rrggbb, a little of the paper's mixed in.
function mixed(colour, paper) {
  const parts = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  const [a, b] = [parts(colour), parts(paper)];
  return `rgb(${a.map((value, i) => Math.round(0.82 * value + 0.18 * b[i])).join(" ")})`;
}

// The mean of each value with those of the `width` - 1 points before it; null where there is no value.
function runningMean(values, width) {
  return values.map((value, i) => {
    if (value === null) return null;
    const near = values.slice(Math.max(0, i - width + 1), i + 1).filter((v) => v !== null);
    return near.reduce((sum, v) => sum + v, 0) / near.length;
  });
}

/* ---- all charts of a page ---- */

// Charts over the same x: zoomed together; those of one section have one cursor.
class Group {
  constructor(options) {
    Object.assign(this, { view: null, charts: [], marks: [], window: 1, ...options });
  }

  zoom(view) {
    this.view = view;
    for (const chart of this.charts) {
      const [min, max] = view ?? this.whole(chart);
      chart.plot.setScale("x", { min, max });
    }
    const button = document.getElementById("unzoom");
    button.hidden = view === null;
    button.onclick = () => this.zoom(null);
  }
}

const pause = () => new Promise((resolve) => setTimeout(resolve));

// Draws every chart of the document, those at its top first, without keeping the reader waiting for the last.
async function drawCharts(data, groupOf) {
  readColours();
  const groups = new Set();
  followTheme(groups);
  let since = performance.now();
  for (const holder of document.querySelectorAll(".plot[data-chart]")) {
    const chart = data.charts[holder.dataset.chart], group = groupOf(chart, holder);
    groups.add(group);
    group.charts.push(new Chart(holder, chart, data.axes[chart.axis], group));
    performance.mark("chart drawn");
    if (performance.now() - since > 40) {
      await pause();
      since = performance.now();
    }
  }
}

// Where the reader's theme changes, and on paper, which is white.
function redrawCharts(groups) {
  readColours();
  for (const { plot } of [...groups].flatMap((group) => group.charts)) plot.redraw();
}

function followTheme(groups) {
  dark.addEventListener("change", () => redrawCharts(groups));
  for (const [event, printed] of [["beforeprint", true], ["afterprint", false]])
    addEventListener(event, () => {
      document.documentElement.classList.toggle("paper", printed);
      redrawCharts(groups);
    });
}
