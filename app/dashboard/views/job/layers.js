// @ts-check
/** Remaining widths and fit of every layer, drawn as the layers finish. */

import { html } from "../../vendor/htm-preact.js";
import { Chart } from "../../charts.js";
import { Shapes } from "../../shapes.js";

/** @param {{ job: any, events: any[] }} props */
export function Layers({ job, events }) {
  const { layers, total } = finished(job, events);
  if (!total) return null;
  const done = layers.filter(Boolean);
  const numbers = done.map((layer) => layer.layer);
  const curve = (/** @type {string} */ name) => done.map((layer) => layer[name] ?? null);
  return html`<h2>Layers <span class="quiet small">${done.length} of ${total}</span></h2>
    <${Shapes} layers=${layers} total=${total} />
    ${done.length > 1 ? html`<div class="columns">
      <${Chart} title="Relative error by layer" note="‖output − target‖² / ‖target‖²: 0 is exact and not drawn." x="layer" y="error" log=${true}
        names=${["attention", "MLP"]} columns=${[numbers, nonZero(curve("attention_error")), nonZero(curve("mlp_error"))]}
        head=${["layer", "attention", "MLP"]} rows=${done.map((layer) => [layer.layer, short(layer.attention_error), short(layer.mlp_error)])} />
      <${Chart} title="Explained energy by layer" note="Fraction of the values' energy that is kept." x="layer" y="fraction"
        names=${["values"]} columns=${[numbers, curve("explained_energy")]}
        head=${["layer", "values"]} rows=${done.map((layer) => [layer.layer, short(layer.explained_energy)])} />
    </div>` : null}`;
}

/** Finished layers by number, from the events and the job's current progress. @param {any} job @param {any[]} events */
function finished(job, events) {
  /** @type {any[]} */
  const layers = [];
  let total = 0;
  for (const { data } of events) {
    if (data?.layers) total = data.layers;
    if (data?.finished) layers[data.finished.layer] = data.finished;
  }
  const latest = job.progress?.finished;
  if (latest) layers[latest.layer] = latest;
  return { layers, total };
}

/** Leave out zeros, which a logarithmic axis cannot show. @param {(number | null)[]} values */
const nonZero = (values) => values.map((value) => (value && value > 1e-9 ? value : null));

/** @param {number | null | undefined} value */
const short = (value) => (value === null || value === undefined ? "–" : value.toPrecision(3));
