"use strict";

const FEW = 41; // up to so many points, each is marked: 40 steps and the evaluation before them
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
  }

  show(width) {
    this.draw(width);
    new ResizeObserver(() => this.resize()).observe(this.holder);
    this.holder.addEventListener("keydown", (event) => this.onKey(event));
  }

  // Above the chart: what is drawn, and its values at the cursor or, without one, at the end.
  addKey() {
    this.at = element("span", { className: "at" });
    this.readouts = this.data.series.map(() => element("strong"));
    const items = this.data.series.map((one, i) => this.keyItem(one, this.readouts[i]));
    const logs = canBeLog(this.data) ? [this.logButton()] : [];
    this.holder.before(element("div", { className: "key" }, this.at, ...items, ...logs));
  }

  // Several series are told apart, and may be hidden.
  keyItem(one, value) {
    if (this.data.series.length === 1) return element("span", { className: "item" }, value);
    const swatch = element("i");
    swatch.style.background = one.colour;
    const item = element("button", { type: "button", className: "item", title: "show or hide" }, swatch, one.name, value);
    item.setAttribute("aria-pressed", "true");
    item.onclick = () => {
      if (!this.hidden.delete(one)) this.hidden.add(one);
      item.setAttribute("aria-pressed", !this.hidden.has(one));
      this.redraw();
    };
    return item;
  }

  logButton() {
    const button = element("button", { type: "button", className: "log", textContent: "log", title: "logarithmic axis" });
    button.setAttribute("aria-pressed", this.log);
    button.onclick = () => {
      this.log = !this.log;
      button.setAttribute("aria-pressed", this.log);
      this.redraw();
    };
    return button;
  }

  redraw() {
    this.plot.destroy();
    this.draw(this.holder.clientWidth);
  }

  draw(width) {
    const { columns, series, bands } = this.data.stacked ? this.stack() : this.lines();
    this.plot = new uPlot(this.options(width, series, bands), [this.x, ...columns], this.holder);
  }

  // Thin lines or bands of single steps behind bold running means.
  lines() {
    const columns = [], series = [{}], bands = [];
    this.shownIn = new Map();
    const add = (values, options) => { columns.push(values); series.push({ pxAlign: 0, points: { show: false }, ...options }); };
    const faintly = (colour, share) => ({ stroke: faint(colour, share), width: 1, hidden: true });
    for (const one of this.data.series.filter((one) => !this.hidden.has(one))) {
      const { colour } = one;
      if (one.low && this.data.shaded !== false) {
        bands.push({ series: [series.length, series.length + 1], fill: faint(colour, 0.2) });
        for (const edge of [one.high, one.low]) add(edge, faintly(colour, 0.32)); // a spike must be seen
      } else if (this.width > 1) add(one.values, faintly(colour, 0.4));
      this.shownIn.set(one, series.length);
      const marked = this.few ? null : alone(one.mean); // null: every point
      const points = { show: this.few || marked.length > 0, filter: () => marked, size: 6, fill: colour };
      add(one.mean, { stroke: colour, width: one.width ?? 2, dash: one.dash, points });
    }
    return { columns, series, bands };
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

  options(width, series, bands) {
    const { group } = this, small = this.data.small;
    const axis = { font: `11px ${font}`, stroke: () => colours.muted, ticks: { show: false }, gap: 4 };
    const line = { stroke: () => colours.line, width: 1 };
    return {
      width: Math.max(120, width),
      height: small ? HEIGHT.small : HEIGHT.normal,
      padding: [small ? 8 : 16, 10, 0, 0],
      legend: { show: false },
      series, bands,
      scales: {
        x: { time: false, distr: group.log2 ? 3 : 1, log: 2, range: () => group.view ?? group.whole(this) },
        y: { distr: this.log ? 3 : 1, range: this.log ? undefined : (u, low, high) => this.yRange(low, high) },
      },
      axes: [
        {
          ...axis, size: small ? 20 : 24, space: 56, grid: { show: false }, border: { show: true, ...line },
          splits: group.splits, incrs: group.splits ? undefined : WHOLE,
          values: (u, values) => values.map((v) => (v === null ? "" : plain(v, 0))),
        },
        {
          ...axis, grid: line, space: small ? 32 : 38, size: (u, values) => widest(u, values),
          values: (u, values, _, __, step) => (this.log ? logTicks(values) : ticks(values, step, this.data.percent)),
        },
      ],
      cursor: {
        y: false,
        drag: { x: true, y: false, setScale: false },
        points: { size: (u, i) => (u.series[i].hidden ? 0 : 7), width: 0, fill: (u, i) => this.colourOf(i) },
        sync: { key: group.key, scales: ["x", null], filters: { pub: (type) => ["mousemove", "mouseleave"].includes(type) } },
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
    const values = [low, high, ...(band ?? []), line].filter(Number.isFinite);
    if (!values.length) return [0, 1];
    const most = Math.max(...values);
    let least = Math.min(...values);
    if (most - least < 1e-9 * Math.abs(most)) least = most; // else rounding would fill the chart
    if (least === 0 && most === 0) return [0, this.data.percent ? 0.1 : 1];
    if (stacked || zero || (least >= 0 && (least < 0.3 * most || least === most))) return [0, most * 1.05];
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
    Object.assign(ctx, { strokeStyle: colours["mark-line"], fillStyle: colours.muted, lineWidth: pixel });
    Object.assign(ctx, { textAlign: "left", textBaseline: "bottom" });
    ctx.font = `${10 * pixel}px ${font}`;
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
    const isNear = ({ after }) => Math.abs(after + 0.5 - this.x[at]) <= Math.max(0.5, this.axis.size / 2);
    const mark = index === null ? undefined : this.group.marks.find(isNear);
    this.at.textContent = this.group.name(this.axis, at) + (mark ? `, ${mark.label}` : "");
    this.data.series.forEach((one, i) => { this.readouts[i].textContent = this.valueOf(one, at); });
  }

  valueOf(one, at) {
    const write = (value) => shown(value, this.data.percent);
    if (this.data.small) return write(one.values[at]);
    if (this.data.stacked) return `${write(one.mean[at])} s`;
    const range = one.low && one.low[at] !== one.high[at] ? ` (${write(one.low[at])} to ${write(one.high[at])})` : "";
    const isOnly = this.data.series.length === 1, value = write(one.values[at]);
    if (isOnly && this.width > 1) return `${value}${range}, mean ${write(one.mean[at])}`;
    return isOnly || this.data.shaded === false ? value + range : value;
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

const TENS = [1e2, 1e3, 1e4, 1e5, 1e6];
const WHOLE = [1, 2, 5, 10, 20, 25, 50, ...TENS.flatMap((ten) => [1, 2, 2.5, 5].map((n) => n * ten))]; // between ticks

// The places of values between two gaps, which have no line.
function alone(values) {
  const isGap = (i) => (values[i] ?? null) === null;
  return [...values.keys()].filter((i) => !isGap(i) && isGap(i - 1) && isGap(i + 1));
}

function widest(u, values) {
  if (!values) return 40;
  u.ctx.font = u.axes[1].font[0];
  return Math.ceil(Math.max(...values.map((value) => u.ctx.measureText(value).width)) / devicePixelRatio) + 10;
}
