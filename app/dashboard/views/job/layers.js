// @ts-check
/** Remaining widths and fit of every layer, drawn as the layers finish. */

import { html } from "../../vendor/htm-preact.js";
import { Card } from "../../components/basics.js";
import { Chart } from "../../components/chart.js";
import { LayerBars } from "../../components/layer-bars.js";
import { Table } from "../../components/table.js";
import { number, percent } from "../../format.js";

/** Finished layers by number, from the events and the job's current progress. @param {any} job @param {any[]} events */
export function finishedLayers(job, events) {
  /** @type {any[]} */
  const layers = [];
  let total = 0;
  for (const { data } of events) {
    if (data?.layers) total = data.layers;
    if (data?.finished) layers[data.finished.layer] = data.finished;
  }
  const latest = job.progress?.finished;
  if (latest) layers[latest.layer] = latest;
  return { layers, total: Math.max(total, job.progress?.layers || 0) };
}

/** @param {{ job: any, events: any[] }} props */
export function Widths({ job, events }) {
  const { layers, total } = finishedLayers(job, events);
  if (!total) return null;
  const done = layers.filter(Boolean).length;
  return html`<${Card} title="Width kept per layer" aside=${html`<span class="dim small">${done} of ${total} layers done</span>`}>
    <${LayerBars} layers=${layers} total=${total} />
  <//>`;
}

/** @param {{ job: any, events: any[] }} props */
export function Layers({ job, events }) {
  const done = finishedLayers(job, events).layers.filter(Boolean);
  if (!done.length) return html`<p class="sub">No layer is compressed yet.</p>`;
  const numbers = done.map((layer) => layer.layer);
  const curve = (/** @type {string} */ name) => done.map((layer) => layer[name] ?? null);
  const errors = [...curve("attention_error"), ...curve("mlp_error")];
  const least = smallest(errors);
  const energies = curve("explained_energy");
  return html`<div class="stack">
    <${Widths} job=${job} events=${events} />
    <${Shapes} layers=${done} />
    ${done.length > 1 ? html`<div class="halves">
      ${least === null ? null : html`<${Card}><${Chart} title="Relative error by layer" description="A logarithmic curve each for attention and MLP." note="‖output − target‖² / ‖target‖². Points on the lower edge have no error: nothing was removed."
        x="Layer" y="Relative error" whole=${true} log=${true} at=${numbers}
        series=${[{ name: "Attention", values: floored(curve("attention_error"), least), line: true }, { name: "MLP", values: floored(curve("mlp_error"), least), line: true }]}
        head=${["Layer\u00a0", "Attention\u00a0", "MLP\u00a0"]} rows=${done.map((layer) => [layer.layer, number(layer.attention_error, 3), number(layer.mlp_error, 3)])} /><//>`}
      ${energies.every((energy) => energy === null) ? null : html`<${Card}><${Chart} title="Explained energy by layer" description="One curve, the fraction of the values' energy that is kept." note="Fraction of the values' energy that is kept."
        x="Layer" y="Fraction" whole=${true} most=${1} at=${numbers} series=${[{ name: "Values", values: energies, line: true }]}
        head=${["Layer\u00a0", "Values\u00a0"]} rows=${done.map((layer) => [layer.layer, number(layer.explained_energy, 4)])} /><//>`}
    </div>` : null}
  </div>`;
}

/** Shapes that the layers keep. @param {{ layers: any[] }} props */
const Shapes = ({ layers }) => html`<details class="card"><summary>Shapes of the layers</summary><div class="body">
  <${Table} label="Shapes of the layers" columns=${["Layer\u00a0", "Query heads\u00a0", "KV heads\u00a0", "Query and key width\u00a0", "Value width\u00a0", "MLP width\u00a0", "Attention kept\u00a0", "MLP kept\u00a0"]}
    rows=${layers.map((layer) => [layer.layer, layer.num_attention_heads, layer.num_key_value_heads, layer.qk_head_dim, layer.v_head_dim, layer.intermediate_size, percent(layer.attention_part, 0), percent(layer.mlp_part, 0)])} />
</div></details>`;

/** Errors below this are rounding errors of an exact fit. */
const ROUNDING = 1e-9;

/** The smallest error that is none of rounding; null if there is no such error. @param {(number | null)[]} values */
function smallest(values) {
  const real = values.filter((value) => value !== null && value > ROUNDING);
  return real.length ? Math.min(.../** @type {number[]} */ (real)) : null;
}

/** Put zeros, which a logarithmic axis cannot show, on the edge below all other values. @param {(number | null)[]} values @param {number} least */
const floored = (values, least) => values.map((value) => (value === null ? null : Math.max(value, least / 10)));
