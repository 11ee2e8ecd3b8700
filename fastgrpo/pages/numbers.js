"use strict";

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
  const isWhole = (size) => Math.abs(size - Math.round(size)) < 1e-6;
  const digits = (size) => [0, 1, 2, 3, 4, 5, 6, 7].find((n) => isWhole(size * 10 ** n)) ?? 8;
  const ten = Math.floor(Math.log10(most));
  return values.map((value) => {
    if (value === null) return "";
    if (percent) return minus(`${plain(100 * value, digits(100 * step))}%`);
    if (value === 0) return "0";
    if (most >= 1e5) return minus(compact.format(value));
    if (most < 1e-3) return minus(`${Number((value / 10 ** ten).toPrecision(3))}e`) + minus(String(ten));
    return minus(plain(value, digits(step)));
  });
}

// Of a logarithmic axis: the powers of ten.
const logTicks = (values) => values.map((v) => (v !== null && v.toExponential().startsWith("1e") ? shown(v, false) : ""));

// Every number that a chart may show.
const known = ({ series }) =>
  series.flatMap((one) => [...(one.low ?? []), ...(one.high ?? []), ...one.values]).filter((v) => v !== null);

function canBeLog(data) {
  if (data.stacked || data.percent || data.band) return false;
  const values = known(data), least = Math.min(...values);
  return least > 0 && Math.max(...values) > 3 * least;
}

// Whether a few values are so large that all others would lie on the axis.
function isSkewed(data) {
  if (!canBeLog(data)) return false;
  const values = data.series.flatMap((one) => one.values).filter((v) => v !== null).sort((a, b) => a - b);
  return Math.max(...known(data)) > 100 * values[Math.floor(values.length / 2)];
}

// The mean of each value with those of the `width` - 1 points before it; null where there is no value.
function runningMean(values, width) {
  return values.map((value, i) => {
    if (value === null) return null;
    const near = values.slice(Math.max(0, i - width + 1), i + 1).filter((v) => v !== null);
    return near.reduce((sum, v) => sum + v, 0) / near.length;
  });
}
