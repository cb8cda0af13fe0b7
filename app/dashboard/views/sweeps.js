// @ts-check
/** Sweeps: one model at several ratios, with a chart of size and quality. */

import { html } from "../vendor/htm-preact.js";
import { get, post } from "../api.js";
import { Chart } from "../charts.js";
import { Action, Fault, State, Table, useLoaded } from "../parts.js";
import { ago, bytes, count, domainName, modelName, nats, percent, titleOf } from "../words.js";

export function Sweeps() {
  const { data, error } = useLoaded((signal) => get("/v1/sweeps?limit=50", signal), [], 5);
  return html`<h1>Sweeps</h1>
    <p class="quiet">One model at several ratios, to choose between size and quality. Statistics that do not depend on the ratio are computed once.</p>
    <div class="actions"><a class="button main" href="#/new?sweep">New sweep</a></div>
    <${Fault} error=${error} />
    ${data ? html`<${Table} label="Sweeps" empty="No sweeps yet." columns=${["sweep", "state", "done", "model", "ratios", "created"]}
      rows=${data.data.map((/** @type {any} */ sweep) => [
        html`<a class="mono" href=${`#/sweeps/${sweep.id}`}>${sweep.id}</a>`,
        html`<${State} state=${sweep.state} />`,
        percent(sweep.progress.fraction),
        modelName(sweep),
        sweep.ratios.join(", "),
        ago(sweep.created_at),
      ])} />` : null}`;
}

/** @param {{ id: string }} props */
export function Sweep({ id }) {
  const { data, error, reload } = useLoaded((signal) => get(`/v1/sweeps/${id}`, signal), [id], 3);
  if (!data) return html`<${Fault} error=${error} /><p class="quiet">Loading …</p>`;
  const points = data.pareto.filter((/** @type {any} */ point) => point.perplexity !== null);
  points.sort((/** @type {any} */ a, /** @type {any} */ b) => a.bytes_after - b.bytes_after);
  const open = (/** @type {number} */ at) => (location.hash = `#/jobs/${points[at].job_id}`);
  const pick = (/** @type {boolean} */ dominated) =>
    points.map((/** @type {any} */ point) => (Boolean(point.dominated) === dominated ? point.perplexity : null));
  return html`<h1>${titleOf(data)} <${State} state=${data.state} /></h1>
    <p class="quiet">${modelName(data)} · ${percent(data.progress.fraction, 0)} done · <span class="mono">${data.id}</span></p>
    <div class="actions">
      ${data.jobs.length > 1 ? html`<a class="button" href=${`#/compare?jobs=${data.jobs.map((/** @type {any} */ job) => job.id).join(",")}`}>Compare jobs</a>` : null}
      ${data.progress.fraction < 1 ? html`<${Action} work=${async () => { await post(`/v1/sweeps/${id}/cancel`); reload(); }}>Cancel all<//>` : null}
    </div>
    ${points.length > 1 ? html`<${Chart} title="Size and quality" dots=${true} choose=${open}
      note="Perplexity by MiB of weights; lower and further left is better. Click a point to open its job."
      x="MiB of weights" y="perplexity" names=${["Best trade-off", "Beaten on size and quality"]}
      columns=${[points.map((/** @type {any} */ point) => point.bytes_after / 2 ** 20), pick(false), pick(true)]}
      head=${["weights", "perplexity"]} rows=${points.map((/** @type {any} */ point) => [bytes(point.bytes_after), point.perplexity.toFixed(3)])} />` : null}
    <${Table} label="Jobs of the sweep" columns=${["ratio\u00a0", "state", "parameters\u00a0", "perplexity\u00a0", "KL, nats/token\u00a0", "top-1 agreement\u00a0", "domain", "generation speed-up\u00a0", "job", ""]}
      rows=${data.pareto.map((/** @type {any} */ point) => [
        point.ratio,
        html`<${State} state=${point.state} />`,
        count(point.params_after),
        point.perplexity?.toFixed(3) ?? "–",
        nats(point.kl),
        percent(point.top1_agreement),
        domainName(point.domain) || "–",
        point.decode_speedup?.toFixed(2) ?? "–",
        html`<a class="mono" href=${`#/jobs/${point.job_id}`}>${point.job_id}</a>`,
        point.dominated ? "Beaten on size and quality" : "",
      ])} />`;
}
