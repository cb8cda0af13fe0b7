// @ts-check
/** Sweeps: one model at several ratios, as a chart of size and quality. */

import { html } from "../vendor/htm-preact.js";
import { get, post } from "../api.js";
import { Chart } from "../charts.js";
import { Action, Fault, State, Table, useLoaded } from "../parts.js";
import { ago, bytes, count, modelName, percent, titleOf } from "../words.js";

export function Sweeps() {
  const { data, error } = useLoaded((signal) => get("/v1/sweeps?limit=50", signal), [], 5);
  return html`<h1>Sweeps</h1>
    <p class="quiet">One model at several ratios, for the choice between size and quality; what does not depend on the ratio is learnt once.</p>
    <div class="actions"><a class="button main" href="#/new?sweep">New sweep</a></div>
    <${Fault} error=${error} />
    ${data ? html`<${Table} label="Sweeps" empty="No sweeps yet." columns=${["sweep", "state", "done", "model", "ratios", "made"]}
      rows=${data.data.map((/** @type {any} */ one) => [
        html`<a class="mono" href=${`#/sweeps/${one.id}`}>${one.id}</a>`,
        html`<${State} state=${one.state} />`,
        percent(one.progress.fraction),
        modelName(one),
        one.ratios.join(", "),
        ago(one.created_at),
      ])} />` : null}`;
}

/** @param {{ id: string }} props */
export function Sweep({ id }) {
  const { data, error, reload } = useLoaded((signal) => get(`/v1/sweeps/${id}`, signal), [id], 3);
  if (!data) return html`<${Fault} error=${error} /><p class="quiet">Loading …</p>`;
  const points = data.pareto.filter((/** @type {any} */ one) => one.perplexity !== null);
  points.sort((/** @type {any} */ a, /** @type {any} */ b) => a.bytes_after - b.bytes_after);
  const open = (/** @type {number} */ at) => (location.hash = `#/jobs/${points[at].job_id}`);
  const pick = (/** @type {boolean} */ dominated) =>
    points.map((/** @type {any} */ one) => (Boolean(one.dominated) === dominated ? one.perplexity : null));
  return html`<h1>${titleOf(data)} <${State} state=${data.state} /></h1>
    <p class="quiet">${modelName(data)} · ${percent(data.progress.fraction, 0)} done · <span class="mono">${data.id}</span></p>
    <div class="actions">
      ${data.jobs.length > 1 ? html`<a class="button" href=${`#/compare?jobs=${data.jobs.map((/** @type {any} */ one) => one.id).join(",")}`}>Compare its jobs</a>` : null}
      ${data.progress.fraction < 1 ? html`<${Action} work=${async () => { await post(`/v1/sweeps/${id}/cancel`); reload(); }}>Cancel all<//>` : null}
    </div>
    ${points.length > 1 ? html`<${Chart} title="Size and quality" dots=${true} choose=${open}
      note="Perplexity by MiB of weights; further down and left is better. A click opens the job."
      x="MiB of weights" y="perplexity" names=${["no other beats it", "dominated"]}
      columns=${[points.map((/** @type {any} */ one) => one.bytes_after / 2 ** 20), pick(false), pick(true)]}
      head=${["weights", "perplexity"]} rows=${points.map((/** @type {any} */ one) => [bytes(one.bytes_after), one.perplexity.toFixed(3)])} />` : null}
    <${Table} label="Jobs of the sweep" columns=${["ratio\u00a0", "state", "parameters\u00a0", "perplexity\u00a0", "decode speed-up\u00a0", "job", ""]}
      rows=${data.pareto.map((/** @type {any} */ one) => [
        one.ratio,
        html`<${State} state=${one.state} />`,
        count(one.params_after),
        one.perplexity?.toFixed(3) ?? "–",
        one.decode_speedup?.toFixed(2) ?? "–",
        html`<a class="mono" href=${`#/jobs/${one.job_id}`}>${one.job_id}</a>`,
        one.dominated ? "dominated" : "",
      ])} />`;
}
