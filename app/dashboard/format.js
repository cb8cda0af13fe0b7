// @ts-check
/** Numbers, sizes, times and differences for display. */

const ABSENT = "–";
const MINUS = "\u2212";
/** Numbers below are shown by a power of ten. */
const SMALL = 1e-4;

/** @param {any} value */
const absent = (value) => value === null || value === undefined || Number.isNaN(value);

/** @param {number | null | undefined} value */
export function count(value) {
  if (absent(value)) return ABSENT;
  const number = Number(value);
  const [unit, name] = [[1e9, "B"], [1e6, "M"], [1e3, "K"]].find(([size]) => number >= Number(size)) || [1, ""];
  return `${Number((number / Number(unit)).toPrecision(4))}${name}`;
}

/** @param {number | null | undefined} value */
export function bytes(value) {
  if (absent(value)) return ABSENT;
  const number = Number(value);
  const [unit, name] = [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]].find(([size]) => number >= Number(size)) || [1, "B"];
  return `${Number((number / Number(unit)).toPrecision(3))} ${name}`;
}

/** A measured duration. @param {number | null | undefined} seconds */
export function duration(seconds) {
  if (absent(seconds)) return ABSENT;
  const whole = Math.round(Number(seconds));
  const two = (/** @type {number} */ part) => String(part).padStart(2, "0");
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}m ${two(whole % 60)}s`;
  if (whole < 86_400) return `${Math.floor(whole / 3600)}h ${two(Math.floor((whole % 3600) / 60))}m`;
  return `${Math.floor(whole / 86_400)}d ${Math.floor((whole % 86_400) / 3600)}h`;
}

/** An estimated or elapsed duration in one unit. @param {number} seconds */
export function roughly(seconds) {
  if (seconds < 10) return "a few seconds";
  if (seconds < 50) return `${10 * Math.ceil(seconds / 10)} s`;
  if (seconds < 5400) return `${Math.max(1, Math.round(seconds / 60))} min`;
  if (seconds < 36 * 3600) return `${Number((seconds / 3600).toPrecision(2))} h`;
  return `${Number((seconds / 86_400).toPrecision(2))} days`;
}

/** One unit of an estimated duration, as exactly as an estimate is. @param {number} seconds @returns {[number, string]} */
function inOneUnit(seconds) {
  if (seconds < 10) return [Math.max(1, Math.round(seconds)), "second"];
  if (seconds < 55) return [10 * Math.round(seconds / 10), "second"];
  if (seconds < 5400) return [Math.round(seconds / 60), "minute"];
  const [size, unit] = seconds < 36 * 3600 ? [3600, "hour"] : [86_400, "day"];
  const number = seconds / Number(size);
  return [Number(number.toFixed(number < 10 ? 1 : 0)), String(unit)];
}

/** @param {number} number @param {string} unit */
const withUnit = (number, unit) => `${number} ${unit}${number === 1 ? "" : "s"}`;

/** A range of estimated durations, as in "12 to 20 minutes"; one where both ends read the same. @param {number} low @param {number} high */
export function durationRange(low, high) {
  const [[least, leastUnit], [most, mostUnit]] = [inOneUnit(low), inOneUnit(high)];
  if (most < 10 && mostUnit === "second") return "a few seconds";
  if (least === most && leastUnit === mostUnit) return `about ${withUnit(most, mostUnit)}`;
  return leastUnit === mostUnit ? `${least} to ${withUnit(most, mostUnit)}` : `${withUnit(least, leastUnit)} to ${withUnit(most, mostUnit)}`;
}

/** @param {string} moment */
export function ago(moment) {
  const seconds = (Date.now() - Date.parse(moment)) / 1000;
  return seconds < 10 ? "just now" : `${roughly(seconds)} ago`;
}

/** @param {number | null | undefined} part @param {number} [digits] */
export const percent = (part, digits = 1) => (absent(part) ? ABSENT : `${(100 * Number(part)).toFixed(digits)} %`);

/** A fraction without trailing zeros: 30 %, 12.5 %. @param {number} part */
export const share = (part) => `${Number((100 * part).toFixed(1))} %`;

/** A signed relative change: −23.7 %, +35 %. Large ones as a factor. @param {number | null | undefined} ratio after / before */
export function change(ratio) {
  if (absent(ratio) || !Number.isFinite(ratio)) return ABSENT;
  const part = 100 * (Number(ratio) - 1);
  if (part >= 200) return `×${Number(Number(ratio).toPrecision(3)).toLocaleString("en")}`;
  const digits = Math.abs(part) < 10 ? 1 : 0;
  const text = Math.abs(part).toFixed(digits);
  if (Number(text) === 0) return "±0 %";
  return `${part < 0 ? MINUS : "+"}${Number(text)} %`;
}

/** A speed-up with its direction: 1.30× faster, 4 % slower. @param {number | null | undefined} ratio */
export function times(ratio) {
  if (absent(ratio)) return ABSENT;
  const text = Number(ratio).toFixed(2);
  if (text === "1.00") return "unchanged";
  return Number(ratio) > 1 ? `${text}× faster` : `${Number((100 * (1 - Number(ratio))).toFixed(0))} % slower`;
}

/** @param {number | null | undefined} value */
export function perplexity(value) {
  if (absent(value)) return ABSENT;
  const number = Number(value);
  if (!Number.isFinite(number)) return "∞";
  if (number >= 1000) return Math.round(number).toLocaleString("en");
  return number.toFixed(number < 10 ? 2 : 1);
}

/** A speed in tokens per second, with half its interquartile range. @param {number | null | undefined} value @param {number | null} [spread] */
export function speed(value, spread) {
  if (absent(value)) return ABSENT;
  const digits = Number(value) < 100 ? 1 : 0;
  const text = (/** @type {number} */ number) => number.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  return `${text(Number(value))}${absent(spread) ? "" : ` ± ${text(Number(spread) / 2)}`} tok/s`;
}

/** A divergence in nats per token. @param {number | null | undefined} kl */
export const nats = (kl) => (absent(kl) ? ABSENT : number(Number(kl), 3));

const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";

/** A power of ten: 10⁻⁷. @param {number} exponent */
export const powerOfTen = (exponent) => `10${exponent < 0 ? "⁻" : ""}${[...String(Math.abs(exponent))].map((digit) => SUPERSCRIPTS[Number(digit)]).join("")}`;

/** A number of few digits, small ones by a power of ten: 0.0123, 9.5·10⁻⁷. @param {number | null | undefined} value @param {number} [digits] */
export function number(value, digits = 4) {
  if (absent(value)) return ABSENT;
  const exact = Number(Number(value).toPrecision(digits));
  if (exact !== 0 && Math.abs(exact) < SMALL) {
    const exponent = Math.floor(Math.log10(Math.abs(exact)));
    return `${Number((exact / 10 ** exponent).toPrecision(digits))}·${powerOfTen(exponent)}`;
  }
  return exact.toLocaleString("en", { maximumSignificantDigits: digits });
}

/** @param {string} moment */
export const clockTime = (moment) => new Date(moment).toLocaleTimeString();
