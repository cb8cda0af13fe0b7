// @ts-check
/** Chart of a sweep: quality against size or speed. */

import { html, useState } from "../../vendor/htm-preact.js";
import { Card } from "../../components/basics.js";
import { Chart, ORIGINAL_COLOUR } from "../../components/chart.js";
import { Segmented } from "../../components/controls.js";
import { bytes, number, perplexity } from "../../format.js";
import { methodTitle } from "../../hooks.js";
import { textName } from "../../words.js";
import { pointName, qualityOn } from "./points.js";

/** Name of the dense model. */
const ORIGINAL = "Original";
const AXES = [["size", "Size"], ["speed", "Speed"]];

/**
 * @param {{ sweep: any, texts: string[], text: string, setText: (text: string) => void, best: any, uploads: import("../../words.js").Names, offer: any }} props
 *   `best`: the recommended result
 */
export function TradeOff({ sweep, texts, text, setText, best, uploads, offer }) {
  const [axis, setAxis] = useState("size");
  const dots = points(sweep, text, axis, best, offer);
  const open = (/** @type {number} */ at) => {
    if (dots[at].job) location.hash = `#/jobs/${dots[at].job}`;
  };
  const hasSpeed = sweep.pareto.some((/** @type {any} */ point) => point.decode_speedup !== null);
  const aside = html`<span class="actions">
    ${hasSpeed ? html`<${Segmented} label="Horizontal axis" name="axis" options=${AXES} value=${axis} choose=${setAxis} />` : null}
    ${texts.length > 1 ? html`<select class="inline" aria-label="Text" value=${text} onChange=${(/** @type {any} */ e) => setText(e.target.value)}>
      ${texts.map((name) => html`<option value=${name}>${textName(name, uploads)}</option>`)}</select>` : null}
  </span>`;
  const better = axis === "size" ? "lower and further left is better" : "lower and further right is better";
  const xName = axis === "size" ? "Weights, MiB" : "Generation speed, original = 1";
  return html`<${Card} title=${axis === "size" ? "Size and quality" : "Speed and quality"} aside=${aside} class="gap">
    ${dots.length > 1 ? html`<${Chart} key=${`${axis} ${text}`} title=${`Perplexity on ${textName(text, uploads)}`} choose=${open} format=${perplexity}
      description=${`${dots.length} points; ${better}.`} note=${`${better.charAt(0).toUpperCase()}${better.slice(1)}. Click a point to open its job.`}
      x=${xName} y="Perplexity" at=${dots.map((dot) => dot.x)} series=${seriesOf(sweep, dots, offer)}
      labels=${dots.filter((dot) => dot.label).map((dot) => ({ x: dot.x, y: dot.y, text: dot.label }))}
      head=${["Result", `${xName}\u00a0`, "Perplexity\u00a0"]} rows=${dots.map((dot) => [dot.name, axis === "size" ? bytes(dot.x * 2 ** 20) : number(dot.x, 3), perplexity(dot.y)])} />` : html`<p class="sub">Drawn once a job has succeeded.</p>`}
  <//>`;
}

/** The original and the scored results, ordered by the horizontal axis. @param {any} sweep @param {string} text @param {string} axis @param {any} best @param {any} offer */
function points(sweep, text, axis, best, offer) {
  const x = (/** @type {any} */ point) => (axis === "size" ? point.bytes_after / 2 ** 20 : point.decode_speedup);
  const several = sweep.methods.length > 1;
  const results = sweep.pareto
    .filter((/** @type {any} */ point) => qualityOn(point, text) && x(point) !== null)
    .map((/** @type {any} */ point) => {
      const name = pointName(sweep, point, offer);
      const isBest = best !== null && point.job_id === best.job_id;
      return { x: x(point), y: qualityOn(point, text).compressed, name, method: point.method, dominated: Boolean(point.dominated), job: point.job_id, label: isBest ? `${name} · recommended` : several ? "" : name };
    });
  const original = sweep.dense?.quality[text];
  const dense = { x: axis === "size" ? sweep.dense.bytes / 2 ** 20 : 1, y: original, name: ORIGINAL, method: null, dominated: false, job: null, label: ORIGINAL };
  return [...results, ...(original === undefined ? [] : [dense])].sort((a, b) => a.x - b.x);
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
  ];
}
