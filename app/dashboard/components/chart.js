// @ts-check
/** Charts by uPlot, each with a title and a table of the same numbers. */

import { html, useEffect, useRef, useState } from "../vendor/htm-preact.js";
import { number, powerOfTen } from "../format.js";
import { Table } from "./table.js";

const HEIGHT = 260;
/** Steps between ticks of an axis that counts: layers are whole. */
const WHOLE_STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000];
/** Margin of an axis, as a fraction of the values' range. */
const MARGIN = 0.08;

/** @param {string} name */
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/**
 * @typedef {{ name: string, values: (number | null)[], colour?: string, line?: boolean }} Series
 * @typedef {{ x: number, y: number, text: string }} Label
 */

/**
 * @param {{ title: string, note?: any, description: string, x: string, y: string, at: number[], series: Series[],
 *   log?: boolean, whole?: boolean, labels?: Label[], format?: (value: number) => string, most?: number,
 *   choose?: (index: number) => void, head: string[], rows: any[][] }} props
 *   `at`: the points' places on the x axis, ascending; `whole`: only whole numbers have ticks there; `most`: the largest
 *   possible value; series without `line` are dots.
 */
export function Chart(props) {
  const container = useRef(/** @type {HTMLElement | null} */ (null));
  const key = JSON.stringify([props.at, props.series, props.labels]);
  const themeChanges = useThemeChanges();
  useEffect(() => {
    let chart = /** @type {any} */ (null);
    let removed = false;
    import("../vendor/uPlot.js").then(({ default: Plot }) => {
      if (removed || !container.current) return;
      const data = [props.at, ...props.series.map((series) => series.values)];
      chart = new Plot(settings(props, container.current.clientWidth), data, container.current);
    });
    const resize = () => {
      if (chart && container.current) chart.setSize({ width: container.current.clientWidth, height: HEIGHT });
    };
    window.addEventListener("resize", resize);
    return () => {
      removed = true;
      window.removeEventListener("resize", resize);
      chart?.destroy();
    };
  }, [key, themeChanges]);
  return html`<figure>
    <h3>${props.title}</h3>
    <div ref=${container} role="img" aria-label=${`${props.title}. ${props.description}`}></div>
    ${props.note ? html`<figcaption>${props.note}</figcaption>` : null}
    <details class="plain">
      <summary>Data table</summary>
      <${Table} label=${props.title} columns=${props.head} rows=${props.rows} />
    </details>
  </figure>`;
}

/** Count of theme changes. A chart reads its colours when drawn, so each change redraws it. */
function useThemeChanges() {
  const [changes, setChanges] = useState(0);
  useEffect(() => {
    const countChange = () => setChanges((old) => old + 1);
    const system = matchMedia("(prefers-color-scheme: dark)");
    window.addEventListener("theme", countChange);
    system.addEventListener("change", countChange);
    return () => {
      window.removeEventListener("theme", countChange);
      system.removeEventListener("change", countChange);
    };
  }, []);
  return changes;
}

/** Tick labels with enough digits to differ: 0.99998 is not 1. @param {any} _ @param {number[]} values */
const tickLabels = (_, values) => values.map((value) => number(value, 6));

/**
 * Axis range with a margin, so that dots at the ends are not clipped. Equal values are in the middle of a narrow range.
 * @param {number | null} low @param {number | null} high @param {number} [most] @returns {[number, number]}
 */
function padded(low, high, most = Infinity) {
  if (low === null || high === null) return [0, 1];
  const margin = low === high ? Math.abs(low) / 10 || 1 : MARGIN * (high - low);
  const bottom = low >= 0 ? Math.max(0, low - margin) : low - margin;
  return [bottom, Math.max(high, Math.min(high + margin, most))];
}

/** Whether a value is a power of ten, up to rounding errors. @param {number} value */
const isDecade = (value) => Math.abs(Math.log10(value) - Math.round(Math.log10(value))) < 1e-6;

/** Ticks of a logarithmic axis: of several decades only these. @param {any} _ @param {number[]} splits */
const decades = (_, splits) => (splits.filter(isDecade).length < 3 ? splits : splits.map((value) => (isDecade(value) ? value : null)));

/** @param {any} _ @param {(number | null)[]} values */
const decadeLabels = (_, values) => values.map((value) => (value === null ? "" : value >= 0.001 && value < 10_000 ? number(value, 3) : isDecade(value) ? powerOfTen(Math.round(Math.log10(value))) : number(value, 2)));

/** @param {any} props @param {number} width */
function settings(props, width) {
  const axis = { stroke: colour("--text-3"), grid: { stroke: colour("--border"), width: 1 }, ticks: { stroke: colour("--border"), width: 1 } };
  const shown = props.format || ((/** @type {number} */ value) => number(value, 4));
  const text = (/** @type {any} */ _, /** @type {number | null} */ value) => (value === null || value === undefined ? "" : shown(value));
  return {
    width,
    height: HEIGHT,
    scales: {
      x: { time: false, range: (/** @type {any} */ _, /** @type {number} */ low, /** @type {number} */ high) => padded(low, high) },
      y: props.log ? { distr: 3 } : { range: (/** @type {any} */ _, /** @type {number} */ low, /** @type {number} */ high) => padded(low, high, props.most) },
    },
    axes: [
      { ...axis, label: props.x, space: 80, values: tickLabels, ...(props.whole ? { incrs: WHOLE_STEPS } : {}) },
      { ...axis, label: props.y, size: 70, ...(props.log ? { filter: decades, grid: { ...axis.grid, filter: decades }, ticks: { ...axis.ticks, filter: decades }, values: decadeLabels } : { values: tickLabels }) },
    ],
    series: [
      { label: props.x, value: (/** @type {any} */ _, /** @type {number | null} */ value) => (value === null || value === undefined ? "" : number(value, 5)) },
      ...props.series.map((/** @type {Series} */ series, /** @type {number} */ at) => {
        const stroke = colour(series.colour || `--s${(at % 14) + 1}`);
        return {
          label: series.name,
          stroke,
          value: text,
          width: series.line ? 2 : 0,
          paths: series.line ? undefined : () => null,
          points: { show: true, size: series.line ? 6 : 10, fill: stroke },
          spanGaps: true,
        };
      }),
    ],
    legend: { markers: { width: 0, fill: (/** @type {any} */ plot, /** @type {number} */ at) => plot.series[at].stroke(plot, at) } },
    hooks: {
      ready: props.choose ? [(/** @type {any} */ plot) => openOnClick(plot, props.choose)] : [],
      draw: props.labels?.length ? [(/** @type {any} */ plot) => drawLabels(plot, props.labels)] : [],
    },
  };
}

/** @param {any} plot @param {(index: number) => void} choose */
function openOnClick(plot, choose) {
  plot.over.addEventListener("click", () => {
    if (plot.cursor.idx !== null && plot.cursor.idx !== undefined) choose(plot.cursor.idx);
  });
}

/** Names beside the points, on the side that has room, and never over the axis. @param {any} plot @param {Label[]} labels */
function drawLabels(plot, labels) {
  const { ctx, bbox } = plot;
  const scale = window.devicePixelRatio || 1;
  ctx.save();
  ctx.font = `600 ${12 * scale}px ${colour("--sans")}`;
  ctx.fillStyle = colour("--text");
  ctx.textAlign = "left";
  for (const label of labels) {
    const [x, y] = [plot.valToPos(label.x, "x", true), plot.valToPos(label.y, "y", true)];
    const [gap, width] = [10 * scale, ctx.measureText(label.text).width];
    const fits = x + gap + width <= bbox.left + bbox.width;
    ctx.fillText(label.text, fits ? x + gap : Math.max(x - gap - width, bbox.left), Math.max(y - 8 * scale, bbox.top + 12 * scale));
  }
  ctx.restore();
}

/** Colour of the original model in every chart. */
export const ORIGINAL_COLOUR = "--dense";
