// @ts-check
/** Charts by uPlot, each with a name and the same numbers in a table below. */

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { Table } from "./parts.js";

/** @param {string} name */
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const SERIES = ["--s0", "--s1", "--s2", "--s3"];

/**
 * @param {{ title: string, note?: string, x: string, y: string, names: string[],
 *   columns: (number | null)[][], log?: boolean, dots?: boolean,
 *   choose?: (index: number) => void, head: string[], rows: any[][] }} props
 *   `columns` are uPlot's: x, then each series.
 */
export function Chart(props) {
  const place = useRef(/** @type {HTMLElement | null} */ (null));
  const key = JSON.stringify(props.columns);
  const turns = useThemeTurns();
  useEffect(() => {
    let chart = /** @type {any} */ (null);
    let gone = false;
    import("./vendor/uPlot.js").then(({ default: Plot }) => {
      if (gone || !place.current) return;
      chart = new Plot(settings(props, place.current.clientWidth), props.columns, place.current);
    });
    const resize = () => {
      if (chart && place.current) chart.setSize({ width: place.current.clientWidth, height: 240 });
    };
    window.addEventListener("resize", resize);
    return () => {
      gone = true;
      window.removeEventListener("resize", resize);
      chart?.destroy();
    };
  }, [key, turns]);
  return html`<figure>
    <h3 class="small">${props.title}</h3>
    <div ref=${place} role="img" aria-label=${`${props.title}. ${props.note || ""}`}></div>
    <figcaption>${props.note}</figcaption>
    <details>
      <summary>The numbers</summary>
      <${Table} label=${props.title} columns=${props.head} rows=${props.rows} />
    </details>
  </figure>`;
}

/** Colours are read when a chart is drawn: it is drawn again when they have changed. */
function useThemeTurns() {
  const [turns, setTurns] = useState(0);
  useEffect(() => {
    const count = () => setTurns((old) => old + 1);
    const system = matchMedia("(prefers-color-scheme: dark)");
    window.addEventListener("theme", count);
    system.addEventListener("change", count);
    return () => {
      window.removeEventListener("theme", count);
      system.removeEventListener("change", count);
    };
  }, []);
  return turns;
}

/** As many digits as tell one mark from the next: 0.99998 is not 1. @param {any} _ @param {number[]} values */
const marks = (_, values) => values.map((one) => String(Number(one.toPrecision(7))));

/** Dots at the ends are whole. @param {any} _ @param {number} least @param {number} most */
const roomy = (_, least, most) => [least - 0.05 * (most - least || 1), most + 0.05 * (most - least || 1)];

/** @param {any} props @param {number} width */
function settings(props, width) {
  const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 } };
  return {
    width,
    height: 240,
    scales: { x: { time: false, ...(props.dots ? { range: roomy } : {}) }, y: props.log ? { distr: 3 } : {} },
    axes: [{ ...axis, label: props.x }, { ...axis, label: props.y, size: 70, ...(props.log ? {} : { values: marks }) }],
    series: [
      { label: props.x },
      ...props.names.map((/** @type {string} */ name, /** @type {number} */ at) => ({
        label: name,
        stroke: colour(SERIES[at % 4]),
        fill: props.dots ? colour(SERIES[at % 4]) : undefined,
        width: props.dots ? 0 : 2,
        paths: props.dots ? () => null : undefined,
        points: { show: true, size: props.dots ? 10 : 5, fill: colour(SERIES[at % 4]) },
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
