// @ts-check
/** What every layer keeps, and how well it fits: drawn as the layers finish. */

import { html } from "../../vendor/htm-preact.js";
import { Chart } from "../../charts.js";
import { Shapes } from "../../shapes.js";

/** @param {{ job: any, events: any[] }} props */
export function Layers({ job, events }) {
  const { layers, total } = finished(job, events);
  if (!total) return null;
  const known = layers.filter(Boolean);
  const numbers = known.map((one) => one.layer);
  const curve = (/** @type {string} */ name) => known.map((one) => one[name] ?? null);
  return html`<h2>Layers <span class="quiet small">${known.length} of ${total}</span></h2>
    <${Shapes} layers=${layers} total=${total} />
    ${known.length > 1 ? html`<div class="columns">
      <${Chart} title="Relative error by layer" note="‖output − target‖² / ‖target‖²: 0 is exact, and not drawn." x="layer" y="error" log=${true}
        names=${["attention", "MLP"]} columns=${[numbers, drawn(curve("attention_error")), drawn(curve("mlp_error"))]}
        head=${["layer", "attention", "MLP"]} rows=${known.map((one) => [one.layer, short(one.attention_error), short(one.mlp_error)])} />
      <${Chart} title="Explained energy by layer" note="The part of the values' energy that is kept." x="layer" y="part"
        names=${["values"]} columns=${[numbers, curve("explained_energy")]}
        head=${["layer", "values"]} rows=${known.map((one) => [one.layer, short(one.explained_energy)])} />
    </div>` : null}`;
}

/** The layers by number, from the log and from where the job is now. @param {any} job @param {any[]} events */
function finished(job, events) {
  /** @type {any[]} */
  const layers = [];
  let total = 0;
  for (const { data } of events) {
    if (data?.layers) total = data.layers;
    if (data?.finished) layers[data.finished.layer] = data.finished;
  }
  const now = job.progress?.finished;
  if (now) layers[now.layer] = now;
  return { layers, total };
}

/** A logarithm has no place for 0. @param {(number | null)[]} values */
const drawn = (values) => values.map((one) => (one && one > 1e-9 ? one : null));

/** @param {number | null | undefined} value */
const short = (value) => (value === null || value === undefined ? "–" : value.toPrecision(3));
