// @ts-check
/** Chart of a sweep: quality against size, speed or the memory to serve. */

import { html, useEffect, useState } from "../../vendor/htm-preact.js";
import { get } from "../../api.js";
import { Card } from "../../components/basics.js";
import { Chart, ORIGINAL_COLOUR } from "../../components/chart.js";
import { Segmented } from "../../components/controls.js";
import { bytes, number, perplexity } from "../../format.js";
import { methodTitle } from "../../hooks.js";
import { textName } from "../../words.js";
import { contextName, servingMemory } from "../job/serving.js";
import { pointName, qualityOn } from "./points.js";

/** Name of the dense model. */
const ORIGINAL = "Original";
/** Load for which the memory to serve is computed. */
const [CONTEXT, BATCH] = [4096, 1];
const MIB = 2 ** 20;

/** @typedef {{ title: string, x: string, better: string, note?: string, show: (x: number) => string }} Axis */

/** @type {Record<string, Axis>} */
const AXES = {
  size: { title: "Size", x: "Weights, MiB", better: "lower and further left is better", show: (x) => bytes(x * MIB) },
  speed: { title: "Speed", x: "Generation speed, original = 1", better: "lower and further right is better", show: (x) => number(x, 3) },
  memory: {
    title: "Memory", x: "Memory to serve, MiB", better: "lower and further left is better",
    note: ` Weights and KV cache of a ${contextName(CONTEXT)} context, batch ${BATCH}.`, show: (x) => bytes(x * MIB),
  },
};

/**
 * Bytes to serve each succeeded job's result and the original, from their reports; loaded once they are needed.
 * @param {any} sweep @param {boolean} needed @returns {{ loading: boolean, memory: Map<string, { before: number, after: number }> }}
 */
function useServingMemory(sweep, needed) {
  const [memory, setMemory] = useState(/** @type {Map<string, any>} */ (new Map()));
  const ids = sweep.pareto.filter((/** @type {any} */ point) => point.state === "succeeded").map((/** @type {any} */ point) => point.job_id);
  const missing = needed ? ids.filter((/** @type {string} */ id) => !memory.has(id)) : [];
  useEffect(() => {
    if (!missing.length) return undefined;
    const stop = new AbortController();
    // A report that cannot be read leaves its point out.
    const load = async (/** @type {string} */ id) => [id, await get(`/v1/jobs/${id}/report`, stop.signal).then((report) => servingMemory(report, CONTEXT, BATCH).total, () => null)];
    Promise.all(missing.map(load)).then((loaded) => {
      if (!stop.signal.aborted) setMemory((old) => new Map([...old, .../** @type {[string, any][]} */ (loaded)]));
    });
    return () => stop.abort();
  }, [missing.join()]);
  return { loading: missing.length > 0, memory };
}

/**
 * @param {{ sweep: any, texts: string[], text: string, setText: (text: string) => void, best: any, uploads: import("../../words.js").Names, offer: any }} props
 *   `best`: the recommended result
 */
export function TradeOff({ sweep, texts, text, setText, best, uploads, offer }) {
  const [axis, setAxis] = useState("size");
  const { loading, memory } = useServingMemory(sweep, axis === "memory");
  const dots = points(sweep, text, axis, memory, best, offer);
  const open = (/** @type {number} */ at) => {
    if (dots[at].job) location.hash = `#/jobs/${dots[at].job}`;
  };
  const hasSpeed = sweep.pareto.some((/** @type {any} */ point) => point.decode_speedup !== null);
  const { title, x, better, note, show } = AXES[axis];
  const options = Object.entries(AXES).filter(([name]) => name !== "speed" || hasSpeed).map(([name, option]) => [name, option.title]);
  const aside = html`<span class="actions">
    <${Segmented} label="Horizontal axis" name="axis" options=${options} value=${axis} choose=${setAxis} />
    ${texts.length > 1 ? html`<select class="inline" aria-label="Text" value=${text} onChange=${(/** @type {any} */ e) => setText(e.target.value)}>
      ${texts.map((name) => html`<option value=${name}>${textName(name, uploads)}</option>`)}</select>` : null}
  </span>`;
  return html`<${Card} title=${`${title} and quality`} aside=${aside} class="gap">
    ${dots.length > 1 ? html`<${Chart} key=${`${axis} ${text}`} title=${`Perplexity on ${textName(text, uploads)}`} choose=${open} format=${perplexity}
      description=${`${dots.length} points; ${better}.`} note=${`${better.charAt(0).toUpperCase()}${better.slice(1)}.${note || ""} Click a point to open its job.`}
      x=${x} y="Perplexity" at=${dots.map((dot) => dot.x)} series=${seriesOf(sweep, dots, offer)}
      labels=${dots.filter((dot) => dot.label).map((dot) => ({ x: dot.x, y: dot.y, text: dot.label }))}
      head=${["Result", `${x}\u00a0`, "Perplexity\u00a0"]} rows=${dots.map((dot) => [dot.name, show(dot.x), perplexity(dot.y)])} />` : html`<p class="sub" role="status">${loading ? "Loading the reports …" : "Drawn once a job has succeeded."}</p>`}
  <//>`;
}

/**
 * The original and the scored results, ordered by the horizontal axis.
 * @param {any} sweep @param {string} text @param {string} axis @param {Map<string, { before: number, after: number }>} memory @param {any} best @param {any} offer
 */
function points(sweep, text, axis, memory, best, offer) {
  const x = (/** @type {any} */ point) => {
    if (axis === "speed") return point.decode_speedup;
    const size = axis === "size" ? point.bytes_after : memory.get(point.job_id)?.after;
    return size === null || size === undefined ? null : size / MIB;
  };
  const several = sweep.methods.length > 1;
  const results = sweep.pareto
    .filter((/** @type {any} */ point) => qualityOn(point, text) && x(point) !== null)
    .map((/** @type {any} */ point) => {
      const name = pointName(sweep, point, offer);
      const isBest = best !== null && point.job_id === best.job_id;
      return { x: x(point), y: qualityOn(point, text).compressed, name, method: point.method, dominated: Boolean(point.dominated), job: point.job_id, label: isBest ? `${name} · recommended` : several ? "" : name };
    });
  const [y, place] = [sweep.dense?.quality[text], originalPlace(sweep, axis, memory)];
  const dense = { x: place, y, name: ORIGINAL, method: null, dominated: false, job: null, label: ORIGINAL };
  return [...results, ...(y === undefined || place === undefined ? [] : [dense])].sort((a, b) => a.x - b.x);
}

/** Place of the original on the horizontal axis. @param {any} sweep @param {string} axis @param {Map<string, { before: number, after: number }>} memory */
function originalPlace(sweep, axis, memory) {
  if (axis === "speed") return 1;
  const size = axis === "size" ? sweep.dense?.bytes : [...memory.values()].find(Boolean)?.before;
  return size === undefined ? undefined : size / MIB;
}

/** @param {any} sweep @param {any[]} dots @param {any} offer */
function seriesOf(sweep, dots, offer) {
  const values = (/** @type {(dot: any) => boolean} */ fits) => dots.map((dot) => (fits(dot) ? dot.y : null));
  const original = { name: ORIGINAL, colour: ORIGINAL_COLOUR, values: values((dot) => dot.job === null) };
  if (sweep.methods.length > 1)
    return [original, ...sweep.methods.map((/** @type {string} */ method, /** @type {number} */ at) => ({ name: methodTitle(offer, method), colour: `--s${(at % 14) + 1}`, line: true, values: values((dot) => dot.method === method) }))];
  return [
    original,
    { name: "Best trade-off", colour: "--s1", values: values((dot) => dot.job !== null && !dot.dominated) },
    { name: "Beaten on size and quality", colour: "--s2", values: values((dot) => dot.dominated) },
  ].filter((series) => series.values.some((value) => value !== null));
}
