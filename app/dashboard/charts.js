// @ts-check
/** Charts by uPlot, each with a title and a table of the same numbers. */

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { Table } from "./parts.js";

/** @param {string} name */
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const SERIES = Array.from({ length: 14 }, (_, number) => `--s${number}`);

/**
 * @param {{ title: string, note?: string, x: string, y: string, names: string[],
 *   columns: (number | null)[][], log?: boolean, dots?: boolean, curves?: boolean,
 *   choose?: (index: number) => void, head: string[], rows: any[][] }} props
 *   `columns` in uPlot's order: x, then each series; `curves` are lines through large dots.
 */
export function Chart(props) {
  const container = useRef(/** @type {HTMLElement | null} */ (null));
  const key = JSON.stringify(props.columns);
  const themeChanges = useThemeChanges();
  useEffect(() => {
    let chart = /** @type {any} */ (null);
    let removed = false;
    import("./vendor/uPlot.js").then(({ default: Plot }) => {
      if (removed || !container.current) return;
      chart = new Plot(settings(props, container.current.clientWidth), props.columns, container.current);
    });
    const resize = () => {
      if (chart && container.current) chart.setSize({ width: container.current.clientWidth, height: 240 });
    };
    window.addEventListener("resize", resize);
    return () => {
      removed = true;
      window.removeEventListener("resize", resize);
      chart?.destroy();
    };
  }, [key, themeChanges]);
  return html`<figure>
    <h3 class="small">${props.title}</h3>
    <div ref=${container} role="img" aria-label=${`${props.title}. ${props.note || ""}`}></div>
    <figcaption>${props.note}</figcaption>
    <details>
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
const tickLabels = (_, values) => values.map((value) => String(Number(value.toPrecision(7))));

/** Axis range with a margin, so that dots at the ends are not clipped. @param {any} _ @param {number} low @param {number} high */
const paddedRange = (_, low, high) => [low - 0.05 * (high - low || 1), high + 0.05 * (high - low || 1)];

/** @param {any} props @param {number} width */
function settings(props, width) {
  const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 } };
  return {
    width,
    height: 240,
    scales: { x: { time: false, ...(props.dots || props.curves ? { range: paddedRange } : {}) }, y: props.log ? { distr: 3 } : {} },
    axes: [{ ...axis, label: props.x }, { ...axis, label: props.y, size: 70, ...(props.log ? {} : { values: tickLabels }) }],
    series: [
      { label: props.x },
      ...props.names.map((/** @type {string} */ name, /** @type {number} */ at) => ({
        label: name,
        stroke: colour(SERIES[at % SERIES.length]),
        fill: props.dots ? colour(SERIES[at % SERIES.length]) : undefined,
        width: props.dots ? 0 : 2,
        paths: props.dots ? () => null : undefined,
        points: { show: true, size: props.dots ? 10 : props.curves ? 8 : 5, fill: colour(SERIES[at % SERIES.length]) },
        spanGaps: true,
      })),
    ],
    hooks: props.choose
      ? {
          ready: [
            (/** @type {any} */ plot) =>
              plot.over.addEventListener("click", () => {
                if (plot.cursor.idx !== null) props.choose(plot.cursor.idx);
              }),
          ],
        }
      : {},
  };
}
